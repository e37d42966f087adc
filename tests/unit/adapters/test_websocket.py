# SPDX-License-Identifier: Apache-2.0
"""Worker links over real loopback sockets, on the proxy's own port (spec LINK)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
import trustme

from bombyx.adapters.http_server import HttpServer
from bombyx.adapters.websocket import WebSocketDialer, WebSocketLink, websocket_upgrade
from bombyx.errors import Unavailable
from bombyx.ports import HttpExchange, Link


class Proxy:
    """A server that takes links on /v1/link and answers everything else with 200."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.server = HttpServer(self.answer, upgrades={"/v1/link": websocket_upgrade(self.links.put_nowait)})

    def answer(self, exchange: HttpExchange) -> None:
        exchange.respond(200, {}, b"plain")


@asynccontextmanager
async def linked(
    server_tls: ssl.SSLContext | None = None, client_tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Link, Link, Proxy]]:
    proxy = Proxy()
    await proxy.server.start("127.0.0.1", 0, ssl=server_tls)
    scheme = "https" if server_tls else "http"
    worker = await WebSocketDialer(ssl=client_tls).dial(f"{scheme}://127.0.0.1:{proxy.server.port}/v1/link")
    here = await asyncio.wait_for(proxy.links.get(), 2)
    try:
        yield worker, here, proxy
    finally:
        await worker.close()
        await proxy.server.close(grace=0)


async def take(link: Link, size: int) -> bytes:
    """The next `size` bytes, however they were joined into messages."""
    found = b""
    async with asyncio.timeout(5):
        async for message in link.messages():
            found += message
            if len(found) >= size:
                break
    return found


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("tls", [False, True])
async def test_bytes_go_both_ways_beside_plain_requests(tls: bool) -> None:
    """LINK-1: one port serves links and requests, with and without TLS."""
    server_tls, client_tls = _contexts() if tls else (None, None)
    async with linked(server_tls, client_tls) as (worker, proxy_side, proxy), aiohttp.ClientSession() as session:
        worker.send(b"hello")
        assert await take(proxy_side, 5) == b"hello"
        proxy_side.send(b"welcome")
        assert await take(worker, 7) == b"welcome"
        scheme = "https" if tls else "http"
        async with session.get(f"{scheme}://127.0.0.1:{proxy.server.port}/", ssl=client_tls or False) as answer:
            assert await answer.read() == b"plain"


async def test_what_is_sent_in_one_turn_arrives_joined_and_in_order() -> None:
    """LINK-1: many frames, one message."""
    async with linked() as (worker, proxy_side, _):
        messages: list[bytes] = []
        proxy_side.attach(messages.append, lambda: None)
        for number in range(200):
            worker.send(b"%03d" % number)
        await worker.drain()
        await asyncio.sleep(0.1)
        assert b"".join(messages) == b"".join(b"%03d" % n for n in range(200))
        assert len(messages) < 5


async def test_a_large_message_passes_whole() -> None:
    """LINK-1: a HELLO may be some megabytes."""
    async with linked() as (worker, proxy_side, _):
        data = bytes(range(256)) * 16_000
        worker.send(data)
        assert await take(proxy_side, len(data)) == data


async def test_close_ends_messages_and_calls_on_close_once() -> None:
    """LINK-1: an end is an end on both sides, not an exception."""
    async with linked() as (worker, proxy_side, _):
        closed: list[bool] = []
        proxy_side.attach(lambda data: None, lambda: closed.append(True))
        await worker.close()
        assert [data async for data in worker.messages()] == []
        await asyncio.sleep(0.05)
        assert closed == [True]
        proxy_side.send(b"nobody hears")
        assert proxy_side.buffered == 0


async def test_a_cut_connection_is_noticed_at_once() -> None:
    """LINK-1: a worker that dies is gone within a moment."""
    async with linked() as (worker, proxy_side, _):
        gone = asyncio.Event()
        proxy_side.attach(lambda data: None, gone.set)
        assert isinstance(worker, WebSocketLink)
        worker.cut()
        await asyncio.wait_for(gone.wait(), 0.5)


async def test_attach_after_the_first_messages_loses_none() -> None:
    """LINK-1: what waited is handed over first."""
    async with linked() as (worker, proxy_side, _):
        worker.send(b"early")
        await asyncio.sleep(0.05)
        messages: list[bytes] = []
        proxy_side.attach(messages.append, lambda: None)
        worker.send(b"late")
        await asyncio.sleep(0.05)
        assert messages == [b"early", b"late"]


async def test_a_reader_that_falls_behind_stops_the_sender() -> None:
    """LINK-5: back-pressure reaches the other end; neither side grows without bound."""
    async with linked() as (worker, proxy_side, _):
        sent = 0
        for _ in range(64):
            worker.send(b"x" * (1 << 20))
            sent += 1 << 20
            try:
                async with asyncio.timeout(0.1):
                    await worker.drain()
            except TimeoutError:
                break
        assert sent < 40 << 20
        assert isinstance(proxy_side, WebSocketLink)
        assert proxy_side._inbox_size < 16 << 20
        assert len(await take(proxy_side, sent)) == sent


async def test_nobody_there_is_unavailable() -> None:
    """LINK-1: a worker that cannot reach its proxy says so and may try again."""
    with pytest.raises(Unavailable):
        await WebSocketDialer(timeout=1).dial("http://127.0.0.1:9/v1/link")


async def test_another_path_is_no_link() -> None:
    """LINK-1: only the link's path upgrades."""
    async with linked() as (_, _, proxy):
        with pytest.raises(Unavailable):
            await WebSocketDialer(timeout=1).dial(f"http://127.0.0.1:{proxy.server.port}/v1/other")


async def test_text_messages_close_the_link() -> None:
    """LINK-1: links speak binary."""
    async with linked() as (_, _, proxy), aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"http://127.0.0.1:{proxy.server.port}/v1/link")
        await socket.send_str("hello")
        assert (await socket.receive(timeout=2)).type == aiohttp.WSMsgType.CLOSE
        await socket.close()


async def test_a_fragmented_message_is_put_together() -> None:
    """LINK-1: intermediaries may split messages (RFC 6455 section 5.4)."""
    async with linked() as (_, _, proxy):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.server.port)
        writer.write(
            b"GET /v1/link HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        link = await asyncio.wait_for(proxy.links.get(), 2)
        for head, part in ((0x02, b"one "), (0x00, b"two "), (0x80, b"three")):
            writer.write(bytes([head, 0x80 | len(part)]) + bytes(4) + part)  # a mask of zeros leaves the bytes alone
        assert await take(link, 13) == b"one two three"
        writer.close()
