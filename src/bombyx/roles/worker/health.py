# SPDX-License-Identifier: Apache-2.0
"""An engine that failed, until it is back: new requests are refused at once, so that a proxy can ask another worker.

Always: one failure is looked into at once; an engine that answers the look is taken as healthy.
"""

from __future__ import annotations

import asyncio
import logging

from bombyx.errors import BombyxError, EngineUnavailable
from bombyx.ports import Clock, Engine

log = logging.getLogger("bombyx.worker")


class EngineHealth:
    """One engine's state."""

    def __init__(self, engine: Engine, clock: Clock, *, every: float) -> None:
        self._engine = engine
        self._clock = clock
        self._every = every
        self._probing: asyncio.Task[None] | None = None
        self.down = False

    def check(self) -> None:
        if self.down:
            raise EngineUnavailable("the model server is down", retry_after=self._every, rule="WRK-5")

    def failed(self) -> None:
        """A request met a crash, a hang or garbage."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._until_back())
            self._probing.add_done_callback(self._done)

    async def _until_back(self) -> None:
        while not await self._answers():
            if not self.down:
                log.warning("the engine does not answer; new requests are refused until it does")
            self.down = True
            await self._clock.sleep(self._every)
        if self.down:
            log.info("the engine answers again")
        self.down = False

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(max(1.0, self._every)):
                return bool(await self._engine.models())
        except (BombyxError, TimeoutError):
            return False

    def _done(self, task: asyncio.Task[None]) -> None:
        self._probing = None

    async def stop(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
