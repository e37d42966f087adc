# SPDX-License-Identifier: Apache-2.0
"""Audit packages a client keeps, where it was told to: they hold prompts, so by default there are none (spec AUD-9).

Always: never more than `most`, none older than `days`; what is forgotten is deleted.
"""

from __future__ import annotations

from typing import Final

from bombyx.ports import Store, Write
from bombyx.protocol.primitives import Instant, RequestId
from bombyx.protocol.wire.audit import AuditPackage

TABLE: Final = "client_audit"  # request id -> AuditPackage
INDEX: Final = "client_audit_time"  # when || request id
EVERY: Final = 32  # packages kept between two looks at what is too old


class AuditShelf:
    """Over a store."""

    def __init__(self, store: Store, *, keep: bool, days: int, most: int) -> None:
        self._store = store
        self._keep = keep
        self._days = days
        self._most = most
        self._since = EVERY

    def rows(self, request_id: RequestId, package: AuditPackage, now: Instant) -> tuple[Write, ...]:
        """What to write with the answer's receipt."""
        if not self._keep:
            return ()
        self._since += 1
        return (
            Write(table=TABLE, key=request_id, value=package.encode()),
            Write(table=INDEX, key=int(now).to_bytes(8) + request_id, value=b""),
        )

    async def get(self, request_id: RequestId) -> AuditPackage | None:
        data = await self._store.read(TABLE, request_id)
        return None if data is None else AuditPackage.decode(data)

    async def tidy(self, now: Instant, *, at_once: bool = False) -> int:
        """Forget what is too old or too much, now and then; how many."""
        if not at_once and self._since < EVERY:
            return 0
        self._since = 0
        oldest = now.plus(seconds=-86_400 * self._days)
        kept = [key for key, _ in await self._store.scan(INDEX)]
        too_many = max(0, len(kept) - self._most)
        gone = [key for place, key in enumerate(kept) if place < too_many or int.from_bytes(key[:8]) < oldest]
        rows = [Write(table=INDEX, key=key, value=None) for key in gone]
        if gone:
            await self._store.write([*rows, *(Write(table=TABLE, key=key[8:], value=None) for key in gone)])
        return len(gone)
