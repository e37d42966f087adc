# SPDX-License-Identifier: Apache-2.0
"""The shape of an answer: how big its frames are and when they go, so that neither tells what is said.

The worker owns the timer. It calls `ready()` after every `put` and `end`, and `tick()` every TICK seconds; both give
the frames to seal and send now, as plaintext. What it means, per shape (docs/spec, SEAL-8):

    constant   streamed: nothing between ticks, exactly one full frame each tick; idle frames hold SSE comments; after
    the end,
               zero padding until the number of frames is a Padme size. Not streamed: everything at the end, padded
               likewise.
    bucket     full frames at once, the rest at the next tick filled up with comments; nothing while idle.
    off        whatever is there, at once.

Always: a constant stream's sizes, counts and times depend on its total length alone, and on that only to 12 %; filler
stands between SSE events only, never inside one; nothing is sent early.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.seal.bhttp import encode_content, encode_end, encode_response_head
from bombyx.protocol.seal.chunked import CHUNK
from bombyx.protocol.seal.fields import Fields
from bombyx.protocol.seal.hpke import TAG_SIZE
from bombyx.protocol.seal.padding import padme
from bombyx.protocol.wire.request import MAX_FRAME, MIN_FRAME, Shape
from bombyx.protocol.wire.varint import write_varint

TICK: Final = 0.040  # seconds
_CHUNK_HEADER: Final = 2  # bytes of a content chunk's length: fixed, so that any room can be filled exactly


@dataclass(frozen=True, slots=True)
class Frame:
    """Plaintext of one frame. The final one goes through `ResponseSealer.seal_final`."""

    plaintext: bytes = field(repr=False)
    final: bool = False


def filler(size: int) -> bytes:
    """`size` bytes that every SSE parser drops: a comment line, or a lone blank line."""
    return b"" if size == 0 else b"\n" if size == 1 else b":" + b" " * (size - 2) + b"\n"


class Shaper:
    """Turns one answer into frames. `begin`, then `put` (whole SSE events, or pieces of a body), then `end`."""

    __slots__ = (
        "_capacity",
        "_content",
        "_ended",
        "_raw",
        "_sent",
        "_shape",
        "_streamed",
        "_total",
        "_whole",
        "finished",
    )

    def __init__(self, shape: Shape, frame_size: int) -> None:
        if not MIN_FRAME <= frame_size <= MAX_FRAME:
            raise MalformedMessage(
                f"frames of {frame_size} bytes, allowed are {MIN_FRAME} .. {MAX_FRAME}", peer=Peer.CLIENT, rule="SEAL-8"
            )
        self._shape = shape
        self._capacity = frame_size - TAG_SIZE
        self._raw = bytearray()  # BHTTP bytes ready to go
        self._content = bytearray()  # the application's bytes, not yet in a content chunk
        self._whole = 0  # bytes at the front of _content that are whole events; the piece behind them waits
        self._streamed = False
        self._ended = False
        self._sent = 0
        self._total = 0  # frames in all, known once ended
        self.finished = False

    @property
    def backlog(self) -> int:
        """Bytes waiting: what back-pressure on the engine goes by."""
        return len(self._raw) + len(self._content)

    @property
    def frames(self) -> int:
        """Frames given out so far."""
        return self._sent

    def begin(self, status: int, headers: Fields, *, streamed: bool) -> None:
        """The head. `streamed` means `text/event-stream`: only there filler is legal."""
        if self._raw or self._sent:
            raise ValueError("an answer has one head")
        self._streamed = streamed
        self._raw += encode_response_head(status, headers)

    def put(self, data: bytes) -> None:
        if self._ended:
            raise ValueError("content after the end")
        # Only what is new is searched, and two bytes before it: an end of an event may arrive in pieces.
        start = max(self._whole, len(self._content) - 2)
        self._content += data
        for boundary in (b"\n\n", b"\n\r\n"):
            found = self._content.rfind(boundary, start)
            self._whole = max(self._whole, found + len(boundary)) if found >= 0 else self._whole

    def end(self, trailers: Fields = ()) -> None:
        """No more content. The closing block goes into the trailers."""
        if self._ended:
            raise ValueError("an answer ends once")
        self._ended = True
        self._raw += encode_content(bytes(self._content)) + encode_end(trailers)
        self._content.clear()
        self._whole = 0
        self._total = self._sent + max(1, -(-len(self._raw) // self._capacity))
        if self._shape is Shape.CONSTANT or not self._streamed:
            self._total = padme(self._total)

    def ready(self) -> tuple[Frame, ...]:
        """Frames that need not wait for a tick."""
        if self._shape is Shape.OFF:
            return self._all_at_once()
        if not self._streamed:
            return self._rest() if self._ended else ()
        if self._shape is Shape.CONSTANT:
            return ()
        return self._rest() if self._ended else self._full_frames()

    def tick(self) -> tuple[Frame, ...]:
        """Frames this tick brings."""
        if self.finished or not self._streamed or self._shape is Shape.OFF:
            return ()
        if self._ended:
            return (self._padded(),) if self._shape is Shape.CONSTANT else self._rest()
        if self._shape is Shape.BUCKET and not self._raw and not self._whole:
            return ()
        return (self._filled(),)

    # --- one frame ---

    def _filled(self) -> Frame:
        """A full frame: waiting bytes, then events, then filler between events."""
        room = self._capacity - len(self._raw)
        if room > 0:
            size = max(1, room - _CHUNK_HEADER)
            events = self._content[: min(size, self._whole)]
            del self._content[: len(events)]
            self._whole -= len(events)
            self._raw += write_varint(size, _CHUNK_HEADER) + events + filler(size - len(events))
        return self._cut()

    def _padded(self) -> Frame:
        """After the end: what is left, then zeros; final when the count is reached."""
        self._raw += bytes(max(0, self._capacity - len(self._raw)))
        return self._cut()

    def _cut(self) -> Frame:
        plaintext = bytes(self._raw[: self._capacity])
        del self._raw[: self._capacity]
        self._sent += 1
        self.finished = self._ended and self._sent == self._total
        return Frame(plaintext, self.finished)

    # --- several ---

    def _rest(self) -> tuple[Frame, ...]:
        frames: list[Frame] = []
        while not self.finished:
            frames.append(self._padded())
        return tuple(frames)

    def _full_frames(self) -> tuple[Frame, ...]:
        frames: list[Frame] = []
        while len(self._raw) + _CHUNK_HEADER + self._whole >= self._capacity:
            frames.append(self._filled())
        return tuple(frames)

    def _all_at_once(self) -> tuple[Frame, ...]:
        if self.finished:
            return ()
        self._raw += encode_content(bytes(self._content))
        self._content.clear()
        self._whole = 0
        pieces = [bytes(self._raw[at : at + CHUNK]) for at in range(0, len(self._raw), CHUNK)]
        self._raw.clear()
        self._sent += len(pieces)
        self.finished = self._ended
        return tuple(Frame(piece, self._ended and piece is pieces[-1]) for piece in pieces)
