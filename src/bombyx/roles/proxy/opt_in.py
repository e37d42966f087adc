# SPDX-License-Identifier: Apache-2.0
"""Carries answers that clients hand to validators, sealed, and a validator's evidence back (spec AUD-57).

The smallest possible route: an address from the registry, bytes there, a status back. The proxy cannot read a package;
the validator does not learn who sent it: no header, no address of the client's goes along.

Always: only endpoints that the registry names are asked; sizes and how many run at once are bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from bombyx.errors import BadRequest, MalformedMessage, Overloaded, Peer, Unavailable
from bombyx.ports import Clock, Ledger, OperatorRole
from bombyx.protocol.primitives import Address

PATH: Final = "/v1/opt-in/"
MAX_PACKAGE: Final = (1 << 20) + 4_096  # bytes; what validators take, and the seal around it
MAX_EVIDENCE: Final = 1 << 20
AT_ONCE: Final = 8
FRESH_SECONDS: Final = 60.0  # how old the registry's list of validators may be

# method, URL, body, most bytes of the answer -> status, answer. Raises `Unavailable`, `MalformedMessage`.
Forward = Callable[[str, str, bytes, int], Awaitable[tuple[int, bytes]]]


class OptInRelay:
    """Between clients of this proxy and registered validators."""

    def __init__(self, ledger: Ledger, forward: Forward, clock: Clock) -> None:
        self._ledger = ledger
        self._forward = forward
        self._clock = clock
        self._open = 0
        self._pages: dict[Address, str] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def evidence(self, name: str) -> bytes:
        """The Evidence bundle of the validator's enclave; its client appraises it."""
        status, data = await self._asked("GET", f"{await self._page(name)}/v1/enclave", b"", MAX_EVIDENCE)
        if status != 200:
            raise Unavailable(f"the validator answers {status}", rule="AUD-57")
        return data

    async def take(self, name: str, sealed: bytes) -> int:
        """Pass a package on; the validator's status."""
        if len(sealed) > MAX_PACKAGE:
            raise MalformedMessage("a package above the limit", peer=Peer.CLIENT, rule="AUD-57")
        status, _ = await self._asked("POST", f"{await self._page(name)}/v1/opt-in", sealed, 4_096)
        return status if 200 <= status < 600 else 502

    async def _asked(self, method: str, url: str, body: bytes, most: int) -> tuple[int, bytes]:
        if self._open >= AT_ONCE:
            raise Overloaded("too many packages are on their way", retry_after=5.0, rule="AUD-57")
        self._open += 1
        try:
            return await self._forward(method, url, body, most)
        finally:
            self._open -= 1

    async def _page(self, name: str) -> str:
        """Where the registry says that this validator is."""
        try:
            address = Address.parse(name)
        except ValueError:
            raise BadRequest("no address of 20 bytes", peer=Peer.CLIENT, rule="AUD-57") from None
        async with self._lock:
            now = self._clock.monotonic()
            if now - self._read_at > FRESH_SECONDS:
                lines = await self._ledger.operators(OperatorRole.VALIDATOR)
                self._pages = {line.address: line.endpoint.rstrip("/") for line in lines}
                self._read_at = now
        page = self._pages.get(address)
        if not page:
            raise BadRequest(
                "no such validator is registered", status=404, peer=Peer.CLIENT, rule="AUD-57", code="not_found"
            )
        return page
