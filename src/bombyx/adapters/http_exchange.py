# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 request and its answer, as bytes on a transport (`ports.HttpRequest`, `ports.HttpExchange`).

Not here: reading (`http_server.py`), and any decision about what to answer (roles).

Each `write` leaves at once, the head with the first: whoever writes has gathered what there is.

Always: an answer begun with `start` ends with the terminating chunk only if `end` was called; `abort` leaves it out, so
the other side sees a truncated answer (RFC 9112 section 8). A header value never holds a line break.
"""

from __future__ import annotations

import asyncio
import functools
import http
import json
from collections.abc import Callable, Mapping
from typing import Final, Protocol

_NO_BODY: Final = frozenset({204, 304})
_FORBIDDEN: Final = frozenset("\r\n\x00")


class Connection(Protocol):
    """What an exchange needs of the connection it lives on."""

    transport: asyncio.Transport
    writing_paused: bool

    @property
    def date(self) -> bytes: ...

    def finished(self, exchange: Exchange) -> None: ...


class Request:
    """A whole request. Headers are decoded when they are first asked for; most requests are routed by path alone."""

    __slots__ = ("_headers", "body", "method", "path", "peer", "query", "raw_headers")

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        raw_headers: list[tuple[bytes, bytes]],
        body: bytes,
        peer: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.raw_headers = raw_headers
        self.body = body
        self.peer = peer
        self._headers = headers

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name; a repeated field is joined with ", " (RFC 9110 section 5.3)."""
        if self._headers is None:
            found: dict[str, str] = {}
            for raw_name, raw_value in self.raw_headers:
                name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                found[name] = f"{found[name]}, {value}" if name in found else value
            self._headers = found
        return self._headers

    def __repr__(self) -> str:
        return f"<{self.method} {self.path} of {len(self.body)} bytes>"


ABORT_SECONDS: Final = 2.0  # for what was written to a cut answer to leave


class Exchange:
    """The answer to one request. Every method may be called after the other side is gone; then it does nothing."""

    __slots__ = (
        "_connection",
        "_ended",
        "_head_only",
        "_pending",
        "_waiters",
        "chunked",
        "disconnected",
        "keep_alive",
        "on_disconnect",
        "on_resume",
        "request",
        "started",
    )

    def __init__(self, connection: Connection, request: Request, *, keep_alive: bool, chunked: bool) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.started = False
        self.disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self._connection = connection
        self.chunked = chunked
        self._head_only = request.method == "HEAD"
        self._ended = False
        self._waiters: list[asyncio.Future[None]] | None = None
        self._pending: list[bytes] = []

    @property
    def paused(self) -> bool:
        return self._connection.writing_paused

    def respond(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """The whole answer at once, with its length."""
        if self._begin():
            head = self._head(status, headers, None if status in _NO_BODY else b"content-length: %d\r\n" % len(body))
            hidden = self._head_only or status in _NO_BODY
            self._connection.transport.write(head if hidden else head + body)
            self._finish()

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of an answer whose length is not known yet."""
        if self._begin():
            if not self.chunked:  # HTTP/1.0: the end of the connection is the end of the body
                self.keep_alive = False
            framing = b"transfer-encoding: chunked\r\n" if self.chunked else b""
            asyncio.get_running_loop().call_soon(self._flush)  # together with what is written first, if that is soon
            self._pending.append(self._head(status, headers, framing))

    def write(self, data: bytes) -> None:
        if not data or not self.started or self._ended or self.disconnected:
            return
        if self._pending:
            self._pending.append(self._framed(data))
            self._flush()
        else:
            self._connection.transport.write(self._framed(data))

    def end(self, data: bytes = b"") -> None:
        """The answer is whole."""
        if not self._open():
            return
        last = self._framed(data) if data and not self._head_only else b""
        if self.chunked and not self._head_only:
            last += b"0\r\n\r\n"
        self._pending.append(last)
        self._flush()
        self._finish()

    def abort(self) -> None:
        """Cut the connection: the other side must not take what it has for the whole.

        What was written before goes out first: whoever never saw the head would take a paid answer for a lost
        connection, and ask again.
        """
        if not self._ended and not self.disconnected:
            self._flush()
            self._ended = True
            self._connection.transport.abort()

    async def drain(self) -> None:
        """Return when the other side has caught up, or is gone."""
        self._flush()
        if self.paused and not self.disconnected:
            waiter = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            await waiter

    # Called by the connection.

    def resumed(self) -> None:
        self._wake()
        if self.on_resume is not None and not self._ended:
            self.on_resume()

    def lost(self) -> None:
        self.disconnected = True
        self._wake()
        callback, self.on_disconnect, self.on_resume = self.on_disconnect, None, None
        if callback is not None and not self._ended:
            callback()

    def _flush(self) -> None:
        if self._pending:
            waiting, self._pending = self._pending, []
            if not self.disconnected:
                self._connection.transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _begin(self) -> bool:
        if self.started or self.disconnected or self._ended:
            return False
        self.started = True
        return True

    def _open(self) -> bool:
        return self.started and not self._ended and not self.disconnected

    def _framed(self, data: bytes) -> bytes:
        if self._head_only:
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def _head(self, status: int, headers: Mapping[str, str], framing: bytes | None) -> bytes:
        return b"%b%b%b%b%b\r\n" % (
            _status_line(status),
            _fields(tuple(headers.items())),
            framing or b"",
            self._connection.date,
            b"" if self.keep_alive else b"connection: close\r\n",
        )

    def _finish(self) -> None:
        self._ended = True
        self.on_disconnect = self.on_resume = None
        self._connection.finished(self)


def problem_body(status: int, detail: str, *, code: str, fault: str, rule: str) -> bytes:
    """RFC 9457: what went wrong and whose fault it is."""
    return json.dumps(
        {
            "type": "about:blank",
            "title": http.HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "code": code,
            "fault": fault,
            "rule": rule,
        }
    ).encode()


@functools.cache
def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return f"HTTP/1.1 {status:d} {phrase}\r\n".encode()


@functools.lru_cache(maxsize=256)
def _fields(headers: tuple[tuple[str, str], ...]) -> bytes:
    lines = []
    for name, value in headers:
        if _FORBIDDEN.intersection(name) or _FORBIDDEN.intersection(value):
            raise ValueError(f"header {name!r} holds a line break")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1", "replace")
