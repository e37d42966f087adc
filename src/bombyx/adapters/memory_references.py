# SPDX-License-Identifier: Apache-2.0
"""The rules of contracts/ReferenceValues.vy, in memory: who holds which image or model for good, and since when.

Not here: who the caller is (whoever calls has checked it); what a verifier does with the answer (ATT-14).
Always: a publisher writes its own list only; adding waits for the publisher's delay, revoking does not; a shorter delay
counts after the one it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bombyx.errors import PaymentError, Peer
from bombyx.ports import MAX_PUBLISHERS, ReferenceKind
from bombyx.protocol.primitives import Address, Digest

MAX_DELAY: Final = 31_536_000  # seconds; one year
MAX_URI: Final = 256  # bytes
_Delays = tuple[int, int, int]  # the delay; the one that follows it; since when (seconds)


class ReferenceLists:
    """Every publisher's list. `now` gives the chain's time in seconds."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._good_from: dict[tuple[Address, int, Digest], int] = {}
        self._delays: dict[Address, _Delays] = {}

    def propose(self, sender: Address, kind: int, reference: Digest, uri: str) -> None:
        _require(kind in tuple(ReferenceKind), "UnknownKind")
        _require(len(uri.encode()) <= MAX_URI, f"a uri has at most {MAX_URI} bytes")
        _require((sender, kind, reference) not in self._good_from, "AlreadyListed")
        self._good_from[sender, kind, reference] = self._now() + self.delay_of(sender)

    def revoke(self, sender: Address, kind: int, reference: Digest) -> None:
        _require((sender, kind, reference) in self._good_from, "NotListed")
        del self._good_from[sender, kind, reference]

    def set_delay(self, sender: Address, seconds: int) -> None:
        _require(0 <= seconds <= MAX_DELAY, "DelayTooLong")
        current, now = self.delay_of(sender), self._now()
        self._delays[sender] = (current, seconds, now if seconds >= current else now + current)

    def delay_of(self, publisher: Address) -> int:
        current, following, since = self._delays.get(publisher, (0, 0, 0))
        return following if self._now() >= since else current

    def agreed(self, publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bool:
        """Each publisher counts once. Nobody asked, or no quorum, is no."""
        if not 0 < quorum <= len(publishers) <= MAX_PUBLISHERS:
            return False
        good = (self._good_from.get((one, kind, reference)) for one in set(publishers))
        return sum(since is not None and self._now() >= since for since in good) >= quorum


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise PaymentError(f"the chain refuses: {reason}", peer=Peer.CHAIN, rule="LEDGER-1")
