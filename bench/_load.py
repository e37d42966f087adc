# SPDX-License-Identifier: Apache-2.0
"""Load for `relay.py` and `streams.py`: closed-loop HTTP clients over TLS, and the upstream plain gateways forward to.

Both run in the measuring process, on a core of their own, so that a frame's way is timed by one clock. What counts as
the cost of a gateway is its own processor time, not how fast this process can ask.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiofastnet

MARK = b"#bombyx-frame#"  # begins each streamed piece, so that pieces are counted, not parsed
ANSWER_BYTES = 500
STREAM_FRAMES = 128
FRAME_BYTES = 256
PACE = 0.02  # seconds between the frames of a paced stream: 50 a second
CHUNKED_END = b"0\r\n\r\n"


@dataclass
class Taken:
    """What one run of the load saw."""

    answers: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu: float = 0.0  # of the gateway, seconds
    latencies: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)  # of single frames, seconds
    first_failure: bytes = b""

    def quantile(self, share: float, of: list[float] | None = None) -> float:
        """Milliseconds."""
        values = sorted(self.latencies if of is None else of)
        return values[min(len(values) - 1, int(len(values) * share))] * 1000 if values else float("nan")


class Asker(asyncio.Protocol):
    """One connection that asks, waits for the whole answer, and asks again."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.name: bytes = b""
        self._size = -1
        self._got = 0
        self._tail = b""
        self._marks = 0
        self._asked = 0.0
        self._fresh = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def begin(self) -> None:
        self._ask()

    def _ask(self) -> None:
        following = self.load.next()
        if following is None:
            self.load.idle(self)
            return
        self.name, request = following
        self._fresh, self._size, self._got, self._marks, self._tail = True, -1, 0, 0, b""
        self._asked = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._fresh:
            self._begin(data)
        self._got += len(data)
        if self.load.sent_at is not None:
            self._time_frames(data)
        tail = (self._tail + data)[-5:]
        self._tail = tail
        if (self._size < 0 and tail == CHUNKED_END) or (0 <= self._size <= self._got):
            self._finish()

    def _begin(self, data: bytes) -> None:
        self._fresh = False
        if not data.startswith(b"HTTP/1.1 200"):
            self.load.taken.failed += 1
            self.load.taken.first_failure = self.load.taken.first_failure or data[:600]
        head, _, _ = data.partition(b"\r\n\r\n")
        at = head.lower().find(b"content-length:")
        if at >= 0:
            self._size = len(head) + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])

    def _time_frames(self, data: bytes) -> None:
        count = data.count(MARK)
        if not count:
            return
        now, sent = time.perf_counter(), self.load.sent_at
        assert sent is not None
        times = sent.get(self.name, ())
        for place in range(self._marks, min(self._marks + count, len(times))):
            self.load.taken.delays.append(now - times[place])
        self._marks += count

    def _finish(self) -> None:
        taken = self.load.taken
        taken.answers += 1
        taken.latencies.append(time.perf_counter() - self._asked)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """`connections` askers for `seconds`, or until the requests are used up."""

    def __init__(self, requests: Iterator[tuple[bytes, bytes]], *, sent_at: dict[bytes, list[float]] | None) -> None:
        self.taken = Taken()
        self.sent_at = sent_at
        self._requests = requests
        self._open: set[Asker] = set()
        self._stopping = False
        self._done = asyncio.Event()

    def next(self) -> tuple[bytes, bytes] | None:
        return None if self._stopping else next(self._requests, None)

    def idle(self, asker: Asker) -> None:
        self.lost(asker)

    def lost(self, asker: Asker) -> None:
        self._open.discard(asker)
        if not self._open:
            self._done.set()

    async def run(
        self, port: int, connections: int, seconds: float, cpu: Callable[[], float], *, tls: bool = True
    ) -> Taken:
        loop = asyncio.get_running_loop()
        context = client_context() if tls else None
        everybody: list[Asker] = []
        for _ in range(connections):
            asker = Asker(self)
            self._open.add(asker)
            everybody.append(asker)
            await aiofastnet.create_connection(loop, functools.partial(_same, asker), "127.0.0.1", port, ssl=context)
        began, cpu_before = time.perf_counter(), cpu()  # handshakes are not what is measured
        for place, asker in enumerate(everybody):
            # paced streams begin one after the other: their steady course is measured, not a stampede
            loop.call_later(place / connections * PACE * STREAM_FRAMES if self.sent_at is not None else 0, asker.begin)
        loop.call_later(seconds, self._stop)
        await asyncio.wait_for(self._done.wait(), seconds + 60)
        self.taken.seconds, self.taken.cpu = time.perf_counter() - began, cpu() - cpu_before
        for asker in everybody:
            asker.transport.abort()
        return self.taken

    def _stop(self) -> None:
        self._stopping = True


