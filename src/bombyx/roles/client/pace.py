# SPDX-License-Identifier: Apache-2.0
"""How often one address may ask: a token bucket each, for as many addresses as memory is set aside for.

Not a fence against many addresses: what they ask for must be cheap to refuse by itself (spec X402-10).
"""

from __future__ import annotations

import ipaddress
from typing import Final

from bombyx.errors import Overloaded

BURST_SECONDS: Final = 2.0
MAX_PEERS: Final = 10_000


class Pace:
    """`rate` in requests per second. Time arrives as an argument, in seconds."""

    def __init__(self, rate: float, *, most: int = MAX_PEERS) -> None:
        self._rate = rate
        self._most = most
        self._full = max(1.0, rate * BURST_SECONDS)
        self._left: dict[str, tuple[float, float]] = {}

    def ask(self, peer: str, now: float) -> None:
        """Raises `Overloaded` where `peer` has used its share up."""
        name = network_of(peer)
        left, at = self._left.pop(name, (self._full, now))
        left = min(self._full, left + (now - at) * self._rate)
        if len(self._left) >= self._most:
            del self._left[next(iter(self._left))]  # who has been quiet longest, and so has a full bucket soonest
        self._left[name] = (max(0.0, left - 1.0) if left >= 1.0 else left, now)
        if left < 1.0:
            raise Overloaded("too many requests from this address", retry_after=1.0 / self._rate, rule="X402-10")


def network_of(peer: str) -> str:
    """An IPv4 address as it is; an IPv6 one's /64, which one customer has whole."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
