# SPDX-License-Identifier: Apache-2.0
"""From tokens' bytes to the text an application sees: whole characters, and nothing of a stop string.

Always: what was shown is the text of the ids as `TokenTable.relation` defines it (RCT-6): equal, cut at a stop string,
with a started character dropped at its end, or with U+FFFD where the ids are not UTF-8.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextMaker:
    """One choice's text, as it grows."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = bytearray()
        self._held = ""  # the end of the text that may be the beginning of a stop string

    def add(self, piece: bytes) -> tuple[str, bool]:
        """(text that can be shown now, whether a stop string was completed)."""
        self._raw += piece
        self._held += self._decoder.decode(piece)
        found = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = self._may_begin_a_stop()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def end(self) -> str:
        """What was held back, once nothing follows. A started character is dropped, unless other bytes were none."""
        shown, self._held = self._held, ""
        return shown + (self._decoder.decode(b"", True) if self._replaced() else "")

    def _replaced(self) -> bool:
        try:
            self._raw.decode()
        except UnicodeDecodeError as error:
            return error.reason != "unexpected end of data"
        return False

    def _may_begin_a_stop(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        longest = min(len(self._held), max((len(word) - 1 for word in self._stop), default=0))
        for size in range(longest, 0, -1):
            tail = self._held[-size:]
            if any(word.startswith(tail) for word in self._stop):
                return size
        return 0
