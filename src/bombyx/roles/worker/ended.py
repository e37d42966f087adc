# SPDX-License-Identifier: Apache-2.0
"""Requests that were answered: their ids are refused for good (spec SEAL-6).

Always: an id is remembered longer than any key it could have been sealed to lives, over restarts too.
"""

from __future__ import annotations

from typing import Final

from bombyx.errors import ReplayError
from bombyx.ports import Store, Write
from bombyx.protocol.primitives import Instant, RequestId
from bombyx.roles.worker.notary import FINISHED

KEPT_SECONDS: Final = 86_400.0  # a keyset lives 2 h


class Ended:
    """Ids that have ended, and those that run now."""

    def __init__(self) -> None:
        self._ended: dict[bytes, Instant] = {}
        self._running: set[bytes] = set()

    async def load(self, store: Store, now: Instant) -> None:
        for key, value in await store.scan(FINISHED):
            self._ended[key] = Instant(int.from_bytes(value[:8]))
        await store.write(self.prune(now))

    def __call__(self, request_id: RequestId) -> bool:
        """Whether it has ended: what `open_request` asks."""
        return bytes(request_id) in self._ended

    def begin(self, request_id: RequestId) -> None:
        """It runs now. Raises `ReplayError` when it does already: two answers to one request would be two bills."""
        if bytes(request_id) in self._running:
            raise ReplayError("this request is being answered", rule="SEAL-6")
        self._running.add(bytes(request_id))

    def leave(self, request_id: RequestId) -> None:
        """It runs no more, and may be tried again unless it has ended."""
        self._running.discard(bytes(request_id))

    def end(self, request_id: RequestId, now: Instant) -> None:
        self._ended[bytes(request_id)] = now

    def prune(self, now: Instant) -> list[Write]:
        """Forget what no key can open any more; the rows to delete."""
        old = [key for key, at in self._ended.items() if at.plus(seconds=KEPT_SECONDS) < now]
        for key in old:
            del self._ended[key]
        return [Write(table=FINISHED, key=key, value=None) for key in old]
