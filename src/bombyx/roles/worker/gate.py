# SPDX-License-Identifier: Apache-2.0
"""How many requests may be inside: places at the engine, a short queue before it, and a refusal beyond (spec LINK-5).

An answer whose engine has finished but whose frames still leave holds no place: it costs memory, which its stream's
credit and backlog bound, and no time of the engine's.

Always: active <= capacity; whoever is refused is told when to come back; a closed gate lets nobody new in and lets
everybody inside finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from bombyx.errors import DeadlineExceeded, Overloaded
from bombyx.protocol.wire.records import LinkLoad
from bombyx.roles.worker.settings import Limits


class Gate:
    """One for the whole worker, whatever the number of links."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.capacity)
        self._active = 0
        self._waiting = 0
        self.closed = False

    @property
    def load(self) -> LinkLoad:
        return LinkLoad(active=self._active, queued=self._waiting, capacity=self._limits.capacity)

    def check(self) -> None:
        """Raise when nobody may enter now."""
        after = self._limits.refuse_retry_seconds
        if self.closed:
            raise Overloaded("this worker is draining", retry_after=after, rule="LINK-5")
        inside = self._active + self._waiting
        if inside >= self._limits.capacity + self._limits.queue:
            raise Overloaded(f"{inside} requests are here already", retry_after=after, rule="LINK-5")

    @contextmanager
    def entered(self) -> Iterator[Ticket]:
        """Counts as waiting from here on, until it has had its place."""
        self.check()
        ticket = Ticket(self)
        self._waiting += 1
        try:
            yield ticket
        finally:
            ticket.no_longer_waiting()

    @asynccontextmanager
    async def _place(self, ticket: Ticket, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the engine was free", rule="WRK-6") from None
        ticket.no_longer_waiting()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._places.release()


class Ticket:
    """One request's right to one place."""

    __slots__ = ("_gate", "_waits")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._waits = True

    def place(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """A place at the engine, first come first served; `DeadlineExceeded` when none came free in time."""
        return self._gate._place(self, seconds)

    def no_longer_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._gate._waiting -= 1
