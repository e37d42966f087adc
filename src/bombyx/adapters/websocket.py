# SPDX-License-Identifier: Apache-2.0
"""Worker links over WebSocket (RFC 6455) on picows: both ends of `ports.Link`, and the worker's `Dialer`.

A link message is a sequence of link frames, so what is sent in one turn of the event loop leaves as one WebSocket
message (one system call, one TLS record). Not here: what the frames mean (`roles/`).

Always: a message is at most MAX_MESSAGE bytes; a reader that falls behind stops the network (`messages`), it does not
grow; a peer that answers no ping for PING_REPLY seconds is gone. Text messages close the link.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import picows
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # in the module, not in its stub

from bombyx.adapters.http_exchange import Request
from bombyx.errors import Unavailable
from bombyx.ports import Link
from bombyx.protocol.wire.records import MAX_LINK_FRAME

MAX_MESSAGE: Final = 8 << 20  # bytes; a HELLO with a large token table is about 2 MB
JOIN: Final = MAX_LINK_FRAME  # bytes; messages are joined up to this size
INBOX_HIGH: Final = 4 << 20  # bytes waiting for `messages()` before reading stops
SEND_HIGH: Final = 1 << 20  # bytes in the transport before `drain` waits
PING_IDLE: Final = 10.0  # seconds
PING_REPLY: Final = 10.0  # seconds

log = logging.getLogger(__name__)
log.setLevel(logging.WARNING)  # picows tells of every connection at INFO


class WebSocketLink(picows.WSListener):
    """One end of a link. Made by `websocket_upgrade` (proxy) or `WebSocketDialer` (worker)."""

    def __init__(self, on_link: Callable[[Link], None] | None = None) -> None:
        self._on_link = on_link
        self._transport: picows.WSTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        self._outgoing_size = 0
        self._inbox: deque[bytes] = deque()
        self._inbox_size = 0
        self._fragments: list[bytes] = []
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._reading_paused = False
        self._on_message: Callable[[bytes], None] | None = None
        self._on_close: Callable[[], None] | None = None

    # PORT

    def send(self, data: bytes) -> None:
        if self._gone.is_set():
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)
        self._outgoing_size += len(data)

    @property
    def buffered(self) -> int:
        if self._transport is None or self._gone.is_set():
            return 0
        return self._outgoing_size + int(self._transport.underlying_transport.get_write_buffer_size())

    async def drain(self) -> None:
        if self._outgoing:
            await asyncio.sleep(0)  # let `_flush` run
        await self._writable.wait()

    async def messages(self) -> AsyncIterator[bytes]:
        while True:
            while self._inbox:
                data = self._inbox.popleft()
                self._inbox_size -= len(data)
                if self._reading_paused and self._inbox_size < INBOX_HIGH // 2:
                    self._pause_reading(False)
                yield data
            if self._gone.is_set():
                return
            self._arrived.clear()
            await self._arrived.wait()

    def attach(self, on_message: Callable[[bytes], None], on_close: Callable[[], None]) -> None:
        waiting, self._inbox, self._inbox_size = self._inbox, deque(), 0
        self._on_message, self._on_close = on_message, on_close
        for data in waiting:
            on_message(data)
        if self._reading_paused:
            self._pause_reading(False)
        if self._gone.is_set():
            self._closed()

    async def close(self) -> None:
        if self._transport is None or self._gone.is_set():
            return
        self._flush()
        self._transport.send_close(picows.WSCloseCode.OK)
        self._transport.disconnect()
        try:
            await asyncio.wait_for(self._gone.wait(), 2.0)
        except TimeoutError:
            self._transport.disconnect(graceful=False)

    def cut(self) -> None:
        """Break the connection at once, as a dying peer would."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    # LISTENER (called by picows)

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=SEND_HIGH)
        if self._on_link is not None:
            self._on_link(self)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind = frame.msg_type
        if kind == picows.WSMsgType.BINARY or kind == picows.WSMsgType.CONTINUATION:
            if frame.fin and not self._fragments:
                self._received(frame.get_payload_as_bytes())
            else:
                self._fragment(frame)
        elif kind == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif kind == picows.WSMsgType.TEXT:
            transport.send_close(picows.WSCloseCode.UNSUPPORTED_DATA)
            transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self._gone.set()
        self._writable.set()
        self._arrived.set()
        self._outgoing.clear()
        self._closed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # OUR OWN

    def _received(self, data: bytes) -> None:
        if self._on_message is not None:
            self._on_message(data)
            return
        self._inbox.append(data)
        self._inbox_size += len(data)
        self._arrived.set()
        if self._inbox_size > INBOX_HIGH and not self._reading_paused:
            self._pause_reading(True)

    def _fragment(self, frame: picows.WSFrame) -> None:
        self._fragments.append(frame.get_payload_as_bytes())
        if sum(map(len, self._fragments)) > MAX_MESSAGE:
            self.cut()
        elif frame.fin:
            whole = b"".join(self._fragments)
            self._fragments.clear()
            self._received(whole)

    def _flush(self) -> None:
        transport, waiting = self._transport, self._outgoing
        if transport is None or not waiting or self._gone.is_set():
            return
        self._outgoing, self._outgoing_size = [], 0
        if len(waiting) == 1:
            transport.send(picows.WSMsgType.BINARY, waiting[0])
            return
        batch: list[bytes] = []
        size = 0
        for data in waiting:
            if batch and size + len(data) > JOIN:
                transport.send(picows.WSMsgType.BINARY, b"".join(batch))
                batch, size = [], 0
            batch.append(data)
            size += len(data)
        transport.send(picows.WSMsgType.BINARY, b"".join(batch))

    def _pause_reading(self, pause: bool) -> None:
        self._reading_paused = pause
        if self._transport is not None and not self._gone.is_set():
            underlying = self._transport.underlying_transport
            if pause:
                underlying.pause_reading()
            else:
                underlying.resume_reading()

    def _closed(self) -> None:
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback()


