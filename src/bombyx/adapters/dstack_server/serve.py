# SPDX-License-Identifier: Apache-2.0
"""The simulated guest agent on its sockets: `dstack.sock`, `tappd.sock`, and both on one HTTP port.

POST a JSON object to /METHOD or /prpc/METHOD (dstack.sock) and /prpc/Tappd.METHOD (tappd.sock); GET takes the
arguments from the query. Errors are `{"error": text}`, 400 or 404, as the real agent answers.

Always: TCP is bound to loopback; sockets are readable by our own user alone; a stale socket file is replaced, one
that somebody listens on is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from bombyx.adapters.dstack_server.guest import SimulatedGuest
from bombyx.adapters.dstack_server.methods import GuestAgent, call
from bombyx.adapters.http_server import HttpLimits, HttpServer
from bombyx.errors import BombyxError, ConfigError, LocalError, MalformedMessage
from bombyx.ports import Clock, HttpExchange, HttpRequest

log = logging.getLogger("bombyx.enclave")
MAX_BODY: Final = 1 << 20  # bytes of one call
DEFAULT_PORT: Final = 8090  # where ElizaOS's TEE plugin looks in LOCAL mode
_JSON: Final = {"content-type": "application/json"}
_LEGACY: Final = "/prpc/Tappd."
_CURRENT: Final = "/prpc/DstackGuest."


class AgentServer:
    """One simulated guest on any number of sockets."""

    def __init__(self, guest: SimulatedGuest, clock: Clock) -> None:
        self.agent = GuestAgent(guest, clock)
        self.paths: tuple[Path, ...] = ()
        self._servers: list[HttpServer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve_unix(self, folder: Path) -> None:
        """`dstack.sock` and `tappd.sock` in `folder`."""
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        for name in ("dstack.sock", "tappd.sock"):
            path = folder / name
            await asyncio.to_thread(_free, path)
            server = self._server()
            await server.start_unix(path)
            self.paths += (path,)

    async def serve_http(self, port: int, host: str = "127.0.0.1") -> int:
        """Both on one loopback port; which."""
        server = self._server()
        await server.start(host, port)
        return server.port

    async def close(self) -> None:
        for server in self._servers:
            await server.close(grace=1.0)
        for path in self.paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _server(self) -> HttpServer:
        server = HttpServer(self._handle, limits=HttpLimits(max_body=MAX_BODY))
        self._servers.append(server)
        return server

    def _handle(self, exchange: HttpExchange) -> None:
        task = asyncio.ensure_future(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: HttpExchange) -> None:
        request = exchange.request
        table, name = self._method(request.path)
        try:
            answer, status = await call(table, name, _arguments(request)), 200
        except BombyxError as error:
            answer, status = {"error": error.message}, 404 if error.status == 404 else 400
        log.info("%s: %d", name[:64], status)
        exchange.respond(status, _JSON, orjson.dumps(answer))

    def _method(self, path: str) -> tuple[dict[str, Callable[..., Any]], str]:
        if path.startswith(_LEGACY):
            return self.agent.legacy, path.removeprefix(_LEGACY)
        for prefix in (_CURRENT, "/prpc/", "/"):
            if path.startswith(prefix):
                return self.agent.current, path.removeprefix(prefix)
        return self.agent.current, path


def _arguments(request: HttpRequest) -> Any:
    if request.method == "GET":
        return dict(parse_qsl(request.query))
    try:
        return orjson.loads(request.body or b"{}")
    except orjson.JSONDecodeError:
        raise MalformedMessage("a call's arguments are not JSON", rule="ENC-8") from None


def _free(path: Path) -> None:
    """Remove what a killed process left; refuse to take a socket from one that runs."""
    if len(str(path).encode()) > 100:  # sun_path has 108 bytes, and the kernel says only "invalid"
        raise ConfigError(f"the path of a UNIX socket has at most 100 bytes: {path}")
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.settimeout(1.0)
        probe.connect(str(path))
        raise LocalError(f"somebody listens on {path} already")
    path.unlink()
