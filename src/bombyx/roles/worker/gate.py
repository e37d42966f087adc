# SPDX-License-Identifier: Apache-2.0
"""How many requests may be inside: places at the engine, a short queue before it, and a refusal beyond.

Always: active <= capacity; whoever is refused is told when to come back; a closed gate lets nobody new in and lets
everybody inside finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bombyx.errors import DeadlineExceeded, Overloaded, Unavailable
from bombyx.protocol.wire.records import LinkLoad
from bombyx.roles.worker.settings import Limits


class Gate:
    """One for the whole worker, whatever the number of links."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.capacity)
        self._active = 0
        self._inside = 0
        self.closed = False

    @property
    def load(self) -> LinkLoad:
        return LinkLoad(active=self._active, queued=self._inside - self._active, capacity=self._limits.capacity)

    def check(self) -> None:
        """Raise when nobody may enter now."""
        if self.closed:
            raise Unavailable("this worker is draining", retry_after=self._limits.refuse_retry_seconds, rule="LINK-5")
        if self._inside >= self._limits.capacity + self._limits.queue:
            raise Overloaded(
                f"{self._inside} requests are here already",
                retry_after=self._limits.refuse_retry_seconds,
                rule="LINK-5",
            )

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Counts as queued, from here on."""
        self.check()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def place(self, seconds: float) -> AsyncIterator[None]:
        """A place at the engine, first come first served; `DeadlineExceeded` when none came free in time."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the engine was free") from None
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._places.release()
