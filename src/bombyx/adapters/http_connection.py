# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection: feeds llhttp, queues whole requests, has them answered one after the other.

Always: a request that could be read in two ways is refused, never guessed (RFC 9112 section 6.3: Content-Length beside
Transfer-Encoding, repeated lengths or hosts); answers leave in the order of their requests; a refusal is a problem
(RFC 9457) that says whose fault it is. Nothing is raised inside a parser callback: a refusal is remembered, sent after.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httptools

from bombyx.adapters.http_exchange import Exchange, Request, problem_body
from bombyx.adapters.http_heads import Heads
from bombyx.ports import HttpHandler

log = logging.getLogger(__name__)

MAX_QUEUED: Final = 16  # requests sent ahead on one connection
MAX_AHEAD: Final = 65_536  # bytes sent ahead while an answer is under way
LINGER: Final = 2.0  # seconds we go on reading after a refusal, so that the refusal is not lost in a reset
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"content-type"})

Upgrade = Callable[[Request], asyncio.BufferedProtocol]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Seconds and bytes. The defaults suit a server that strangers can reach."""

    max_body: int = 36 << 20  # an envelope with images
    max_buffered: int = 1 << 30  # bodies of all connections together
    max_header_bytes: int = 32_768
    max_headers: int = 100
    header_timeout: float = 10.0  # from a request's first byte to the end of its head
    body_timeout: float = 60.0  # from the end of the head to the end of the body
    keep_alive: float = 75.0
    write_timeout: float = 60.0  # a reader that takes nothing for so long is gone
    max_connections: int = 4096
    write_buffer: int = 262_144  # above this an exchange is `paused`


class Shared(Protocol):
    """What a connection needs of its server."""

    handler: HttpHandler
    limits: HttpLimits
    upgrades: dict[str, Upgrade]
    connections: set[HttpConnection]
    handed_over: list[asyncio.Transport]
    heads: Heads
    buffered: int
    closing: bool
    date: bytes


class HttpConnection(asyncio.Protocol):
    """One client connection: feeds the parser, queues whole requests, answers them one after the other."""

    __slots__ = (
        "_ahead",
        "_body",
        "_body_size",
        "_dispatching",
        "_exchange",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_lingering",
        "_parser",
        "_peer",
        "_queue",
        "_reading",
        "_refusal",
        "_server",
        "_upgrading",
        "_url",
        "deadline",
        "transport",
        "writing_paused",
    )

    def __init__(self, server: Shared) -> None:
        self._server = server
        self._queue: deque[Exchange] = deque()
        self._exchange: Exchange | None = None
        self._refusal: tuple[int, str, str] | None = None
        self._parser: Any = None
        self._ahead = bytearray()
        self._dispatching = self._lingering = self._upgrading = self._reading = False
        self.writing_paused = False
        self._body: list[bytes] = []
        self._body_size = 0
        self._reset_message()

    @property
    def date(self) -> bytes:
        return self._server.date

    # TRANSPORT

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=self._server.limits.write_buffer)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self._parser = httptools.HttpRequestParser(self)
        self._server.connections.add(self)
        self._expect_within(self._server.limits.header_timeout)
        if len(self._server.connections) > self._server.limits.max_connections:
            self._refuse(503, f"more than {self._server.limits.max_connections} connections", "HTTP-7")
            self._send_refusal()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._exchange is not None:
            self._ahead += data
            if len(self._ahead) > MAX_AHEAD:
                self.transport.abort()
            return
        if not self._reading and self._refusal is None:
            request = self._server.heads.read(data, self._peer)
            if request is not None:
                self.deadline = float("inf")
                self._queue.append(Exchange(self, request, keep_alive=True, chunked=True))
                self._serve_next()
                return
        self._feed(data)

    def eof_received(self) -> bool:
        return False  # a client that closes its side has gone: work for it stops

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._expect_within(self._server.limits.write_timeout)

    def resume_writing(self) -> None:
        self.writing_paused = False
        self.deadline = float("inf")
        if self._exchange is not None:
            self._exchange.resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._release_body()
        exchange, self._exchange = self._exchange, None
        self._queue.clear()
        self._ahead.clear()
        self._parser = None  # it holds us: a dead connection and its TLS state would wait for the garbage collector
        if exchange is not None:
            exchange.lost()

    # PARSER (called by httptools; nothing is raised here, a refusal is remembered)

    def on_message_begin(self) -> None:
        self._reset_message()
        self._reading = self._in_head = True
        self._expect_within(self._server.limits.header_timeout)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
        self._head_bytes += len(name) + len(value)
        if len(self._headers) > self._server.limits.max_headers:
            self._refuse(431, f"more than {self._server.limits.max_headers} header fields", "HTTP-3")

    def on_headers_complete(self) -> None:
        self._in_head = False
        limits = self._server.limits
        self._expect_within(limits.body_timeout)
        if self._head_bytes + len(self._url) > limits.max_header_bytes:
            self._refuse(431, f"a head of more than {limits.max_header_bytes} bytes", "HTTP-3")
        self._check_head()

    def _check_head(self) -> None:
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(505, "HTTP/1.1, please", "HTTP-2")
        single: dict[bytes, bytes] = {}
        for name, value in self._headers:
            if name in _SINGLE:
                if name in single:
                    self._refuse(400, f"more than one {name.decode()} field", "HTTP-2")
                single[name] = value
        if version == "1.1" and b"host" not in single:
            self._refuse(400, "HTTP/1.1 needs a host field", "HTTP-2")
        if b"content-length" in single and b"transfer-encoding" in single:
            self._refuse(400, "content-length beside transfer-encoding", "HTTP-2")
        if int(single.get(b"content-length", b"0")) > self._server.limits.max_body:  # llhttp let digits only pass
            self._refuse(413, f"a body of more than {self._server.limits.max_body} bytes", "HTTP-4")
        self._answer_expectation(single.get(b"expect"))

    def _answer_expectation(self, expect: bytes | None) -> None:
        if expect is None or self._refusal is not None:
            return
        if expect.lower() != b"100-continue":
            self._refuse(417, "the only expectation met is 100-continue", "HTTP-2")
        elif self._exchange is None and not self._queue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._body.append(data)
        self._body_size += len(data)
        self._server.buffered += len(data)
        if self._body_size > self._server.limits.max_body:
            self._refuse(413, f"a body of more than {self._server.limits.max_body} bytes", "HTTP-4")
        elif self._server.buffered > self._server.limits.max_buffered:
            self._refuse(503, "too many bytes are being uploaded", "HTTP-7")

    def on_message_complete(self) -> None:
        self._reading = False
        self.deadline = float("inf")
        if self._refusal is not None:
            return
        if len(self._queue) >= MAX_QUEUED:
            self._refuse(400, f"more than {MAX_QUEUED} requests sent ahead", "HTTP-5")
            return
        request = self._request()
        if request is None:
            self._refuse(400, "the request target is not a path", "HTTP-2")
            return
        parser = self._parser
        self._upgrading = parser.should_upgrade()
        chunked = parser.get_http_version() == "1.1"
        keep_alive = parser.should_keep_alive() and not self._upgrading
        self._queue.append(Exchange(self, request, keep_alive=keep_alive, chunked=chunked))
        self._release_body()

    # OUR OWN

    def _request(self) -> Request | None:
        target, _, query = self._url.partition(b"?")
        if not target.startswith(b"/"):
            scheme, separator, rest = target.partition(b"://")  # absolute-form (RFC 9112 section 3.2.2)
            if not separator or scheme.lower() not in (b"http", b"https"):
                return None
            target = b"/" + rest.partition(b"/")[2]
        try:
            path, text = target.decode("ascii"), query.decode("ascii")
        except UnicodeDecodeError:
            return None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Request(self._parser.get_method().decode("ascii"), path, text, self._headers, body, self._peer)

    def _feed(self, data: bytes) -> None:
        was_in_head, fresh = self._in_head, not self._reading and not self._queue
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "not an HTTP/1.1 request that can be read in one way only", "HTTP-2")
        if fresh and len(self._queue) == 1 and self._refusal is None and not self._reading and not self._upgrading:
            exchange = self._queue[0]
            if exchange.keep_alive and exchange.chunked:
                self._server.heads.learn(data, exchange.request)
        if was_in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._server.limits.max_header_bytes:
                self._refuse(431, f"a head of more than {self._server.limits.max_header_bytes} bytes", "HTTP-3")
        self._serve_next()

    def _switch(self, rest: bytes) -> None:
        """Another protocol is asked for: hand over, or answer and close. `rest` is never read as HTTP."""
        exchange = self._queue[-1] if self._queue else None
        if exchange is None or exchange.request.method == "CONNECT":
            self._refuse(400, "this server does not tunnel", "HTTP-6")
            self._queue.clear()
            return
        request = exchange.request
        make = self._server.upgrades.get(request.path)
        if (
            make is None
            or self._exchange is not None
            or len(self._queue) > 1
            or request.method != "GET"
            or request.body
        ):
            return
        self._queue.clear()
        self._server.connections.discard(self)
        self._server.handed_over.append(self.transport)
        protocol = make(request)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        _replay(protocol, request, rest)

    def _serve_next(self) -> None:
        if self._dispatching:
            return
        self._dispatching = True
        while self._exchange is None and self._queue:
            self._dispatch(self._queue.popleft())
        self._dispatching = False
        if self._exchange is not None:
            return
        if self._refusal is not None:
            self._send_refusal()
        elif self._ahead:
            data, self._ahead = bytes(self._ahead), bytearray()
            self._feed(data)

    def _dispatch(self, exchange: Exchange) -> None:
        self._exchange = exchange
        try:
            self._server.handler(exchange)
        except Exception as error:
            log.exception("handler failed: %s", type(error).__name__)
            if exchange.started:
                exchange.abort()
            else:
                body = problem_body(500, "the server failed", code="internal", fault="local", rule="HTTP-8")
                exchange.respond(500, {"content-type": "application/problem+json"}, body)

    def finished(self, exchange: Exchange) -> None:
        """An answer is whole. Called by the exchange."""
        self._exchange = None
        if not exchange.keep_alive or (self._server.closing and not self._queue):
            self._queue.clear()
            self.transport.close()
        else:
            if not self._reading:
                self._expect_within(self._server.limits.keep_alive)
            self._serve_next()

    def expire(self) -> None:
        """The deadline passed: say so to a half-sent request, hang up on the rest."""
        if self._lingering or self.writing_paused or not self._reading:
            self.transport.abort()
        else:
            self._refuse(408, "the request took too long to arrive", "HTTP-6")
            self._send_refusal()

    def close_if_idle(self) -> None:
        if self._exchange is None and not self._queue:
            self.transport.close()

    def _refuse(self, status: int, detail: str, rule: str) -> None:
        if self._refusal is None:
            self._refusal = (status, detail, rule)

    def _send_refusal(self) -> None:
        assert self._refusal is not None
        if self._lingering or self.transport.is_closing():
            return
        self._release_body()
        status, detail, rule = self._refusal
        fault = "nobody" if status == 503 else "client"
        body = problem_body(status, detail, code="overloaded" if status == 503 else "bad_http", fault=fault, rule=rule)
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        head = b"HTTP/1.1 %d Refused\r\ncontent-type: application/problem+json\r\nconnection: close\r\n" % status
        self.transport.write(head + b"content-length: %d\r\n%b\r\n" % (len(body), retry) + body)
        self._lingering = True
        self._expect_within(LINGER)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _expect_within(self, seconds: float) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds

    def _release_body(self) -> None:
        self._server.buffered -= self._body_size
        self._body, self._body_size = [], 0

    def _reset_message(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._in_head = False


def _replay(protocol: asyncio.BufferedProtocol, request: Request, rest: bytes) -> None:
    """Give the new protocol the request as we understood it (not as it was spelled), and what followed it."""
    lines = b"".join(b"%b: %b\r\n" % field for field in request.raw_headers)
    data = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (request.method.encode(), request.path.encode(), lines, rest)
    while data:
        buffer = memoryview(protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
