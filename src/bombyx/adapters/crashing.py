# SPDX-License-Identifier: Apache-2.0
"""A store that kills its own process at a chosen write: for tests that a crash at any write point loses nothing.

Never in use but where $BOMBYX_CRASH_AT says `before:TABLE:N` or `after:TABLE:N`: the process then dies by SIGKILL just
before, or just after, the N-th batch that holds a row of that table (1 is the first) is durable.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from bombyx.errors import ConfigError
from bombyx.ports import Store, Write


class CrashingStore:
    """`ports.Store` over another one."""

    def __init__(self, store: Store, point: str) -> None:
        when, _, rest = point.partition(":")
        table, _, number = rest.partition(":")
        if when not in ("before", "after") or not table or not number.isdigit():
            raise ConfigError(f"a crash point is before:TABLE:N or after:TABLE:N, not {point!r}")
        self._store = store
        self._when = when
        self._table = table
        self._left = int(number)

    async def write(self, rows: Sequence[Write]) -> None:
        if any(row.table == self._table for row in rows):
            self._left -= 1
        if self._left == 0 and self._when == "before":
            _die()
        await self._store.write(rows)
        if self._left == 0:
            _die()

    async def read(self, table: str, key: bytes) -> bytes | None:
        return await self._store.read(table, key)

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]:
        return await self._store.scan(table, prefix=prefix, limit=limit)

    async def close(self) -> None:
        await self._store.close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
