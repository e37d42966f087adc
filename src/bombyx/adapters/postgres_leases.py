# SPDX-License-Identifier: Apache-2.0
"""`ports.Leases` on PostgreSQL: a process keeps one row alive, and every lease it has lives as long as that row.

So renewing costs one row, however many leases there are, and a process that dies lets go of everything at once, after
the time to live. The server's clock decides. Tokens come from one sequence: each is larger than all before it.

Always: a lease changes hands in a statement that locks its row, so it waits for a commit under the old token that is
under way, and makes every later one fail (`postgres.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bombyx.adapters.postgres import Connection, Database
from bombyx.errors import HeldElsewhere, Unavailable
from bombyx.ports import Lease

HOLDER_SIZE: Final = 16
FORGET_AFTER: Final = "1 day"  # rows of processes that are long gone

# Gives whether the row was still alive: then nothing can have been taken from us.
_RENEW: Final = """
WITH before AS (SELECT until > clock_timestamp() AS alive FROM bombyx_replica WHERE holder = $1)
INSERT INTO bombyx_replica (holder, url, until) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (holder) DO UPDATE SET until = excluded.until, url = excluded.url
RETURNING (SELECT alive FROM before)
"""
_FORGET: Final = f"DELETE FROM bombyx_replica WHERE until < clock_timestamp() - interval '{FORGET_AFTER}'"  # noqa: S608
_ACQUIRE: Final = """
INSERT INTO bombyx_lease AS l (name, token, holder) VALUES ($1, nextval('bombyx_token'), $2)
ON CONFLICT (name) DO UPDATE SET token = nextval('bombyx_token'), holder = excluded.holder
WHERE l.holder = excluded.holder
   OR NOT EXISTS (SELECT FROM bombyx_replica r WHERE r.holder = l.holder AND r.until > clock_timestamp())
RETURNING token
"""
_HOLDER: Final = """
SELECT r.url, extract(epoch FROM r.until - clock_timestamp())::float8
FROM bombyx_lease l JOIN bombyx_replica r USING (holder) WHERE l.name = $1
"""
_RELEASE: Final = """
DELETE FROM bombyx_lease WHERE ctid = ANY (ARRAY(
    SELECT l.ctid FROM bombyx_lease l JOIN unnest($1::bytea[], $2::bigint[]) AS a (name, token) USING (name, token)
    ORDER BY l.name FOR UPDATE OF l))
"""
_STILL: Final = "SELECT name, token FROM bombyx_lease WHERE holder = $1"


class PostgresLeases:
    """This process, as a holder. Made by `join`."""

    def __init__(self, url: str, holder: bytes, *, reached_at: str, seconds: float) -> None:
        self.holder = holder
        self.reached_at = reached_at
        self._database = Database(url)
        self._seconds = seconds
        self._held: dict[bytes, int] = {}

    @classmethod
    async def join(cls, url: str, holder: bytes, *, reached_at: str, seconds: float) -> PostgresLeases:
        """`holder`: 16 random bytes, fresh for every process; `reached_at`: what others are told; `seconds` to live."""
        leases = cls(url, holder, reached_at=reached_at, seconds=seconds)
        await leases._database.run(lambda c: c.execute(_FORGET))
        await leases.renew()
        return leases

    async def acquire(self, name: bytes) -> Lease:
        for _ in range(3):
            token = await self._database.run(lambda c: c.fetchval(_ACQUIRE, name, self.holder))
            if token is not None:
                self._held[name] = token
                return Lease(name=name, token=token)
            row = await self._database.run(lambda c: c.fetchrow(_HOLDER, name))
            if row is not None and row[1] > 0:
                raise HeldElsewhere("another replica has this in hand", holder=row[0], retry_after=max(0.1, row[1]))
        raise Unavailable("a lease changes hands too fast", retry_after=0.5)

    async def announce(self, url: str) -> None:
        self.reached_at = url
        await self._database.run(
            lambda c: c.execute("UPDATE bombyx_replica SET url = $2 WHERE holder = $1", self.holder, url)
        )

    async def release(self, leases: Sequence[Lease]) -> None:
        given = [lease for lease in leases if self._held.get(lease.name) == lease.token]
        for lease in given:
            del self._held[lease.name]
        if given:
            names, tokens = [lease.name for lease in given], [lease.token for lease in given]
            await self._database.run(lambda c: c.execute(_RELEASE, names, tokens))

    async def renew(self) -> frozenset[bytes]:
        believed = dict(self._held)
        row = self.holder, self.reached_at, self._seconds
        if await self._database.run(lambda c: c.fetchval(_RENEW, *row)) or not believed:
            return frozenset()
        rows = await self._database.run(lambda c: c.fetch(_STILL, self.holder))
        still = {row[0]: row[1] for row in rows}
        lost = {name for name, token in believed.items() if self._held.get(name) == token != still.get(name)}
        for name in lost:
            del self._held[name]
        return frozenset(lost)

    async def leave(self) -> None:
        if self._database.closed:
            return
        self._held.clear()
        try:
            await self._database.run(self._gone)
        finally:
            await self._database.close()

    async def _gone(self, connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("DELETE FROM bombyx_lease WHERE holder = $1", self.holder)
            await connection.execute("DELETE FROM bombyx_replica WHERE holder = $1", self.holder)
