# SPDX-License-Identifier: Apache-2.0
"""CHALLENGE, HELLO, WELCOME: both ends of a link prove who they are (spec LINK-2).

Always: our hello answers one proxy's challenge and names our bundle; a welcome counts only when a key of that proxy
signed our own fresh nonce and that bundle, so nobody in between can speak for it.
"""

from __future__ import annotations

from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.primitives import Address, Digest, sha256, tagged_hash
from bombyx.protocol.wire.records import LinkChallenge, LinkHello, LinkWelcome
from bombyx.protocol.wire.signing import recover

LINK_VERSION: Final = 1
MIN_WINDOW: Final = 32_768  # bytes of credit a stream starts with; the largest sealed frame has 16 kB
_KEPT_HELLOS: Final = 4  # hellos that may wait for their welcome


class Greeting:
    """The handshake's state on one link; each rotation adds a hello."""

    def __init__(self, *, chain_id: int, expected: Address | None) -> None:
        self._chain_id = chain_id
        self._expected = expected
        self._hellos: list[tuple[Digest, Digest]] = []  # (our nonce, bundle digest) not yet welcomed
        self.challenge: LinkChallenge | None = None
        self.keys: frozenset[Address] = frozenset()  # that may sign for the proxy

    def on_challenge(self, payload: bytes) -> LinkChallenge:
        challenge = LinkChallenge.decode(payload)
        if challenge.v != LINK_VERSION or challenge.chain_id != self._chain_id:
            raise _fault(
                f"link version {challenge.v} on chain {challenge.chain_id}; ours are {LINK_VERSION}, {self._chain_id}"
            )
        if self._expected is not None and challenge.proxy != self._expected:
            raise _fault(f"expected proxy {self._expected}, found {challenge.proxy}")
        self.challenge = challenge
        return challenge

    def said(self, hello: LinkHello) -> None:
        """Our hello went out."""
        self._hellos = [*self._hellos[1 - _KEPT_HELLOS :], (hello.nonce, sha256(hello.bundle))]

    def on_welcome(self, payload: bytes) -> int:
        """The credit each stream starts with. Raises `MalformedMessage` for a welcome nobody we know has signed."""
        welcome = LinkWelcome.decode(payload)
        named = self.challenge.proxy if self.challenge is not None else None
        if welcome.v != LINK_VERSION or welcome.proxy != named or welcome.window < MIN_WINDOW:
            raise _fault("a WELCOME that contradicts its CHALLENGE")
        for position, (nonce, bundle) in enumerate(self._hellos):
            if recover(tagged_hash("bombyx welcome v1", nonce, bundle), welcome.signature) in self.keys:
                del self._hellos[: position + 1]
                return welcome.window
        raise _fault("a WELCOME nobody known has signed for our hello")


def _fault(message: str) -> MalformedMessage:
    return MalformedMessage(message, peer=Peer.PROXY, rule="LINK-2")
