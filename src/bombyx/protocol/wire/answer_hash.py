# SPDX-License-Identifier: Apache-2.0
"""The hash of an answer's content: of its bytes, or, of a stream, of its events without filler (ENC-7).

A stream's shape adds comment lines and empty lines between events (SEAL-8); to an application they are nothing
(WHATWG HTML, server-sent events). So lines that begin with a colon are left out, and of empty lines that follow one
another, or stand at the beginning, one or none counts. Everything else counts byte by byte.
"""

from __future__ import annotations

import hashlib

from bombyx.protocol.primitives import Digest, sha256


class EventHash:
    """Of a stream, as it comes: any cut into pieces gives the same hash."""

    __slots__ = ("_blank", "_hash", "_rest")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._rest = b""
        self._blank = True  # the last line that counted was empty, or there was none

    def put(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        blank = line in (b"", b"\r")
        if line.startswith(b":") or (blank and self._blank):
            return
        self._blank = blank
        self._hash.update(b"\n" if blank else line + b"\n")

    def digest(self) -> Digest:
        """A last line without an end counts as it stands."""
        whole = self._hash.copy()
        whole.update(b"" if self._rest.startswith(b":") else self._rest)
        return Digest(whole.digest())


def answer_hash(content: bytes, content_type: str) -> Digest:
    """What an enclave signs of an answer with this content type, computed from what was received."""
    if not content_type.lower().startswith("text/event-stream"):
        return sha256(content)
    events = EventHash()
    events.put(content)
    return events.digest()
