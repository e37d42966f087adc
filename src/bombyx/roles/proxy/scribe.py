# SPDX-License-Identifier: Apache-2.0
"""Rows on their way to the store, committed in groups: many requests share one fsync (spec PAY-17).

Always: `write` returns only when its rows are durable; rows reach the store in the order they were given; a store that
fails makes every waiting write fail, and nothing that depended on it is acted on. Rows of a failed write are not lost:
they describe what a book holds by now, so they go first with the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from bombyx.errors import BombyxError, Unavailable
from bombyx.ports import Store, Write

MAX_BATCH: Final = 4_096  # rows of one commit

Row = tuple[bytes, bytes | None]


class Scribe:
    """One per proxy."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[list[Write], asyncio.Future[None] | None]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._owed: dict[tuple[str, bytes], Write] = {}  # rows of failed writes, the newest of a key

    def put(self, table: str, rows: Iterable[Row]) -> None:
        """Rows nobody waits for; a later `write` is durable only together with them."""
        self._add([Write(table=table, key=key, value=value) for key, value in rows], None)

    async def write(self, table: str, rows: Iterable[Row] = ()) -> None:
        """Return once these rows, and all given before, are durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add([Write(table=table, key=key, value=value) for key, value in rows], done)
        await done

    async def close(self) -> None:
        while self._flusher is not None:
            await asyncio.wait([self._flusher])

    def _add(self, writes: list[Write], done: asyncio.Future[None] | None) -> None:
        if not writes and done is None:
            return
        self._waiting.append((writes, done))
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._take())
        finally:
            self._flusher = None

    def _take(self) -> list[tuple[list[Write], asyncio.Future[None] | None]]:
        count, rows = 0, 0
        for writes, _ in self._waiting:
            if count and rows + len(writes) > MAX_BATCH:
                break
            count, rows = count + 1, rows + len(writes)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _commit(self, batch: list[tuple[list[Write], asyncio.Future[None] | None]]) -> None:
        failure: BombyxError | None = None
        rows = [*self._owed.values(), *(write for writes, _ in batch for write in writes)]
        try:
            await self._store.write(rows)
            self._owed.clear()
        except BombyxError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a waiting request must hear of it, whatever it was
            failure = Unavailable(f"the store failed: {type(error).__name__}", retry_after=1.0, rule="PAY-17")
        if failure is not None:
            self._owed = {(row.table, row.key): row for row in rows}
        for _, done in batch:
            if done is not None and not done.done():
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)
