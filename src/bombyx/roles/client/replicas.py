# SPDX-License-Identifier: Apache-2.0
"""In which order proxies are asked, and which replica of one (spec LEASE-5).

Replicas of one proxy share an address; our channel to it is kept by one of them at a time. Each client begins with
another one, by its own account, so that clients spread; then it stays with the one that served it last.

Always: only lines we were configured with are asked: a proxy that names another URL is not followed there.
"""

from __future__ import annotations

from collections.abc import Sequence

from bombyx.protocol.primitives import Address, sha256
from bombyx.roles.client.settings import ProxyLine


class Replicas:
    """The lines of one client."""

    def __init__(self, lines: Sequence[ProxyLine], client: Address) -> None:
        addresses = list(dict.fromkeys(line.address for line in lines))
        self._of = {
            address: sorted(
                (line for line in lines if line.address == address), key=lambda line: sha256(client + line.url.encode())
            )
            for address in addresses
        }

    def lines(self) -> tuple[ProxyLine, ...]:
        """Every line, in the order to ask them."""
        return tuple(line for lines in self._of.values() for line in lines)

    def served(self, line: ProxyLine) -> None:
        """It keeps our channel: begin with it from now on."""
        lines = self._of[line.address]
        if lines[0] is not line:
            lines.remove(line)
            lines.insert(0, line)

    def named(self, line: ProxyLine, url: str) -> ProxyLine | None:
        """The other replica of the same proxy at `url`, if it is one of ours."""
        wanted = url.rstrip("/")
        found = (other for other in self._of[line.address] if other is not line and other.url.rstrip("/") == wanted)
        return next(found, None)
