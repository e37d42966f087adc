# SPDX-License-Identifier: Apache-2.0
"""Holds back a stream's `data: [DONE]` until something may be said before it. Bytes in, bytes out.

Always: nothing is changed or lost: what was fed is what `feed` gave and `rest` gives, in order.
"""

from __future__ import annotations

import re
from typing import Final

_DONE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))data: ?\[DONE\]")
_LONGEST: Final = len(b"data: [DONE]")


class Lastly:
    """`rest` is the last event from its first byte on, or what of it has come."""

    def __init__(self) -> None:
        self.rest = b""
        self._fresh = True  # `rest` begins a line
        self._found = False

    def feed(self, data: bytes) -> bytes:
        """What may be passed on."""
        self.rest += data
        if self._found:
            return b""
        at = self._begin()
        given, self.rest = self.rest[:at], self.rest[at:]
        if given:
            self._fresh = given[-1:] in (b"\n", b"\r")
        return given

    def _begin(self) -> int:
        """Where the last event begins, or may begin once more has come."""
        for match in _DONE.finditer(self.rest):
            if match.start() or self._fresh:
                self._found = True
                return match.start()
        line = max(self.rest.rfind(b"\n"), self.rest.rfind(b"\r")) + 1
        tail = self.rest[line:]
        begins = len(tail) < _LONGEST and (b"data: [DONE]".startswith(tail) or b"data:[DONE]".startswith(tail))
        return line if begins and (line or self._fresh) else len(self.rest)