def websocket_upgrade(on_link: Callable[[Link], None]) -> Callable[[Request], asyncio.BufferedProtocol]:
    """For `HttpServer(upgrades={"/v1/link": ...})`: `on_link` gets every link once its handshake is done."""

    def make(_request: Request) -> asyncio.BufferedProtocol:
        protocol: asyncio.BufferedProtocol = WSProtocol(
            None,  # host and port: a client's business
            None,  # path: routed before
            False,  # is_client_side
            lambda _upgrade: WebSocketLink(on_link),
            log,
            True,  # disconnect_on_exception
            5.0,  # websocket_handshake_timeout
            True,  # enable_auto_ping
            PING_IDLE,
            PING_REPLY,
            picows.WSAutoPingStrategy.PING_WHEN_IDLE,
            True,  # enable_auto_pong
            MAX_MESSAGE,
            None,  # extra_headers
            65_536,  # read_buffer_init_size
        )
        return protocol

    return make


class WebSocketDialer:
    """How a worker reaches a proxy (`ports.Dialer`). `http(s)://` and `ws(s)://` mean the same here."""

    def __init__(self, *, ssl: ssl_module.SSLContext | None = None, timeout: float = 10.0) -> None:
        self._ssl = ssl
        self._timeout = timeout

    async def dial(self, url: str) -> Link:
        target = url.replace("http", "ws", 1) if url.startswith("http") else url
        try:
            async with asyncio.timeout(self._timeout):
                _, link = await picows.ws_connect(
                    WebSocketLink,
                    target,
                    ssl_context=self._ssl if target.startswith("wss") else None,
                    logger_name=log,
                    enable_auto_ping=True,
                    auto_ping_idle_timeout=PING_IDLE,
                    auto_ping_reply_timeout=PING_REPLY,
                    max_frame_size=MAX_MESSAGE,
                    max_redirects=0,
                    read_buffer_init_size=65_536,
                )
        except (OSError, TimeoutError, picows.WSError, ValueError) as error:
            raise Unavailable(f"cannot reach {url}: {type(error).__name__}", retry_after=1.0, rule="LINK-1") from None
        assert isinstance(link, WebSocketLink)
        return link
