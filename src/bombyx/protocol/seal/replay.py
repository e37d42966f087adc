# SPDX-License-Identifier: Apache-2.0
"""What was opened before, so that nothing is opened twice.

Keyed by the wrap's `enc`, per key. Entries are NOT dropped at their not_after: the enclave's clock belongs to its
host, which could turn it back and play an old envelope again. They go when their key goes, and then nothing can open
the envelope.
"""

from __future__ import annotations

from typing import Final

from bombyx.errors import Overloaded
from bombyx.protocol.primitives import Digest, sha256

MAX_ENTRIES: Final = 1 << 20  # envelopes a key; at 290 a second a key lasts its hour
_KEPT: Final = 16  # bytes of the SHA-256 of enc


class ReplayGuard:
    """Bounded memory of one worker. Full means refuse, never forget (SEAL-6)."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int = MAX_ENTRIES) -> None:
        self._limit = limit
        self._seen: dict[Digest, set[bytes]] = {}

    def first_time(self, candidate: Digest, enc: bytes) -> bool:
        """Remember `enc` under the key `candidate`; False when it was there already."""
        seen = self._seen.setdefault(candidate, set())
        entry = bytes(sha256(enc)[:_KEPT])
        if entry in seen:
            return False
        if len(seen) >= self._limit:
            raise Overloaded("the replay memory of this key is full", retry_after=60.0, rule="SEAL-6")
        seen.add(entry)
        return True

    def forget(self, candidate: Digest) -> None:
        """The key is erased: nothing sealed to it can ever be opened again."""
        self._seen.pop(candidate, None)

    def __len__(self) -> int:
        return sum(len(seen) for seen in self._seen.values())
