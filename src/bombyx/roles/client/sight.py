# SPDX-License-Identifier: Apache-2.0
"""Strangers' channels as the chain shows them: seen once, remembered for a while, never by too many look-ups at once.

Always: memory is bounded; more look-ups than the limit are refused, not queued, as strangers cause them (spec X402-10).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bombyx.errors import Overloaded
from bombyx.ports import ChannelView, Clock, Ledger
from bombyx.protocol.primitives import Digest

MAX_VIEWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Seen:
    view: ChannelView
    at: float


class Sight:
    """`seconds`: how old a view may be; `at_once`: look-ups, and transactions for others, at one time."""

    def __init__(self, ledger: Ledger, clock: Clock, *, seconds: float, at_once: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_once)
        self._seen: dict[Digest, _Seen] = {}

    async def view(self, channel: Digest, *, at_least: int = 0) -> ChannelView | None:
        """Looked up again when what we saw is old, or does not back a ceiling of `at_least`."""
        seen = self._seen.get(channel)
        if seen is not None and self._fresh(seen) and seen.view.spendable >= at_least:
            return seen.view
        async with self.turn():
            return await self.look(channel)

    async def look(self, channel: Digest) -> ChannelView | None:
        """What the chain shows now."""
        view = await self._ledger.channel(channel)
        if view is not None:
            if len(self._seen) >= MAX_VIEWS:
                self._seen.clear()
            self._seen[channel] = _Seen(view, self._clock.monotonic())
        return view

    def last(self, channel: Digest) -> ChannelView | None:
        """What was seen last, however old."""
        seen = self._seen.get(channel)
        return seen.view if seen is not None else None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One of the few things that may be asked of the chain for strangers at a time."""
        if self._turns.locked():
            raise Overloaded("too many channels are being looked up", retry_after=1.0, rule="X402-10")
        async with self._turns:
            yield

    def _fresh(self, seen: _Seen) -> bool:
        return self._clock.monotonic() - seen.at < self._seconds
