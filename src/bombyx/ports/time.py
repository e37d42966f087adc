# SPDX-License-Identifier: Apache-2.0
"""Clocks, entropy, and keys that are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bombyx.protocol.primitives import Address, Digest, Instant


class Clock(Protocol):
    """Two clocks: `now` for dates others see, `monotonic` (seconds) for everything that must not be turned back."""

    def now(self) -> Instant: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class Entropy(Protocol):
    """Must be a cryptographically secure source; a test may pass a seeded one."""

    def bytes(self, size: int) -> bytes: ...


class Signer(Protocol):
    """An account whose key is elsewhere: another process, a device.

    - `data` is EIP-712 typed data as `eth_signTypedData_v4` takes it; `digest` is what it comes to. Must give 65 bytes
      by `address` over exactly that digest, or raise: `Unavailable` when it refuses or does not answer.
    """

    @property
    def address(self) -> Address: ...

    async def sign_typed(self, data: Mapping[str, Any], digest: Digest) -> bytes: ...
