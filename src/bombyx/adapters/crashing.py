# SPDX-License-Identifier: Apache-2.0
"""A store that kills its own process at a chosen write: for tests that a crash at any write point loses nothing.

Never in use but where $BOMBYX_CRASH_AT names a file. Once that file is there and says `before:TABLE:N` or
`after:TABLE:N`, the process dies by SIGKILL just before, or just after, the N-th batch from then on that holds a row of
that table is durable.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from bombyx.ports import Store, Write


class CrashingStore:
    """`ports.Store` over another one."""

    def __init__(self, store: Store, orders: Path) -> None:
        self._store = store
        self._orders = orders
        self._order = ""
        self._left = 0

    async def write(self, rows: Sequence[Write]) -> None:
        when, table = self._ordered()
        hit = bool(table) and any(row.table == table for row in rows)
        self._left -= hit
        due = hit and self._left == 0
        if due and when == "before":
            _die()
        await self._store.write(rows)
        if due:
            _die()

    def _ordered(self) -> tuple[str, str]:
        """When, and at which table; a new order starts to count anew."""
        try:
            order = self._orders.read_text(encoding="utf-8")
        except FileNotFoundError:
            return "", ""
        when, table, number = order.split(":")
        if order != self._order:
            self._order, self._left = order, int(number)
        return when, table

    async def read(self, table: str, key: bytes) -> bytes | None:
        return await self._store.read(table, key)

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]:
        return await self._store.scan(table, prefix=prefix, limit=limit)

    async def close(self) -> None:
        await self._store.close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
