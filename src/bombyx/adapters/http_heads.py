# SPDX-License-Identifier: Apache-2.0
"""Request heads a server has read before, byte for byte: what llhttp found in them is looked up, not found again.

A client sends the same head over and over on a connection that is kept; beside its length nothing changes. The same
bytes at the beginning of a message mean the same, so nothing is judged here: a head comes in only after llhttp and
`http_connection.py` have taken it without an objection.

Always: bounded in number and size; what is not known in full, or came in more than one piece, is read the long way.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bombyx.adapters.http_exchange import Request

MOST: Final = 1_024
LONGEST: Final = 1_024  # bytes of a head that is remembered
_END: Final = b"\r\n\r\n"


class _Known(NamedTuple):
    method: str
    path: str
    query: str
    raw_headers: list[tuple[bytes, bytes]]
    headers: dict[str, str]
    length: int  # of the body


class Heads:
    """One per server."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}

    def read(self, data: bytes, peer: str) -> Request | None:
        """The request that `data` is, if its head is known and `data` holds just that request."""
        end = data.find(_END, 0, LONGEST) + 4
        known = self._known.get(data[:end])
        if known is None or len(data) != end + known.length:
            return None
        method, path, query, raw_headers, headers, _ = known
        return Request(method, path, query, raw_headers, data[end:], peer, headers)

    def learn(self, data: bytes, request: Request) -> None:
        """`request` was read from `data`, which held nothing else, and is an ordinary one: HTTP/1.1, to be kept alive,
        without another protocol, coding or expectation."""
        end = data.find(_END, 0, LONGEST) + 4
        names = {name for name, _ in request.raw_headers}
        if end < 4 or b"content-length" not in names or len(data) != end + len(request.body):
            return
        if names & {b"transfer-encoding", b"expect", b"upgrade", b"connection"}:
            return
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[data[:end]] = _Known(
            request.method, request.path, request.query, request.raw_headers, dict(request.headers), len(request.body)
        )
