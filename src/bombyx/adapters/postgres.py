# SPDX-License-Identifier: Apache-2.0
"""`ports.Store` on PostgreSQL, for several processes at once: group commit, leases checked in the same statement.

One connection writes: while a batch commits, further callers queue up and share the next commit. A second one reads.
What a batch does is one statement, so it costs one round trip: it locks the lease rows its callers named, and writes
only if all of them still have the token they had. Writes become visible in the order they were asked for.

Always: `write` returns after the commit or raises. A connection that broke is opened anew and the batch sent again,
which is harmless even if it had been committed: rows are whole values, and under a lease nobody else writes them.
Not here: who gets a lease (`postgres_leases.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncpg

from bombyx.errors import BombyxError, ConfigError, LeaseLost, Unavailable
from bombyx.ports import Lease, Write

T = TypeVar("T")
Connection = Any  # asyncpg.Connection; the library has no types

MAX_BATCH: Final = 1_024  # callers in one transaction
CONNECT_SECONDS: Final = 5.0
STATEMENT_SECONDS: Final = 10.0  # the server ends a statement that takes longer; we give up a little later
PATIENCE_SECONDS: Final = 5.0  # how long a call is tried again while the server does not answer
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5  # seconds between those tries
SCHEMA_LOCK: Final = 0x626F6D6279780001  # advisory: replicas that start together make the tables one after another

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS bombyx_row (name text NOT NULL, key bytea NOT NULL, value bytea NOT NULL,
                                       PRIMARY KEY (name, key));
CREATE TABLE IF NOT EXISTS bombyx_replica (holder bytea PRIMARY KEY, url text NOT NULL, until timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS bombyx_lease (name bytea PRIMARY KEY, token bigint NOT NULL, holder bytea NOT NULL);
CREATE INDEX IF NOT EXISTS bombyx_lease_holder ON bombyx_lease (holder);
CREATE SEQUENCE IF NOT EXISTS bombyx_token;
"""
# FOR SHARE waits for a take-over under way and then sees it; a later take-over waits for this commit.
_COMMIT: Final = """
WITH asked AS (SELECT * FROM unnest($1::bytea[], $2::bigint[]) AS a (name, token)),
     held AS MATERIALIZED (SELECT l.name, l.token FROM bombyx_lease l JOIN asked a USING (name, token)
                           ORDER BY l.name FOR SHARE OF l),
     lost AS MATERIALIZED (SELECT name, token FROM asked EXCEPT SELECT name, token FROM held),
     put AS (INSERT INTO bombyx_row (name, key, value)
             SELECT * FROM unnest($3::text[], $4::bytea[], $5::bytea[]) WHERE NOT EXISTS (SELECT FROM lost)
             ON CONFLICT (name, key) DO UPDATE SET value = excluded.value),
     gone AS (DELETE FROM bombyx_row r USING unnest($6::text[], $7::bytea[]) AS g (name, key)
              WHERE r.name = g.name AND r.key = g.key AND NOT EXISTS (SELECT FROM lost))
SELECT name, token FROM lost
"""
_READ: Final = "SELECT value FROM bombyx_row WHERE name = $1 AND key = $2"
_SCAN: Final = (
    "SELECT key, value FROM bombyx_row WHERE name = $1 AND key >= $2 AND ($3::bytea IS NULL OR key < $3)"
    " ORDER BY key LIMIT $4"
)


@dataclass(frozen=True, slots=True)
class _Job:
    rows: tuple[Write, ...]
    done: asyncio.Future[None]

    @property
    def leases(self) -> set[Lease]:
        return {row.lease for row in self.rows if row.lease is not None}


