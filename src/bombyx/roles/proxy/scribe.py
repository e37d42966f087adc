# SPDX-License-Identifier: Apache-2.0
"""Rows on their way to the store, committed in groups: many requests share one fsync (spec PAY-17).

Always: `write` returns only when its rows are durable; rows reach the store in the order they were given; a store that
fails makes every waiting write fail, and nothing that depended on it is acted on. Rows of a failed write are not lost:
they describe what a book holds by now, so they go first with the next one. Rows under a lease that was lost are
dropped, for their book is another process' now; whoever waits for them is told, and nobody else is (LEASE-3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bombyx.errors import BombyxError, LeaseLost, Unavailable
from bombyx.ports import Store, Write
from bombyx.roles.proxy.holdings import Holdings

MAX_BATCH: Final = 4_096  # rows of one commit

Row = tuple[bytes, bytes | None]


@dataclass(slots=True)
class _Entry:
    writes: list[Write]
    done: asyncio.Future[None] | None


class Scribe:
    """One per proxy."""

    def __init__(self, store: Store, holdings: Holdings | None = None) -> None:
        self._store = store
        self._holdings = holdings or Holdings(shared=False)
        self._waiting: list[_Entry] = []
        self._flusher: asyncio.Task[None] | None = None
        self._owed: dict[tuple[str, bytes], Write] = {}  # rows of failed writes, the newest of a key

    def put(self, table: str, rows: Iterable[Row]) -> None:
        """Rows nobody waits for; a later `write` is durable only together with them."""
        self._add(self._writes(table, rows), None)

    async def write(self, table: str, rows: Iterable[Row] = ()) -> None:
        """Return once these rows, and all given before, are durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(self._writes(table, rows), done)
        await done

    async def flush(self) -> None:
        """Return once all rows given before are durable."""
        await self.write("")

    async def close(self) -> None:
        while self._flusher is not None:
            await asyncio.wait([self._flusher])

    def _writes(self, table: str, rows: Iterable[Row]) -> list[Write]:
        fence = self._holdings.fence
        return [Write(table=table, key=key, value=value, lease=fence(table, key)) for key, value in rows]

    def _add(self, writes: list[Write], done: asyncio.Future[None] | None) -> None:
        if not writes and done is None:
            return
        self._waiting.append(_Entry(writes, done))
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._take())
        finally:
            self._flusher = None

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
            rows = [*self._owed.values(), *(write for entry in batch for write in entry.writes)]
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
    if entry.done is None or entry.done.done():
        return
    if failure is None:
        entry.done.set_result(None)
    else:
        entry.done.set_exception(failure)
