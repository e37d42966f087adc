# SPDX-License-Identifier: Apache-2.0
"""httpx transports that answer inside the process: the stock `openai` classes over bombyx, without any endpoint.

`AsyncBombyxTransport` runs on the caller's loop. `BombyxTransport` (synchronous) runs everything on one private
event loop in one daemon thread, started with the first request. Both build their client lazily: constructing one
does no I/O.

A failure before the answer is an HTTP answer in OpenAI's shape, so that `openai` raises its own class for the
status; `error.response.extensions["bombyx_error"]` is the typed error. A failure inside a stream comes out of the
application's iterator: `openai` 3 wraps it as `APIConnectionError` whose `__cause__` is `AnswerCut`; `openai` 1
lets `AnswerCut` itself through.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import httpx

from bombyx.errors import BombyxError, LocalError

T = TypeVar("T")


class Answered(Protocol):
    """What a client gives for one request."""

    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]
    error: BombyxError | None

    async def aclose(self) -> None: ...


class Requester(Protocol):
    """A started client."""

    async def request(self, method: str, path: str, headers: Mapping[str, str] | None, body: bytes) -> Answered: ...

    async def close(self) -> None: ...


Build = Callable[[], Awaitable[Requester]]


class AnswerCut(httpx.RemoteProtocolError):
    """A streamed answer that failed a check or stopped early. `error` is the typed reason (`StreamTruncated`, ...)."""

    def __init__(self, error: BombyxError) -> None:
        super().__init__(str(error))
        self.error = error


class AsyncBombyxTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`. Must be used on one event loop, as connections and tasks belong to it."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._client: Requester | None = None
        self._lock = asyncio.Lock()

    async def client(self) -> Requester:
        """The client behind, built when first needed."""
        async with self._lock:
            if self._client is None:
                self._client = await self._build()
            return self._client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        client = await self.client()
        answered = await client.request(request.method, request.url.path, None, body)
        return _response(request, answered, _AsyncBody(answered))

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


class BombyxTransport(httpx.BaseTransport):
    """For `httpx.Client`. Any number of threads may use it."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._client: Requester | None = None
        self._thread: _LoopThread | None = None
        self._lock = threading.Lock()
        atexit.register(_close_quietly, weakref.ref(self))

    def client(self) -> Requester:
        """The client behind, built when first needed."""
        with self._lock:
            if self._thread is None:
                self._thread = _LoopThread()
            if self._client is None:
                self._client = self._thread.run(_awaited(self._build))
            return self._client

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something of the client's on its own loop, e.g. `transport.run(client.book.newest())`."""
        if self._thread is None:
            raise LocalError("the transport has not served anything yet")
        return self._thread.run(coroutine)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        client = self.client()
        assert self._thread is not None
        answered = self._thread.run(client.request(request.method, request.url.path, None, body))
        return _response(request, answered, _SyncBody(self._thread, answered))

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            thread, self._thread = self._thread, None
        if thread is not None:
            if client is not None:
                thread.run(client.close())
            thread.stop()


class _LoopThread:
    """One event loop in one daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="bombyx", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result, from another thread. An interrupted wait cancels the work."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, answered: Answered) -> None:
        self._answered = answered

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answered.body:
                yield piece
        except BombyxError as error:
            raise AnswerCut(error) from error

    async def aclose(self) -> None:
        await self._answered.aclose()


class _SyncBody(httpx.SyncByteStream):
    def __init__(self, thread: _LoopThread, answered: Answered) -> None:
        self._thread = thread
        self._answered = answered

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                piece = self._thread.run(_next(self._answered.body))
            except BombyxError as error:
                raise AnswerCut(error) from error
            if piece is None:
                return
            yield piece

    def close(self) -> None:
        self._thread.run(self._answered.aclose())


def _response(
    request: httpx.Request, answered: Answered, stream: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpx.Response:
    extensions = {"bombyx_error": answered.error} if answered.error is not None else {}
    return httpx.Response(
        answered.status, headers=answered.headers, stream=stream, request=request, extensions=dict(extensions)
    )


async def _next(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)


async def _awaited(build: Build) -> Requester:
    return await build()


def _close_quietly(reference: weakref.ref[BombyxTransport]) -> None:
    """At the interpreter's end: let answers that are being checked be settled."""
    transport = reference()
    if transport is not None:
        try:
            transport.close()
        except BombyxError:
            pass  # there is nobody left to tell
