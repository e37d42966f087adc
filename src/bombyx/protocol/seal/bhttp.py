# SPDX-License-Identifier: Apache-2.0
"""Binary HTTP messages (RFC 9292): whole requests and responses, known- and indeterminate-length, both directions.

Requests are written known-length; responses are read here whole and, as they arrive, by
`bhttp_reader.BhttpResponseReader`. Zero padding after the end of a message is accepted and dropped (RFC 9292 section
3.8); anything else there is refused.

Always: names are lower case, sizes bounded, a cut message is `MalformedMessage` (the RFC lets empty trailing sections
be left out, and so do we at exactly those places). (docs/spec, SEAL-12.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import MalformedMessage
from bombyx.protocol.seal.fields import Fields
from bombyx.protocol.wire.varint import read_varint, write_varint

KNOWN_REQUEST: Final = 0
KNOWN_RESPONSE: Final = 1
INDETERMINATE_REQUEST: Final = 2
INDETERMINATE_RESPONSE: Final = 3

MAX_FIELDS: Final = 256
MAX_FIELD_SECTION: Final = 1 << 20  # bytes; a closing block of 100 000 output ids has 700 kB
MAX_CONTROL: Final = 8192  # bytes of method, scheme, authority or path
MAX_CONTENT: Final = 64 << 20  # bytes
MAX_INFORMATIONAL: Final = 16
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request. `repr` shows no content."""

    method: bytes
    path: bytes
    scheme: bytes = b"https"
    authority: bytes = b""
    headers: Fields = field(default=(), repr=False)  # client nonce and cache salt are among them
    content: bytes = field(default=b"", repr=False)
    trailers: Fields = field(default=(), repr=False)

    def with_headers(self, more: Fields) -> Request:
        return Request(
            method=self.method,
            path=self.path,
            scheme=self.scheme,
            authority=self.authority,
            headers=self.headers + more,
            content=self.content,
            trailers=self.trailers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP response; `informational` are the 1xx that came before it."""

    status: int
    headers: Fields = ()
    content: bytes = field(default=b"", repr=False)
    trailers: Fields = field(default=(), repr=False)
    informational: tuple[tuple[int, Fields], ...] = ()


def encode_request(request: Request, *, indeterminate: bool = False) -> bytes:
    control = b"".join(_block(part) for part in (request.method, request.scheme, request.authority, request.path))
    kind = INDETERMINATE_REQUEST if indeterminate else KNOWN_REQUEST
    return write_varint(kind) + control + _encode_message(request, indeterminate)


def encode_response(response: Response, *, indeterminate: bool = False) -> bytes:
    parts = [write_varint(INDETERMINATE_RESPONSE if indeterminate else KNOWN_RESPONSE)]
    for status, fields in response.informational:
        parts += (write_varint(status), encode_fields(fields, indeterminate=indeterminate))
    return b"".join((*parts, write_varint(response.status), _encode_message(response, indeterminate)))


def encode_response_head(status: int, headers: Fields) -> bytes:
    """The front of an indeterminate-length response; `encode_content` and `encode_end` follow."""
    return write_varint(INDETERMINATE_RESPONSE) + write_varint(status) + encode_fields(headers, indeterminate=True)


def encode_content(content: bytes) -> bytes:
    """One content chunk of an indeterminate-length message; nothing for nothing, since an empty chunk ends the
    content.
    """
    return write_varint(len(content)) + content if content else b""


def encode_end(trailers: Fields = ()) -> bytes:
    """The end of an indeterminate-length message."""
    return b"\x00" + encode_fields(trailers, indeterminate=True)


def encode_fields(fields: Fields, *, indeterminate: bool) -> bytes:
    for name, _ in fields:
        if not _NAME.match(name):
            raise ValueError("a field name is a lower-case token")
    lines = b"".join(_block(name) + _block(value) for name, value in fields)
    return lines + b"\x00" if indeterminate else _block(lines)


def _encode_message(message: Request | Response, indeterminate: bool) -> bytes:
    head = encode_fields(message.headers, indeterminate=indeterminate)
    if indeterminate:
        return head + encode_content(message.content) + encode_end(message.trailers)
    return head + _block(message.content) + encode_fields(message.trailers, indeterminate=False)


def _block(data: bytes) -> bytes:
    return write_varint(len(data)) + data


# --- reading ---------------------------------------------------------------------------------------------------------


def decode_request(data: bytes) -> Request:
    cursor = _Cursor(data)
    kind = cursor.number(INDETERMINATE_RESPONSE)
    if kind not in (KNOWN_REQUEST, INDETERMINATE_REQUEST):
        raise malformed("this is not a request")
    method, scheme, authority, path = (cursor.block(MAX_CONTROL) for _ in range(4))
    headers, content, trailers = _read_message(cursor, indeterminate=kind == INDETERMINATE_REQUEST)
    return Request(
        method=method,
        scheme=scheme,
        authority=authority,
        path=path,
        headers=headers,
        content=content,
        trailers=trailers,
    )


def decode_response(data: bytes) -> Response:
    cursor = _Cursor(data)
    kind = cursor.number(INDETERMINATE_RESPONSE)
    if kind not in (KNOWN_RESPONSE, INDETERMINATE_RESPONSE):
        raise malformed("this is not a response")
    indeterminate = kind == INDETERMINATE_RESPONSE
    early: list[tuple[int, Fields]] = []
    status = check_status(cursor.number(999))
    while status < 200:
        if len(early) == MAX_INFORMATIONAL:
            raise malformed(f"more than {MAX_INFORMATIONAL} informational responses")
        early.append((status, cursor.fields(indeterminate)))
        status = check_status(cursor.number(999))
    headers, content, trailers = _read_message(cursor, indeterminate=indeterminate)
    return Response(status=status, headers=headers, content=content, trailers=trailers, informational=tuple(early))


def _read_message(cursor: _Cursor, *, indeterminate: bool) -> tuple[Fields, bytes, Fields]:
    # RFC 9292 section 3.8: sections that are empty and last may be left out whole.
    headers = cursor.fields(indeterminate) if cursor.more() else ()
    if not cursor.more():
        return headers, b"", ()
    content = cursor.chunks() if indeterminate else cursor.block(MAX_CONTENT)
    trailers = cursor.fields(indeterminate) if cursor.more() else ()
    cursor.only_padding()
    return headers, content, trailers


class _Cursor:
    """A place in a message. Every read is bounded."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def more(self) -> bool:
        return self._at < len(self._data)

    def number(self, limit: int) -> int:
        read = read_varint(self._data, self._at)
        if read is None:
            raise malformed("it is cut")
        value, self._at = read
        if value > limit:
            raise malformed(f"{value} where at most {limit} may stand")
        return value

    def block(self, limit: int) -> bytes:
        size = self.number(limit)
        end = self._at + size
        if end > len(self._data):
            raise malformed("it is cut")
        block = self._data[self._at : end]
        self._at = end
        return block

    def fields(self, indeterminate: bool) -> Fields:
        if not indeterminate:
            return parse_fields(self.block(MAX_FIELD_SECTION))
        lines: list[tuple[bytes, bytes]] = []
        while name := self.block(MAX_FIELD_SECTION):
            lines.append((name, self.block(MAX_FIELD_SECTION)))
            check_lines(lines)
        return tuple(lines)

    def chunks(self) -> bytes:
        parts: list[bytes] = []
        while part := self.block(MAX_CONTENT):
            parts.append(part)
        return b"".join(parts)

    def only_padding(self) -> None:
        if self._data.count(0, self._at) != len(self._data) - self._at:
            raise malformed("bytes other than zero after its end")


def parse_fields(section: bytes) -> Fields:
    """The field lines of a known-length section."""
    cursor = _Cursor(section)
    lines: list[tuple[bytes, bytes]] = []
    while cursor.more():
        lines.append((cursor.block(MAX_FIELD_SECTION), cursor.block(MAX_FIELD_SECTION)))
        check_lines(lines)
    return tuple(lines)


def check_lines(lines: list[tuple[bytes, bytes]]) -> None:
    """Bounds of a growing field section, judged at its newest line."""
    name, value = lines[-1]
    if len(lines) > MAX_FIELDS:
        raise malformed(f"more than {MAX_FIELDS} fields")
    if not _NAME.match(name):
        raise malformed("a field name is not a lower-case token")
    if b"\r" in value or b"\n" in value or b"\x00" in value:
        raise malformed("a field value holds a line break or a zero")


def check_status(status: int) -> int:
    if not 100 <= status <= 599:
        raise malformed(f"a status of {status}")
    return status


def malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"a binary HTTP message is malformed: {what}", rule="SEAL-12")


def header(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of `name` (given in lower case), or None."""
    return next((value for key, value in fields if key == name), None)
