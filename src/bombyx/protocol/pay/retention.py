# SPDX-License-Identifier: Apache-2.0
"""How long receipts are kept by those who do not need them for good: by count and by age (spec RCT-11).

Deterministic: no I/O, no clock. An index beside the receipts says when each first came; whoever holds a `Retention`
writes its rows with theirs.

Always: the newest are kept; what is younger than `LEAST_AGE` is kept whatever the count, as its request may still run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from bombyx.protocol.primitives import Instant

LEAST_AGE: Final = 3_600.0  # seconds; a request takes at most 300
BATCH: Final = 4_096  # receipts forgotten at one look
_TIME: Final = 8  # bytes of an index key before the receipt's own key


class Retention:
    """Which keys of a table are still wanted."""

    __slots__ = ("_at", "_most", "_seconds")

    def __init__(self, *, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = max(seconds, LEAST_AGE)
        self._at: OrderedDict[bytes, Instant] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._at)

    def load(self, index: Iterable[bytes]) -> None:
        """The index's keys, in their order."""
        for key in index:
            self._at[key[_TIME:]] = Instant(int.from_bytes(key[:_TIME]))

    def note(self, key: bytes, now: Instant) -> bytes | None:
        """A receipt came under `key`: the index key to write with it; None when there is one already."""
        if key in self._at:
            return None
        self._at[key] = now
        return _index(key, now)

    def prune(self, now: Instant) -> list[tuple[bytes, bytes]]:
        """(index key, receipt's key) of what may go now, the oldest first."""
        gone: list[tuple[bytes, bytes]] = []
        while self._at and len(gone) < BATCH:
            key, at = next(iter(self._at.items()))
            age = (now - at) / 1000
            if age < LEAST_AGE or (age < self._seconds and len(self._at) <= self._most):
                break
            del self._at[key]
            gone.append((_index(key, at), key))
        return gone


def _index(key: bytes, at: Instant) -> bytes:
    return int(at).to_bytes(_TIME) + key
