# SPDX-License-Identifier: Apache-2.0
"""The HTTP server over real loopback sockets: framing, limits, slow and hostile clients (spec HTTP-1 .. HTTP-8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bombyx.adapters.http_server import HttpLimits, HttpServer
from bombyx.ports import HttpExchange

QUICK = HttpLimits(
    max_body=100_000,
    max_header_bytes=4096,
    max_headers=20,
    header_timeout=0.3,
    body_timeout=0.3,
    keep_alive=0.4,
    write_timeout=0.4,
    max_connections=8,
    write_buffer=65_536,
)


def echo(exchange: HttpExchange) -> None:
    """Answers with what it understood."""
    request = exchange.request
    seen = {"method": request.method, "path": request.path, "query": request.query, "size": len(request.body)}
    exchange.respond(200, {"content-type": "application/json"}, json.dumps(seen).encode())


@asynccontextmanager
async def serving(
    handler: Callable[[HttpExchange], None] = echo, limits: HttpLimits = QUICK
) -> AsyncIterator[HttpServer]:
    server = HttpServer(handler, limits=limits)
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close(grace=0.1)


async def talk(server: HttpServer, *pieces: bytes, pause: float = 0.0, wait: float = 2.0) -> bytes:
    """Send pieces over one raw connection; everything that comes back until the server closes (or `wait` passes)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        async with asyncio.timeout(wait):
            while data := await reader.read(65_536):
                answer += data
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


def bodies(answer: bytes) -> list[dict[str, object]]:
    """The JSON bodies of all answers on one connection, in order."""
    found = []
    rest = answer
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        found.append(json.loads(rest[:size]))
        rest = rest[size:]
    return found


GET = b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


async def test_one_connection_serves_many_requests() -> None:
    """HTTP-5: keep-alive, whole bodies, with a client of another make."""
    async with serving() as server, aiohttp.ClientSession() as session:
        for size in (0, 1, 70_000):
            async with session.post(f"http://127.0.0.1:{server.port}/p", data=b"x" * size) as answer:
                assert (await answer.json())["size"] == size
        assert len(server.connections) == 1


KEPT = b"POST /p?q=%d HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\r\n"


async def test_a_head_that_was_seen_before_means_the_same_again() -> None:
    """HTTP-2, HTTP-5: whole, with another body, in two pieces, with a request behind it, or with a byte too few."""
    head = KEPT % 1
    async with serving() as server:
        again = await talk(server, head + b"first", head + b"again", pause=0.01, wait=0.2)
        assert server.heads.read(head + b"whole", "") is not None
        pieces = await talk(server, head + b"fi", b"rst", head, b"again", pause=0.01, wait=0.2)
        both = await talk(server, head + b"first" + KEPT % 2 + b"other" + head + b"third", wait=0.2)
        short = await talk(server, head + b"firs", wait=0.2)
    for answer, queries in ((again, ("q=1", "q=1")), (pieces, ("q=1", "q=1")), (both, ("q=1", "q=2", "q=1"))):
        assert [(body["query"], body["size"]) for body in bodies(answer)] == [(query, 5) for query in queries]
    assert not short or b" 408 " in short


async def test_only_heads_without_a_twist_are_remembered() -> None:
    """HTTP-2: what may change how a message is read, or what follows it, is read by llhttp each time."""
    twists = (
        b"POST /p HTTP/1.1\r\nHost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
        b"POST /p HTTP/1.1\r\nHost: x\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx",
        b"POST /p HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"POST /p HTTP/1.0\r\nHost: x\r\ncontent-length: 1\r\n\r\nx",
        b"GET /p HTTP/1.1\r\nHost: x\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n",
        b"POST /p HTTP/1.1\r\nHost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        b"POST /p HTTP/1.1\r\nHost: x\r\nlong: " + b"x" * 1_000 + b"\r\ncontent-length: 1\r\n\r\nx",
    )
    async with serving() as server:
        for twist in twists:
            assert await talk(server, twist, wait=0.1)
            assert server.heads.read(twist, "") is None


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    """HTTP-5: pipelining is queued, never mixed up, also when the first answer comes late."""

    def late(exchange: HttpExchange) -> None:
        delay = 0.1 if exchange.request.path == "/first" else 0
        asyncio.get_running_loop().call_later(delay, echo, exchange)

    first = b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"
    second = b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(late) as server:
        together = await talk(server, first + second + GET)
        apart = await talk(server, first, second, GET, pause=0.01)
    for answer in (together, apart):
        assert [body["path"] for body in bodies(answer)] == ["/first", "/second", "/a"]


