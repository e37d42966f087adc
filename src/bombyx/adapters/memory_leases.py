# SPDX-License-Identifier: Apache-2.0
"""The double of `ports.Leases`: several holders in one process over one `LeaseTable`, which their `MemoryStore` checks.

It keeps every promise but durability; time is that of the clock it is given, so a test can let a lease lapse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bombyx.errors import HeldElsewhere, LeaseLost
from bombyx.ports import Clock, Lease, Write


@dataclass(slots=True)
class _Holder:
    reached_at: str
    until: float


class LeaseTable:
    """Who holds what. Shared by the holders and the store."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.holders: dict[bytes, _Holder] = {}
        self.rows: dict[bytes, tuple[int, bytes]] = {}  # name -> token, holder
        self.last_token = 0

    def alive(self, holder: bytes) -> bool:
        found = self.holders.get(holder)
        return found is not None and found.until > self.clock.monotonic()

    def check(self, rows: Sequence[Write]) -> None:
        """Raise `LeaseLost` where a row's lease has a successor."""
        leases = {row.lease for row in rows if row.lease is not None}
        lost = frozenset((lease.name, lease.token) for lease in leases if not self._stands(lease))
        if lost:
            raise LeaseLost("another process has taken this over", lost=lost, rule="LEASE-3")

    def _stands(self, lease: Lease) -> bool:
        return self.rows.get(lease.name, (0, b""))[0] == lease.token


class MemoryLeases:
    """One holder."""

    def __init__(self, table: LeaseTable, holder: bytes, *, reached_at: str, seconds: float) -> None:
        self._table = table
        self._holder = holder
        self._reached_at = reached_at
        self._seconds = seconds
        self._held: dict[bytes, int] = {}
        self._stay()

    async def acquire(self, name: bytes) -> Lease:
        table = self._table
        token, holder = table.rows.get(name, (0, b""))
        if token and holder != self._holder and table.alive(holder):
            other = table.holders[holder]
            left = other.until - table.clock.monotonic()
            raise HeldElsewhere("another replica has this in hand", holder=other.reached_at, retry_after=left)
        table.last_token += 1
        table.rows[name] = (table.last_token, self._holder)
        self._held[name] = table.last_token
        return Lease(name=name, token=table.last_token)

    async def announce(self, url: str) -> None:
        self._reached_at = self._table.holders[self._holder].reached_at = url

    async def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if self._held.get(lease.name) == lease.token:
                del self._held[lease.name]
            if self._table.rows.get(lease.name) == (lease.token, self._holder):
                del self._table.rows[lease.name]

    async def renew(self) -> frozenset[bytes]:
        self._stay()
        lost = {name for name, token in self._held.items() if self._table.rows.get(name) != (token, self._holder)}
        for name in lost:
            del self._held[name]
        return frozenset(lost)

    async def leave(self) -> None:
        await self.release([Lease(name=name, token=token) for name, token in self._held.items()])
        self._table.holders.pop(self._holder, None)

    def _stay(self) -> None:
        self._table.holders[self._holder] = _Holder(self._reached_at, self._table.clock.monotonic() + self._seconds)
