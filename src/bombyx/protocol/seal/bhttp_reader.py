# SPDX-License-Identifier: Apache-2.0
"""A binary HTTP response read while it arrives: feed plaintext chunks, get Head, Body pieces, Trailers.

Both forms of RFC 9292 are read; workers write the indeterminate-length one. Head comes once, Body is never empty,
Trailers comes once, last, even when there are none; zero padding after it is dropped.

Always: memory is bounded by the largest field section; `finish` raises `StreamTruncated` for a response that did not
end. (docs/spec, SEAL-12.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from bombyx.errors import Peer, StreamTruncated
from bombyx.protocol.seal.bhttp import (
    INDETERMINATE_RESPONSE,
    KNOWN_RESPONSE,
    MAX_FIELD_SECTION,
    MAX_INFORMATIONAL,
    check_lines,
    check_status,
    malformed,
    parse_fields,
)
from bombyx.protocol.seal.fields import Fields
from bombyx.protocol.wire.varint import MAX_VARINT, read_varint

_NO_CHUNK_YET: Final = -1
MAX_HEAD: Final = MAX_FIELD_SECTION + 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    status: int
    headers: Fields


@dataclass(frozen=True, slots=True)
class Body:
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailers:
    fields: Fields


BhttpEvent = Head | Body | Trailers


class _At(Enum):
    KIND = "kind"
    STATUS = "status"
    HEADERS = "headers"
    CONTENT = "content"
    TRAILERS = "trailers"
    PADDING = "padding"


class BhttpResponseReader:
    """Incremental reader of one response. Where it stands is one of six places."""

    __slots__ = ("_at", "_buffer", "_early", "_indeterminate", "_left", "_lines", "_section", "_status")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = _At.KIND
        self._indeterminate = True
        self._status = 0
        self._early = 0
        self._left = 0  # content bytes of the current chunk still to come
        self._lines: list[tuple[bytes, bytes]] = []
        self._section = 0  # bytes of field lines read so far in this section

    @property
    def finished(self) -> bool:
        """Whether the response's end has been read."""
        return self._at is _At.PADDING

    def feed(self, data: bytes) -> Iterator[BhttpEvent]:
        """What `data` completes."""
        self._buffer += data
        while True:
            before = (self._at, len(self._buffer))
            event = self._step()
            if event is not None:
                yield event
            elif before == (self._at, len(self._buffer)):
                break
        if len(self._buffer) > MAX_HEAD:
            raise malformed(f"a field section of more than {MAX_FIELD_SECTION} bytes")

    def finish(self) -> tuple[BhttpEvent, ...]:
        """The stream has ended: events the sender left implicit, since empty last sections need not be written.

        Raises `StreamTruncated` when the stream ended anywhere else.
        """
        if self.finished:
            return ()
        between = not self._buffer and not self._lines
        head = Head(status=self._status, headers=())
        missing: dict[_At, tuple[BhttpEvent, ...]] = {
            _At.HEADERS: (head, Trailers(fields=())) if self._status >= 200 else (),
            _At.CONTENT: (Trailers(fields=()),) if self._left == _NO_CHUNK_YET else (),
            _At.TRAILERS: (Trailers(fields=()),),
        }
        events = missing.get(self._at, ())
        if not between or not events:
            raise StreamTruncated(f"the answer stopped in its {self._at.value}", peer=Peer.WORKER, rule="SEAL-12")
        self._at = _At.PADDING
        return events

    def _step(self) -> BhttpEvent | None:
        match self._at:
            case _At.KIND:
                self._read_kind()
            case _At.STATUS:
                self._read_status()
            case _At.HEADERS:
                return self._read_headers()
            case _At.CONTENT:
                return self._read_content()
            case _At.TRAILERS:
                return self._read_trailers()
            case _At.PADDING:
                if self._buffer.count(0) != len(self._buffer):
                    raise malformed("bytes other than zero after its end")
                self._buffer.clear()
        return None

    def _number(self) -> int | None:
        read = read_varint(self._buffer)
        if read is None:
            return None
        value, end = read
        del self._buffer[:end]
        return value

    def _read_kind(self) -> None:
        kind = self._number()
        if kind is None:
            return
        if kind not in (KNOWN_RESPONSE, INDETERMINATE_RESPONSE):
            raise malformed("this is not a response")
        self._indeterminate = kind == INDETERMINATE_RESPONSE
        self._at = _At.STATUS

    def _read_status(self) -> None:
        status = self._number()
        if status is not None:
            self._status = check_status(status)
            self._at = _At.HEADERS

    def _read_headers(self) -> Head | None:
        fields = self._fields()
        if fields is None:
            return None
        if self._status < 200:
            self._early += 1
            if self._early > MAX_INFORMATIONAL:
                raise malformed(f"more than {MAX_INFORMATIONAL} informational responses")
            self._at = _At.STATUS
            return None
        self._at = _At.CONTENT
        self._left = _NO_CHUNK_YET
        return Head(status=self._status, headers=fields)

    def _read_content(self) -> Body | None:
        if self._left <= 0 and not self._begin_chunk():
            return None
        if not self._buffer or self._at is not _At.CONTENT:
            return None
        piece = bytes(self._buffer[: self._left])
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        if not self._indeterminate and self._left == 0:
            self._at = _At.TRAILERS
        return Body(piece)

    def _begin_chunk(self) -> bool:
        size = self._number()
        if size is None:
            return False
        self._left = size
        if size == 0:
            self._at = _At.TRAILERS
        return size > 0

    def _read_trailers(self) -> Trailers | None:
        fields = self._fields()
        if fields is None:
            return None
        self._at = _At.PADDING
        return Trailers(fields=fields)

    def _fields(self) -> Fields | None:
        return self._open_section() if self._indeterminate else self._sized_section()

    def _sized_section(self) -> Fields | None:
        section = self._peek_block(0)
        if section is None:
            return None
        block, end = section
        del self._buffer[:end]
        return parse_fields(block)

    def _open_section(self) -> Fields | None:
        while (name := self._peek_block(0)) is not None:
            if not name[0]:
                return self._close_section(name[1])
            value = self._peek_block(name[1])
            if value is None:
                return None
            self._lines.append((name[0], value[0]))
            check_lines(self._lines)
            self._section += value[1]
            if self._section > MAX_FIELD_SECTION:
                raise malformed(f"a field section of more than {MAX_FIELD_SECTION} bytes")
            del self._buffer[: value[1]]
        return None

    def _close_section(self, end: int) -> Fields:
        del self._buffer[:end]
        fields = tuple(self._lines)
        self._lines, self._section = [], 0
        return fields

    def _peek_block(self, position: int) -> tuple[bytes, int] | None:
        read = read_varint(self._buffer, position)
        if read is None:
            return None
        size, start = read
        if size > MAX_FIELD_SECTION:
            raise malformed(f"a field of {size} bytes" if size <= MAX_VARINT else "a field too long")
        if len(self._buffer) < start + size:
            return None
        return bytes(self._buffer[start : start + size]), start + size