async def test_too_many_requests_sent_ahead_are_refused_not_stored() -> None:
    """HTTP-5: a queue has an end."""
    async with serving(lambda exchange: None) as server:
        assert await talk(server, GET.replace(b"close", b"keep-alive") * 2, b"x" * 70_000, pause=0.02) == b""


@pytest.mark.parametrize(
    ("name", "request_bytes"),
    [
        ("length_and_chunked", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("chunked_and_length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        ("two_lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("same_length_twice", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        ("list_of_lengths", POST + b"Content-Length: 5, 5\r\n\r\nhello"),
        ("signed_length", POST + b"Content-Length: +5\r\n\r\nhello"),
        ("unknown_coding", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("chunked_not_last", POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("space_before_colon", POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("folded_header", POST + b"X: a\r\n b\r\n\r\n"),
        ("bare_line_feeds", b"GET / HTTP/1.1\nHost: x\n\n"),
        ("two_hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("no_host", b"GET / HTTP/1.1\r\n\r\n"),
        ("huge_chunk", POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhello"),
        ("tunnel", b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"),
        ("target_is_no_path", b"GET x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("http2_preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ],
)
async def test_a_request_that_reads_two_ways_is_refused(name: str, request_bytes: bytes) -> None:
    """HTTP-2: smuggling needs two readings; here there is one, or 400. What follows on the connection is not read."""
    async with serving() as server:
        answer = await talk(server, request_bytes + GET)
    assert answer.startswith(b"HTTP/1.1 400 "), name
    problem = bodies(answer)[0]
    assert problem["fault"] == "client"
    assert str(problem["rule"]).startswith("HTTP-")
    assert len(bodies(answer)) == 1


async def test_chunked_bodies_with_extensions_and_trailers_are_whole() -> None:
    """HTTP-2: chunk extensions and trailers are dropped; trailers never become headers."""
    chunked = b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\nyou\r\n0\r\nX-Trailer: 1\r\n\r\n"
    async with serving() as server:
        assert bodies(await talk(server, POST + chunked))[0]["size"] == 8


async def test_a_body_above_the_limit_is_refused_by_its_length_and_by_its_bytes() -> None:
    """HTTP-4: 413 before the body when its length is told, as soon as it is seen when not."""
    async with serving() as server:
        told = await talk(server, POST + b"Content-Length: 200000\r\n\r\n", b"x" * 200_000)
        untold = await talk(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"20000\r\n" + b"x" * 0x20000)
        assert told.startswith(b"HTTP/1.1 413 ")
        assert untold.startswith(b"HTTP/1.1 413 ")
        assert server.buffered == 0


async def test_bodies_of_all_connections_together_are_bounded() -> None:
    """HTTP-7: many uploads at once cannot fill the memory."""
    limits = HttpLimits(max_buffered=50_000, body_timeout=0.5)
    async with serving(limits=limits) as server:
        half = POST + b"Content-Length: 40000\r\n\r\n" + b"x" * 30_000
        first, second = await asyncio.gather(talk(server, half), talk(server, half))
        assert b"408" in first + second
        assert b"HTTP/1.1 503 " in first + second
        assert server.buffered == 0


async def test_expect_continue_is_answered_before_the_body() -> None:
    """HTTP-2: 100 Continue for a body we would take, 413 for one we would not, 417 for anything else."""
    async with serving() as server:
        good = await talk(server, POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", b"hi", pause=0.05)
        large = await talk(server, POST + b"Expect: 100-continue\r\nContent-Length: 200000\r\n\r\n")
        other = await talk(server, POST + b"Expect: tea\r\nContent-Length: 2\r\n\r\n")
    assert good.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert large.startswith(b"HTTP/1.1 413 ")
    assert other.startswith(b"HTTP/1.1 417 ")


async def test_a_head_that_is_too_large_or_too_many_fields_is_refused() -> None:
    """HTTP-3: also when it never ends."""
    async with serving() as server:
        large = await talk(server, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 5000 + b"\r\n\r\n")
        endless = await talk(server, b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y" * 3000, b"y" * 3000, pause=0.02)
        many = await talk(server, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 30 + b"\r\n")
    for answer in (large, endless, many):
        assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_slow_loris_is_told_and_dropped() -> None:
    """HTTP-6: a byte now and then does not hold a connection."""
    async with serving() as server:
        head = await talk(server, *[b"GET / HTTP/1.1\r\n", b"Host: x\r\n"] + [b"a"] * 8, pause=0.1)
        body = await talk(server, POST + b"Content-Length: 9\r\n\r\n", *[b"a"] * 7, pause=0.1)
        silent = await talk(server)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert body.startswith(b"HTTP/1.1 408 ")
        assert silent == b""
        await asyncio.sleep(0.2)
        assert not server.connections


async def test_an_idle_connection_is_closed() -> None:
    """HTTP-6: keep-alive has an end."""
    async with serving() as server:
        started = asyncio.get_running_loop().time()
        await talk(server, GET.replace(b"close", b"keep-alive"))
        assert asyncio.get_running_loop().time() - started < 1.5


async def test_connections_above_the_limit_are_turned_away_politely() -> None:
    """HTTP-7: 503 and Retry-After, at once."""
    async with serving(limits=HttpLimits(max_connections=2)) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await asyncio.sleep(0.02)
        answer = await talk(server, GET)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        for _, writer in held:
            writer.close()


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    """HTTP-2: and the connection stays usable."""
    async with serving() as server:
        answer = await talk(server, b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    head = answer.split(b"\r\n\r\n")[0]
    assert b"content-length: " in head
    assert answer.split(b"\r\n\r\n")[1].startswith(b"HTTP/1.1 200")


async def test_a_streamed_answer_arrives_in_pieces_and_ends() -> None:
    """HTTP-5: chunked framing; the end is said."""

    def stream(exchange: HttpExchange) -> None:
        exchange.start(200, {"content-type": "text/plain"})
        exchange.write(b"one ")
        exchange.write(b"")
        exchange.end(b"two")

    async with serving(stream) as server, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(f"http://127.0.0.1:{server.port}/") as answer:
                assert await answer.read() == b"one two"
        assert len(server.connections) == 1
        old = await talk(server, b"GET / HTTP/1.0\r\n\r\n")
        assert old.endswith(b"\r\n\r\none two")


async def test_an_aborted_answer_looks_cut_never_short() -> None:
    """HTTP-5: truncation is visible to the client."""

    def cut(exchange: HttpExchange) -> None:
        exchange.start(200, {})
        exchange.write(b"half of ")
        asyncio.get_running_loop().call_later(0.05, exchange.abort)

    async with serving(cut) as server, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get(f"http://127.0.0.1:{server.port}/") as answer:
                await answer.read()


async def test_what_was_written_before_an_abort_arrives() -> None:
    """HTTP-5: a head that never came looks like a lost connection, which applications ask again over, and pay twice."""

    def cut_at_once(exchange: HttpExchange) -> None:
        exchange.start(200, {"x-should-retry": "false"})
        exchange.write(b"half of ")
        exchange.abort()

    async with serving(cut_at_once) as server:
        raw = await talk(server, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"half of " in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_a_client_that_goes_is_noticed_within_50_ms() -> None:
    """HTTP-5: so that work for it can stop."""
    gone: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    reached = asyncio.Event()

    def wait(exchange: HttpExchange) -> None:
        exchange.start(200, {})
        exchange.on_disconnect = lambda: gone.set_result(asyncio.get_running_loop().time())
        reached.set()

    async with serving(wait) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await reached.wait()
        left = asyncio.get_running_loop().time()
        writer.close()
        assert await asyncio.wait_for(gone, 1) - left < 0.05


async def test_a_slow_reader_pauses_the_writer_and_memory_stays() -> None:
    """HTTP-5: `paused` rises, `drain` waits, `on_resume` tells; nothing is lost."""
    resumed = asyncio.Event()
    most = 0
    tasks: list[asyncio.Task[None]] = []

    async def produce(exchange: HttpExchange) -> None:
        nonlocal most
        exchange.on_resume = resumed.set
        exchange.start(200, {})
        for _ in range(400):
            exchange.write(b"x" * 65_536)
            most = max(most, next(iter(server.connections)).transport.get_write_buffer_size())
            await exchange.drain()
        exchange.end()

    limits = HttpLimits(write_timeout=5)
    async with serving(lambda e: tasks.append(asyncio.ensure_future(produce(e))), limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.2)
        assert not tasks[0].done()
        size = len(await reader.read(-1))
        writer.close()
    assert size > 400 * 65_536
    assert resumed.is_set()
    assert most < limits.write_buffer + 2 * 65_536


async def test_a_reader_that_takes_nothing_is_cut() -> None:
    """HTTP-6: a full buffer is not held for ever."""
    lost = asyncio.Event()

    def flood(exchange: HttpExchange) -> None:
        exchange.on_disconnect = lost.set
        exchange.start(200, {})
        exchange.write(b"x" * (16 << 20))

    async with serving(flood) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(GET)
        await asyncio.wait_for(lost.wait(), 3)
        writer.close()


async def test_a_failing_handler_is_our_fault_and_says_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    """HTTP-8: 500 with `fault: local`, no trace of the request."""

    def fail(exchange: HttpExchange) -> None:
        raise RuntimeError("secret text")

    async with serving(fail) as server:
        answer = await talk(server, GET)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert bodies(answer)[0]["fault"] == "local"


async def test_a_header_with_a_line_break_is_never_sent() -> None:
    """HTTP-8: no response splitting."""

    def split(exchange: HttpExchange) -> None:
        exchange.respond(200, {"x": "a\r\nset-cookie: b"})

    async with serving(split) as server:
        assert b"set-cookie" not in await talk(server, GET)


async def test_closing_lets_answers_end_then_cuts() -> None:
    """HTTP-1: a graceful stop."""

    def later(exchange: HttpExchange) -> None:
        asyncio.get_running_loop().call_later(0.1, echo, exchange)

    server = HttpServer(lambda exchange: None, limits=QUICK)
    slow = HttpServer(later, limits=QUICK)
    await server.start("127.0.0.1", 0)
    await slow.start("127.0.0.1", 0)
    hanging = asyncio.ensure_future(talk(server, GET))
    ending = asyncio.ensure_future(talk(slow, GET))
    await asyncio.sleep(0.03)
    await asyncio.gather(server.close(grace=0.05), slow.close(grace=2))
    assert await hanging == b""
    assert (await ending).startswith(b"HTTP/1.1 200 ")


_LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /p HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"hello",
        b"\x00\xff",
    ]
)


async def _survives(work: Callable[[HttpServer], Awaitable[None]]) -> None:
    async with serving() as server:
        await work(server)
        answer = await talk(server, GET)
        assert answer.startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0)
        assert server.buffered == 0


@settings(max_examples=25)
@given(st.lists(st.lists(st.one_of(_LINES, st.binary(max_size=40)), max_size=12), min_size=8, max_size=8))
def test_no_bytes_hurt_the_server(attempts: list[list[bytes]]) -> None:
    """HTTP-2: whatever arrives, the next client is served and nothing stays buffered."""

    async def work(server: HttpServer) -> None:
        await asyncio.gather(*(talk(server, b"".join(pieces), wait=0.05) for pieces in attempts[:4]))
        await asyncio.gather(*(talk(server, *pieces, wait=0.05) for pieces in attempts[4:]))
        await asyncio.sleep(0.01)

    asyncio.run(_survives(work))
