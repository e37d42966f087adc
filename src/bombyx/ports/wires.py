# SPDX-License-Identifier: Apache-2.0
"""How roles reach each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol


class ProxyResponse(Protocol):
    """A proxy's answer to one sealed request: status, headers, and bytes as they come."""

    status: int
    headers: dict[str, str]

    def body(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class ProxyTransport(Protocol):
    """How a client reaches one proxy.

    - Must raise `Unavailable` when the proxy cannot be reached or the connection breaks before the head.
    - A connection that breaks inside the body must raise `StreamTruncated` out of `body()`.
    """

    async def get(self, path: str) -> tuple[int, bytes]: ...

    async def post(self, path: str, content_type: str, body: bytes) -> ProxyResponse: ...

    async def close(self) -> None: ...


class Link(Protocol):
    """One WebSocket between a worker and a proxy, seen from either end: whole messages of link frames.

    - `send` must not block the caller's loop; `buffered` tells how many bytes wait (back-pressure is the caller's).
    - Messages are taken in one of two ways, chosen once: `messages()` for a task, `attach()` for callbacks (hot paths).
    - `messages` must end (not raise) when the other side closes; `on_close` must be called exactly once.
    - Must stop reading from the network when the reader falls behind, rather than grow.
    """

    def send(self, data: bytes) -> None: ...

    @property
    def buffered(self) -> int: ...

    async def drain(self) -> None: ...

    def messages(self) -> AsyncIterator[bytes]: ...

    def attach(self, on_message: Callable[[bytes], None], on_close: Callable[[], None]) -> None: ...

    async def close(self) -> None: ...


class Dialer(Protocol):
    """How a worker reaches a proxy. Must raise `Unavailable` when it cannot."""

    async def dial(self, url: str) -> Link: ...
