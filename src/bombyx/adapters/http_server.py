# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 server on `asyncio.Protocol` and httptools (llhttp): listens, limits, sweeps, closes.

It is NOT a framework: no routes, no middleware; one handler decides everything. The proxy and a client's local
endpoint stand on it. `http_connection.py` reads, `http_exchange.py` answers.

Always: a handler sees a request only when it is whole, unambiguous and within `HttpLimits`; nobody holds a
connection without making progress.
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path

from bombyx.adapters.http_connection import HttpConnection, HttpLimits, Upgrade
from bombyx.adapters.http_heads import Heads
from bombyx.errors import LocalError
from bombyx.ports import HttpHandler

__all__ = ["HttpLimits", "HttpServer", "Upgrade"]


class HttpServer:
    """Listens, and sweeps out connections that make no progress."""

    def __init__(
        self,
        handler: HttpHandler,
        *,
        limits: HttpLimits | None = None,
        upgrades: Mapping[str, Upgrade] | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits or HttpLimits()
        self.upgrades = dict(upgrades or {})
        self.connections: set[HttpConnection] = set()
        self.heads = Heads()
        self.buffered = 0
        self.closing = False
        self.date = b""
        self.handed_over: list[asyncio.Transport] = []  # connections that speak another protocol now
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(
        self, host: str, port: int, *, ssl: ssl_module.SSLContext | None = None, reuse_port: bool = False
    ) -> None:
        try:
            self._server = await _listen(lambda: HttpConnection(self), host, port, ssl, reuse_port)
        except OSError as error:
            raise LocalError(f"cannot listen on {host}:{port}: {error.strerror}", rule="HTTP-1") from None
        self._sweep()

    async def start_unix(self, path: Path) -> None:
        """Listen on a UNIX socket, reachable by our own user alone. One that nobody listens on any more is replaced."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(lambda: HttpConnection(self), path)
            await asyncio.to_thread(path.chmod, 0o600)
        except OSError as error:
            raise LocalError(f"cannot listen on {path}: {error.strerror}", rule="HTTP-1") from None
        self._sweep()

    @property
    def port(self) -> int:
        """The port listened on (useful when 0 was asked for)."""
        if self._server is None:
            raise LocalError("the server is not started", rule="HTTP-1")
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, *, grace: float = 5.0) -> None:
        """Stop accepting, let answers under way end for up to `grace` seconds, then cut."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        while self.connections and loop.time() < end:  # noqa: ASYNC110 - a set has no event; this happens once
            await asyncio.sleep(0.01)
        for transport in [c.transport for c in self.connections] + self.handed_over:
            transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            await self._server.wait_closed()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        for connection in [c for c in self.connections if c.deadline < now]:
            connection.expire()
        self.handed_over = [t for t in self.handed_over if not t.is_closing()]
        limits = self.limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.keep_alive, limits.write_timeout)
        self._sweeper = loop.call_later(min(0.5, shortest / 4), self._sweep)


async def _listen(
    factory: Callable[[], asyncio.Protocol],
    host: str,
    port: int,
    ssl: ssl_module.SSLContext | None,
    reuse_port: bool,
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if ssl is not None:
        try:
            import aiofastnet  # comes with picows: TLS at half uvloop's cost; clients do without
        except ImportError:
            pass
        else:
            server: asyncio.Server = await aiofastnet.create_server(
                loop, factory, host, port, ssl=ssl, backlog=4096, reuse_port=reuse_port
            )
            return server
    return await loop.create_server(factory, host, port, ssl=ssl, backlog=4096, reuse_port=reuse_port)