class Database:
    """One connection, opened when first needed and again when it broke. Calls take turns."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self.closed = False

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """`work` on a live connection; tried again for some seconds, so it must be harmless to do twice."""
        give_up, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
        async with self._turn:
            while True:
                if self.closed:
                    raise Unavailable("the store is closed")
                try:
                    return await work(await self._connected())
                except BombyxError:
                    raise
                except Exception as error:  # noqa: BLE001 - the driver lets its own faults out when a server goes away
                    self._forget()
                    if not _passes(error) or time.monotonic() + pause > give_up:
                        raise _translated(error) from None
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await _connect(self._url)
        return self._connection

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        self.closed = True
        if self._connection is not None:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
                await self._connection.close(timeout=1.0)
            self._connection = None


class PostgresStore:
    """Durable rows in two tables of one database. Made by `open`; use from one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._writer = Database(url)
        self._reader = Database(url)
        self._jobs: deque[_Job] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> PostgresStore:
        """Connect, and make the tables where they are not. Raises `Unavailable`, `ConfigError` for a bad URL."""
        store = cls(url)
        try:
            await store._writer.run(_make_tables)
        except BaseException:
            await store.close()
            raise
        return store

    async def write(self, rows: Sequence[Write]) -> None:
        if self._closed:
            raise Unavailable("the store is closed")
        if rows:
            job = _Job(tuple(rows), asyncio.get_running_loop().create_future())
            self._jobs.append(job)
            if self._flusher is None:
                self._flusher = asyncio.get_running_loop().create_task(self._flush())
            await asyncio.shield(job.done)

    async def read(self, table: str, key: bytes) -> bytes | None:
        found: bytes | None = await self._reader.run(lambda c: c.fetchval(_READ, table, bytes(key)))
        return found

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]:
        prefix = bytes(prefix)
        found = await self._reader.run(lambda c: c.fetch(_SCAN, table, prefix, _after(prefix), limit))
        return [(row[0], row[1]) for row in found]

    async def close(self) -> None:
        """Finish what was asked for, then let go of the database. Idempotent."""
        self._closed = True
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        await self._writer.close()
        await self._reader.close()

    # --- the writer ---

    async def _flush(self) -> None:
        try:
            while self._jobs:
                await self._commit([self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_BATCH))])
        finally:
            self._flusher = None

    async def _commit(self, jobs: list[_Job]) -> None:
        """All jobs in one transaction; those whose lease is lost are told so, and the rest go without them."""
        while jobs:
            try:
                lost = await self._writer.run(lambda c, jobs=jobs: c.fetch(_COMMIT, *_arguments(jobs)))  # type: ignore[misc]
            except (Unavailable, ConfigError) as error:
                _answer(jobs, error)
                return
            gone = {Lease(name=row[0], token=row[1]) for row in lost}
            failed = [job for job in jobs if job.leases & gone]
            for job in failed:
                theirs = frozenset((lease.name, lease.token) for lease in job.leases & gone)
                _answer([job], LeaseLost("another process has taken this over", lost=theirs, rule="LEASE-3"))
            if not gone:
                _answer(jobs, None)
                return
            jobs = [job for job in jobs if job not in failed]


async def _connect(url: str) -> Connection:
    try:
        return await asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS,
            command_timeout=STATEMENT_SECONDS + 2,
            server_settings={
                "application_name": "bombyx",
                "statement_timeout": str(int(STATEMENT_SECONDS * 1000)),
                "idle_in_transaction_session_timeout": str(int(STATEMENT_SECONDS * 1000)),
                "synchronous_commit": "on",
            },
        )
    except ValueError:
        raise ConfigError("the database's URL cannot be read: postgresql://USER:PASSWORD@HOST:PORT/NAME") from None


async def _make_tables(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", SCHEMA_LOCK)
        await connection.execute(_SCHEMA)


def _arguments(jobs: Iterable[_Job]) -> tuple[list[Any], ...]:
    """The columns of `_COMMIT`: leases, rows to put, rows to delete; the newest value of a key stands."""
    newest = {(row.table, bytes(row.key)): row.value for job in jobs for row in job.rows}
    leases = sorted({(lease.name, lease.token) for job in jobs for lease in job.leases})
    put = [(name, key, bytes(value)) for (name, key), value in newest.items() if value is not None]
    gone = [where for where, value in newest.items() if value is None]
    return (*_columns(leases, 2), *_columns(put, 3), *_columns(gone, 2))


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]


def _answer(jobs: Iterable[_Job], failure: BombyxError | None) -> None:
    for job in jobs:
        if job.done.done():
            continue
        if failure is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(failure if isinstance(failure, LeaseLost) else Unavailable(failure.message))


def _passes(error: Exception) -> bool:
    """Whether it may go away by itself within seconds: a broken connection, a server that starts or stops, a lock."""
    if isinstance(error, asyncpg.ClientConfigurationError | asyncpg.QueryCanceledError):
        return False
    return isinstance(
        error,
        OSError
        | TimeoutError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError
        | asyncpg.PostgresConnectionError
        | asyncpg.OperatorInterventionError
        | asyncpg.TooManyConnectionsError
        | asyncpg.DeadlockDetectedError
        | asyncpg.SerializationError,
    )


def _translated(error: Exception) -> Unavailable | ConfigError:
    """Never the error's own words where they could name the URL: it holds a password."""
    if isinstance(
        error,
        asyncpg.ClientConfigurationError
        | asyncpg.InvalidAuthorizationSpecificationError
        | asyncpg.InvalidCatalogNameError,
    ):
        return ConfigError(f"the database does not take this URL, name, user or password ({type(error).__name__})")
    return Unavailable(f"the database does not answer ({type(error).__name__})", retry_after=1.0)


def _after(prefix: bytes) -> bytes | None:
    """The first key behind all that start with `prefix`; None when there is no such key."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
