# SPDX-License-Identifier: Apache-2.0
"""Rows on their way to the store, committed in groups: many requests share one fsync (spec PAY-17).

A receipt in the middle of an answer is kept for the case of a crash. Only its own record waits for that, the frames do
not: so it waits for company.

Always: `write` returns only when its rows are durable; rows reach the store in the order they were given; a store that
fails makes every waiting write fail, and nothing that depended on it is acted on. Rows of a failed write are not lost:
they describe what a book holds by now, so they go first with the next one; `insist` waits for that. Rows under a
lease that was lost are dropped, for their book is another process' now; whoever waits for them is told, and nobody else
is (LEASE-3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import BombyxError, LeaseLost, Unavailable
from bombyx.ports import Lease, Store, Write
from bombyx.roles.proxy.holdings import Holdings

MAX_BATCH: Final = 4_096  # rows of one commit
AGAIN: Final = 0.25  # seconds after which a store that failed is asked again
LINGER: Final = 0.02  # seconds that rows nobody is in a hurry for may wait for company: a crash may lose them, as ever

Row = tuple[bytes, bytes | None]
_write = tuple.__new__  # a named tuple's own `__new__` is a call of Python's more


@dataclass(slots=True)
class _Entry:
    writes: list[Write]
    waiting: list[asyncio.Future[None]]
    patient: list[asyncio.Future[None]] = field(default_factory=list)  # told as well, but no reason to hurry


class Scribe:
    """One per proxy."""

    def __init__(self, store: Store, holdings: Holdings | None = None) -> None:
        self._store = store
        self._holdings = holdings or Holdings(shared=False)
        self._shared = self._holdings.shared
        self._waiting: list[_Entry] = []
        self._flusher: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._urgent = False  # somebody waits for rows that are not on their way yet
        self._owed: dict[tuple[str, bytes], Write] = {}  # rows of failed writes, the newest of a key

    @property
    def owes(self) -> bool:
        """Whether the last write failed: what was given before is not durable yet."""
        return bool(self._owed)

    def put(self, table: str, rows: Iterable[Row]) -> None:
        """Rows nobody waits for; a later `write` is durable only together with them."""
        self._entry().writes += self._writes(table, rows)
        self._soon()

    def keep(self, table: str, rows: Iterable[Row]) -> asyncio.Future[None]:
        """Rows that may wait for company; done once they are durable."""
        entry = self._entry()
        entry.writes += self._writes(table, rows)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.patient.append(done)
        self._soon()
        return done

    def write(self, table: str, rows: Iterable[Row] = ()) -> asyncio.Future[None]:
        """Done once these rows, and all given before, are durable."""
        entry = self._entry()
        entry.writes += self._writes(table, rows)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiting.append(done)
        self._urgent = True
        if self._flusher is None:
            self._start()
        return done

    async def insist(self, table: str, rows: Iterable[Row], *, while_: Callable[[], bool]) -> None:
        """As `write`; a store that does not answer is asked again `while_` that is true. Then it raises, and what
        failed goes with the next batch all the same."""
        rows = tuple(rows)
        leases, again = self._leases(table, rows), False
        done = self.write(table, rows)
        while True:
            try:
                await done
                break
            except LeaseLost:
                raise
            except Unavailable:
                if not while_():
                    raise
            again = True
            await asyncio.sleep(AGAIN)
            done = self.write("")
        if again and leases != self._leases(table, rows):  # dropped, or seen by its successor: we cannot tell
            raise LeaseLost("another replica has taken the channel over meanwhile", rule="LEASE-3")

    async def flush(self) -> None:
        """Return once all rows given before are durable."""
        await self.write("")

    async def close(self) -> None:
        if self._owed:
            self.put("", ())  # once more: what a failed write left has no other occasion
        while self._waiting or self._flusher is not None:
            self._start()
            if self._flusher is not None:
                await asyncio.wait([self._flusher])

    def _writes(self, table: str, rows: Iterable[Row]) -> list[Write]:
        if not self._shared:
            return [_write(Write, (table, key, value, None)) for key, value in rows]
        fence = self._holdings.fence
        return [Write(table=table, key=key, value=value, lease=fence(table, key)) for key, value in rows]

    def _leases(self, table: str, rows: Iterable[Row]) -> list[Lease | None]:
        return [self._holdings.fence(table, key) for key, _ in rows] if self._shared else []

    def _entry(self) -> _Entry:
        """Where the next rows go: with those before them, unless some of them may lose their lease, and others not."""
        if self._waiting and not self._shared and len(self._waiting[-1].writes) < MAX_BATCH:
            return self._waiting[-1]
        entry = _Entry([], [])
        self._waiting.append(entry)
        return entry

    def _start(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while True:
                batch = self._take()
                self._urgent = any(entry.waiting for entry in self._waiting)
                await self._commit(batch)
                if not self._urgent:
                    break
        finally:
            self._flusher = None
            if self._waiting:
                self._soon()

    def _soon(self) -> None:
        if self._flusher is None and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER, self._start)

    def _take(self) -> list[_Entry]:
        count, rows = 0, 0
        for entry in self._waiting:
            if count and rows + len(entry.writes) > MAX_BATCH:
                break
            count, rows = count + 1, rows + len(entry.writes)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _commit(self, batch: list[_Entry]) -> None:
        failure: BombyxError | None = None
        while True:
            rows = [*self._owed.values()]
            for entry in batch:
                rows += entry.writes
            try:
                await self._store.write(rows)
                self._owed.clear()
            except LeaseLost as error:
                batch = self._without(batch, error)
                continue
            except BombyxError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - a waiting request must hear of it, whatever it was
                failure = Unavailable(f"the store failed: {type(error).__name__}", retry_after=1.0, rule="PAY-17")
            break
        if failure is not None:
            self._owed = {(row.table, row.key): row for row in rows}
        for entry in batch:
            _tell(entry, failure)

    def _without(self, batch: list[_Entry], error: LeaseLost) -> list[_Entry]:
        """The batch without what another process keeps now; whoever waited for that hears of it."""

        def gone(row: Write) -> bool:
            return row.lease is not None and (row.lease.name, row.lease.token) in error.lost

        self._owed = {where: row for where, row in self._owed.items() if not gone(row)}
        kept = []
        for entry in batch:
            if any(map(gone, entry.writes)):
                entry.writes = [row for row in entry.writes if not gone(row)]
                _tell(entry, error)
            kept.append(entry)
        self._holdings.lost(error.lost)
        return kept


def _tell(entry: _Entry, failure: BombyxError | None) -> None:
    for done in (*entry.waiting, *entry.patient):
        if done.done():
            continue
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)