def _same(asker: Asker) -> Asker:
    return asker


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def cpu_of(pid: int) -> float:
    """Seconds of processor time of a process and its children, all threads, to the nanosecond."""
    total = 0
    for one in family(pid):
        for task in Path(f"/proc/{one}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue
    return total / 1e9


def memory_of(pid: int) -> float:
    """Megabytes that are this process' alone or its share of (PSS), with its children."""
    total = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Peak:
    """The most memory a process and its children used while this was open."""

    def __init__(self, pid: int) -> None:
        self.megabytes = 0.0
        self._pid = pid

    def __enter__(self) -> Peak:
        self._looking = asyncio.create_task(self._look())
        return self

    def __exit__(self, *_: object) -> None:
        self._looking.cancel()

    async def _look(self) -> None:
        while True:
            self.megabytes = max(self.megabytes, memory_of(self._pid))
            await asyncio.sleep(0.5)


def family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue
    return found


# --- the upstream of plain gateways -----------------------------------------------------------------------------------


class Pacer:
    """Calls each stream 50 times a second, streams spread over the interval."""

    SLOTS = 20

    def __init__(self) -> None:
        self._slots: list[list[Callable[[], bool]]] = [[] for _ in range(self.SLOTS)]
        self._next = 0
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, step: Callable[[], bool]) -> None:
        """`step` sends one frame; True: there are more."""
        min(self._slots, key=len).append(step)
        if self._timer is None:
            self._at = asyncio.get_running_loop().time()
            self._tick()

    def _tick(self) -> None:
        place = self._next % self.SLOTS
        self._slots[place] = [step for step in self._slots[place] if step()]
        self._next += 1
        self._at += PACE / self.SLOTS
        if not any(self._slots):
            self._timer = None
        else:
            self._timer = asyncio.get_running_loop().call_at(self._at, self._tick)


class Upstream(asyncio.Protocol):
    """What an engine looks like to a plain gateway: 500 bytes of JSON, or 128 frames, at once or 50 a second."""

    def __init__(self, pacer: Pacer, sent_at: dict[bytes, list[float]]) -> None:
        self._pacer = pacer
        self._sent_at = sent_at
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            lower = data[:end].lower()
            at = lower.find(b"content-length:")
            size = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if at < 0 and b"chunked" in lower:
                finish = data.find(CHUNKED_END, end)
                if finish < 0:
                    break
                size = finish + 5 - end - 4
            if len(data) < end + 4 + size:
                break
            self._answer(data, end)
            data = data[end + 4 + size :]
        self._buffer = data

    def _answer(self, data: bytes, end: int) -> None:
        if b'"stream": true' not in data and b'"stream":true' not in data:
            self.transport.write(JSON_ANSWER)
            return
        at = data.find(b"name-")
        name = data[at : at + 16]
        if b"paced" in data[end : end + 2000]:
            self._paced(name)
        else:
            self.transport.write(STREAM_HEAD + EVENT * STREAM_FRAMES + DONE)

    def _paced(self, name: bytes) -> None:
        times = self._sent_at[name] = []
        self.transport.write(STREAM_HEAD)
        write = self.transport.write

        def step() -> bool:
            if self.transport.is_closing():
                return False
            times.append(time.perf_counter())
            write(EVENT)
            if len(times) < STREAM_FRAMES:
                return True
            write(DONE)
            return False

        self._pacer.add(step)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event() -> bytes:
    """A chunk of an OpenAI stream of FRAME_BYTES; the mark travels as text."""
    front = b'data: {"id":"x","object":"chat.completion.chunk","created":0,"model":"m","choices":[{"index":0,"delta":'
    front += b'{"content":"' + MARK
    back = b'"},"finish_reason":null}]}\n\n'
    return _chunk(front + b"x" * (FRAME_BYTES - len(front) - len(back)) + back)


JSON_BODY = (
    b'{"id":"x","object":"chat.completion","created":0,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}'
)
JSON_BODY = JSON_BODY % (b"x" * (ANSWER_BYTES - len(JSON_BODY) + 2))
JSON_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(JSON_BODY),
    JSON_BODY,
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = _event()
DONE = _chunk(b"data: [DONE]\n\n") + CHUNKED_END


async def serve_upstream(pacer: Pacer, sent_at: dict[bytes, list[float]]) -> tuple[asyncio.Server, int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(pacer, sent_at), "127.0.0.1", 0, backlog=4096)
    return server, int(server.sockets[0].getsockname()[1])


def plain_requests(kind: str) -> Iterator[tuple[bytes, bytes]]:
    """(name, request) of an OpenAI call with 1 kB of prompt: kind is json, burst or paced."""
    count = 0
    while True:
        count += 1
        name = b"name-%011d" % count
        stream = b"false" if kind == "json" else b"true"
        content = b"%b %b " % (name, kind.encode()) + b"leaf " * 195
        body = b'{"model":"m","stream": %b,"messages":[{"role":"user","content":"%b"}]}' % (stream, content)
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer sk-x\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        yield name, head + body
