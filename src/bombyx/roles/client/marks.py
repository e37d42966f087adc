# SPDX-License-Identifier: Apache-2.0
"""Takes the marks of the ids' hash chain out of a stream before the application reads it (spec AUD-6).

A mark is a comment between events, `: bombyx-ids COUNT HEX` and an empty line. Every other byte passes as it came.

Always: what is held back is less than one mark; a line that begins like a mark and is none is the worker's fault.
"""

from __future__ import annotations

import re
from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.audit.commitment import MARK
from bombyx.protocol.primitives import Digest

_LINE: Final = re.compile(rb": bombyx-ids ([1-9][0-9]{0,9}) ([0-9a-f]{64})\Z")
_LONGEST: Final = len(MARK) + 10 + 1 + 64  # bytes of one mark's line
MAX_MARKS: Final = 1 << 17


class MarkReader:
    """Feed the body; `marks` are (ids covered, head) in the order they came."""

    def __init__(self) -> None:
        self._held = b""
        self._fresh = True  # at the beginning of a line
        self.marks: list[tuple[int, Digest]] = []

    def feed(self, data: bytes) -> bytes:
        """What the application shall see of these bytes and those held before."""
        data = self._held + data
        self._held = b""
        out, at = [], 0
        while True:
            start = self._next(data, at)
            if start < 0:
                cut = self._partial(data, at)
                out.append(data[at:cut])
                self._held = data[cut:]
                break
            out.append(data[at:start])
            end = data.find(b"\n\n", start)
            if end < 0:
                if len(data) - start > _LONGEST + 1:
                    raise _malformed()
                self._held = data[start:]
                break
            self._mark(data[start:end])
            at = end + 2
            self._fresh = True
        shown = b"".join(out)
        if shown:
            self._fresh = shown.endswith(b"\n")
        return shown

    def rest(self) -> bytes:
        """What was held back at the end of the stream: the beginning of no mark."""
        held, self._held = self._held, b""
        return held

    def _next(self, data: bytes, at: int) -> int:
        """Where the next line that begins like a mark begins; -1: nowhere."""
        start = data.find(MARK, at)
        while start >= 0:
            if (start == at and self._begins(data, at)) or (start > at and data[start - 1] == 0x0A):
                return start
            start = data.find(MARK, start + 1)
        return -1

    def _begins(self, data: bytes, at: int) -> bool:
        return data[at - 1] == 0x0A if at else self._fresh

    def _partial(self, data: bytes, at: int) -> int:
        """From where on the end may be the beginning of a mark."""
        last = data.rfind(b"\n", at) + 1
        if last <= at:
            last = at
            if not self._begins(data, at):
                return len(data)
        tail = data[last:]
        return last if tail and MARK.startswith(tail) else len(data)

    def _mark(self, line: bytes) -> None:
        found = _LINE.match(line)
        if found is None or len(self.marks) >= MAX_MARKS:
            raise _malformed()
        self.marks.append((int(found[1]), Digest(bytes.fromhex(found[2].decode()))))


def _malformed() -> MalformedMessage:
    return MalformedMessage("a mark of the ids' chain is not readable", peer=Peer.WORKER, rule="AUD-6")
