# SPDX-License-Identifier: Apache-2.0
"""Keeping one link to one proxy: dial, run, wait a little, dial again.

Always: waits grow from `reconnect_first` to `reconnect_most`, each drawn at random below its bound, so that a thousand
workers do not come back to a restarted proxy in the same second; a link that was welcomed starts the count anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from bombyx.errors import BombyxError
from bombyx.ports import Clock, Dialer, Entropy, Link
from bombyx.roles.worker.link import LinkSession
from bombyx.roles.worker.settings import ProxyPeer, Timings

log = logging.getLogger("bombyx.worker")

OpenSession = Callable[[Link, ProxyPeer], LinkSession]


class Dialling:
    """One proxy's place in the worker. `session` is the link of now, if there is one."""

    def __init__(
        self, peer: ProxyPeer, dialer: Dialer, open_session: OpenSession, clock: Clock, entropy: Entropy, times: Timings
    ) -> None:
        self.peer = peer
        self.session: LinkSession | None = None
        self._dialer = dialer
        self._open = open_session
        self._clock = clock
        self._entropy = entropy
        self._times = times
        self._stopping = False

    def stop(self) -> None:
        """No more dialling. The link of now is left to end by itself."""
        self._stopping = True

    async def run(self) -> None:
        failures = 0
        while not self._stopping:
            failures = 0 if await self._once() else failures + 1
            if not self._stopping:
                await self._clock.sleep(self._pause(failures))

    async def _once(self) -> bool:
        """One link from dial to end. True when the proxy had welcomed us."""
        session: LinkSession | None = None
        try:
            link = await self._dialer.dial(self.peer.url)
            session = self.session = self._open(link, self.peer)
            await session.run()
            log.info("link to %s ended", self.peer.url)
        except BombyxError as error:
            log.warning("link to %s: %s", self.peer.url, error)
        finally:
            self.session = None
        return session is not None and session.welcomed.is_set()

    def _pause(self, failures: int) -> float:
        most: float = min(self._times.reconnect_first * 2.0 ** min(failures, 16), self._times.reconnect_most)
        chance = int.from_bytes(self._entropy.bytes(4)) / 2**32
        return most * (0.5 + chance / 2)
