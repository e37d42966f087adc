# SPDX-License-Identifier: Apache-2.0
"""Server-sent events from a model server, whole and bounded. Bytes in, whole events out, exactly as they came."""

from __future__ import annotations

import re
from typing import Final

from bombyx.errors import EngineUnavailable

MAX_EVENT: Final = 1 << 20  # bytes of one event; a delta with 20 logprobs has about 2 kB

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")


class SseSplitter:
    """Cuts a byte stream at blank lines. `feed` gives whole events; `finish` refuses a torn last one."""

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max_event = max_event
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Events completed by `data`, each with the blank line that ends it."""
        searched = max(0, len(self._buffer) - 2)
        self._buffer += data
        events, start = [], 0
        while found := _BLANK_LINE.search(self._buffer, max(start, searched)):
            events.append(bytes(self._buffer[start : found.end()]))
            start = found.end()
        del self._buffer[:start]
        if len(self._buffer) > self._max_event or any(len(event) > self._max_event for event in events):
            raise EngineUnavailable(f"the engine sent an event of more than {self._max_event} bytes")
        return events

    def finish(self) -> None:
        """The stream is over: nothing but line ends may be left."""
        if self._buffer.strip():
            raise EngineUnavailable("the engine's stream ended inside an event")


def event_data(event: bytes) -> bytes | None:
    """What the `data:` lines of an event say; None for a comment."""
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def data_event(data: bytes) -> bytes:
    """One event with one line of data."""
    return b"data: " + data + b"\n\n"
