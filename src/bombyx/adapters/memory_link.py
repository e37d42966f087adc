# SPDX-License-Identifier: Apache-2.0
"""Two ends of a worker link inside one process: `ports.Link` without a network, for tests and the one-process run.

It is no network: nothing is lost or reordered, and `buffered` counts what the other end has not yet taken, as a
socket's send buffer would. `cut()` breaks it the way a dying peer does: both sides' messages end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from bombyx.errors import Unavailable


class _Pipe:
    """One direction. `take` waits for a message; None after the end."""

    __slots__ = ("_changed", "closed", "size", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.closed = False
        self._changed = asyncio.Event()

    def put(self, data: bytes) -> None:
        if self.closed:
            return
        self.waiting.append(data)
        self.size += len(data)
        self._changed.set()

    def close(self) -> None:
        self.closed = True
        self._changed.set()

    async def take(self) -> bytes | None:
        while not self.waiting:
            if self.closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        data = self.waiting.popleft()
        self.size -= len(data)
        self._changed.set()
        return data

    async def emptied(self) -> None:
        while self.waiting and not self.closed:
            self._changed.clear()
            await self._changed.wait()


class MemoryLink:
    """One end. What one end sends the other end's `messages` yields, in order."""

    __slots__ = ("_inbox", "_outbox", "_pump")

    def __init__(self, inbox: _Pipe, outbox: _Pipe) -> None:
        self._pump: asyncio.Task[None] | None = None
        self._inbox = inbox
        self._outbox = outbox

    def send(self, data: bytes) -> None:
        self._outbox.put(bytes(data))

    @property
    def buffered(self) -> int:
        return self._outbox.size

    async def drain(self) -> None:
        await self._outbox.emptied()

    async def messages(self) -> AsyncIterator[bytes]:
        while (data := await self._inbox.take()) is not None:
            yield data

    def attach(self, on_message: Callable[[bytes], None], on_close: Callable[[], None]) -> None:
        self._pump = asyncio.ensure_future(self._pump_to(on_message, on_close))

    async def _pump_to(self, on_message: Callable[[bytes], None], on_close: Callable[[], None]) -> None:
        async for message in self.messages():
            on_message(message)
        on_close()

    async def close(self) -> None:
        self.cut()

    def cut(self) -> None:
        """Break both directions at once. What was sent before can still be read."""
        self._inbox.close()
        self._outbox.close()


def memory_link_pair() -> tuple[MemoryLink, MemoryLink]:
    """(worker's end, proxy's end)."""
    down, up = _Pipe(), _Pipe()
    return MemoryLink(down, up), MemoryLink(up, down)


class MemoryDialer:
    """`ports.Dialer` whose "network" is a table of accept functions: url -> what a proxy does with a new link."""

    def __init__(self) -> None:
        self._listeners: dict[str, Callable[[MemoryLink], Awaitable[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.dialled = 0

    def listen(self, url: str, accept: Callable[[MemoryLink], Awaitable[None]]) -> Self:
        self._listeners[url] = accept
        return self

    def unlisten(self, url: str) -> None:
        self._listeners.pop(url, None)

    async def dial(self, url: str) -> MemoryLink:
        self.dialled += 1
        accept = self._listeners.get(url)
        if accept is None:
            raise Unavailable(f"nobody listens at {url}")
        ours, theirs = memory_link_pair()
        task = asyncio.ensure_future(_run(accept, theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ours


async def _run(accept: Callable[[MemoryLink], Awaitable[None]], link: MemoryLink) -> None:
    try:
        await accept(link)
    finally:
        link.cut()
