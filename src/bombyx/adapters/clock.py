# SPDX-License-Identifier: Apache-2.0
"""The machine's two clocks, for the `Clock` port. In an enclave both belong to the host: see docs/threat-model."""

from __future__ import annotations

import asyncio
import time

from bombyx.protocol.primitives import Instant

_new = int.__new__  # in range by its nature, and asked for several times a request


class SystemClock:
    """`now` may jump; `monotonic` never turns back. `error`: seconds it is wrong by, for tests of clocks that are."""

    _error = 0  # ms

    def __init__(self, *, error: float = 0.0) -> None:
        self._error = int(error * 1_000)

    def now(self) -> Instant:
        return _new(Instant, time.time_ns() // 1_000_000 + self._error)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
