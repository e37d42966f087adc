# SPDX-License-Identifier: Apache-2.0
"""The local OpenAI endpoint: what to answer to each HTTP request (spec CLI-1, CLI-9). Sockets are
`adapters/http_server.py`'s.

No CORS, and checks of the Host, Origin and Sec-Fetch-Site headers: a page in the user's browser, or a name rebound to
this machine, reads nothing and spends nothing. Any program of this machine that reaches the port may spend the budget;
that is why it binds to loopback.

Always: the body's end is the end of the checks, so an answer that fails one is cut, never just short.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from traceback import extract_tb
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from bombyx.errors import BadRequest, BombyxError, ConfigError, LocalError
from bombyx.ports import HttpExchange
from bombyx.roles.client.core import Client
from bombyx.roles.client.problem import problem_body, problem_headers, status_of
from bombyx.roles.client.receipts import summary
from bombyx.roles.client.response import ClientResponse
from bombyx.roles.client.verification import CSP, page, verification

log = logging.getLogger(__name__)
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_JSON: Final = {"content-type": "application/json", "cache-control": "no-store", "x-content-type-options": "nosniff"}
_HTML: Final = _JSON | {"content-type": "text/html; charset=utf-8", "content-security-policy": CSP}


def check_host(host: str, *, expose: bool) -> None:
    """Refuse to listen where others can reach us, unless told to."""
    if expose or host == "localhost" or _is_loopback(host):
        return
    raise ConfigError(
        f"{host} is not a loopback address: whoever reaches the endpoint spends this client's budget and reads its"
        " answers. Say --expose if that is meant",
        rule="CLI-9",
    )


class Endpoint:
    """Answers HTTP requests with a `Client`. `handle` is an `HttpHandler`."""

    def __init__(self, client: Client, *, hosts: frozenset[str] = frozenset(), any_host: bool = False) -> None:
        self._client = client
        self._hosts = LOOPBACK_NAMES | hosts | set(client.settings.endpoint_hosts)
        self._any_host = any_host
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: HttpExchange) -> None:
        """Start the answer; cancel it when the application goes."""
        task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.on_disconnect = lambda: _cancel(task)

    async def _serve(self, exchange: HttpExchange) -> None:
        try:
            self._check_origin(exchange)
            if not await self._local(exchange):
                await self._forward(exchange)
        except BombyxError as error:
            _refuse(exchange, error)
        except asyncio.CancelledError:
            pass  # the application went; what must go on goes on in the client
        except Exception as error:  # noqa: BLE001
            # The exception's own words stay out of the log: they may hold what was asked.
            where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in extract_tb(error.__traceback__)[:-6:-1])
            log.error("bug while serving %s: %s in %s", exchange.request.path, type(error).__name__, where)
            _refuse(exchange, LocalError("a bug in the client; its log has the trace"))

    def _check_origin(self, exchange: HttpExchange) -> None:
        host = _host_name(exchange.request.headers.get("host", ""))
        if not self._any_host and host not in self._hosts:
            raise BadRequest(f"host {host[:80]!r} is not served here", status=403, rule="CLI-9", code="forbidden_host")
        if _from_another_site(exchange.request.headers, host):
            raise BadRequest("a page of another site may not ask here", status=403, rule="CLI-9", code="forbidden_site")

    async def _local(self, exchange: HttpExchange) -> bool:
        """Routes that no proxy is asked for. False when it is none of these."""
        request, path = exchange.request, exchange.request.path
        if path == "/healthz":
            exchange.respond(200, _JSON, orjson.dumps({"status": "ok", "proxies": len(self._client.lines)}))
        elif path == "/verification":
            value = await verification(self._client)
            if _wants_json(request.query, request.headers.get("accept", "")):
                exchange.respond(200, _JSON, orjson.dumps(value))
            else:
                exchange.respond(200, _HTML, page(value))
        elif path == "/v1/receipts":
            rows = [summary(kept) for kept in await self._client.book.newest()]
            exchange.respond(200, _JSON, orjson.dumps({"object": "list", "data": rows}))
        elif path.startswith("/v1/receipts/"):
            await self._receipt(exchange, path.removeprefix("/v1/receipts/"))
        else:
            return False
        return True

    async def _receipt(self, exchange: HttpExchange, name: str) -> None:
        name, _, what = name.partition("/")
        if what == "proof":
            proof = await self._client.book.proof(name, with_usage=False)
            exchange.respond(200, _JSON | {"content-type": "application/cbor"}, proof.encode())
        elif what == "verify":
            checks = await self._client.book.verify(name, policy=self._client.policy)
            exchange.respond(200, _JSON, orjson.dumps({"checks": [check.as_dict() for check in checks]}))
        elif what:
            raise BadRequest(f"unknown path {exchange.request.path[:80]!r}", status=404, code="not_found", rule="CLI-1")
        else:
            _, kept = await self._client.book.get(name)
            exchange.respond(200, _JSON, orjson.dumps(summary(kept)))

    async def _forward(self, exchange: HttpExchange) -> None:
        request = exchange.request
        target = f"{request.path}?{request.query}" if request.query else request.path
        response = await self._client.request(request.method, target, request.headers, request.body)
        headers = _JSON | response.headers
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            exchange.respond(response.status, headers, await response.read())
            return
        exchange.start(response.status, headers)
        await _stream(exchange, response)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _stream(exchange: HttpExchange, response: ClientResponse) -> None:
    try:
        async for piece in response.body:
            exchange.write(piece)
            if exchange.paused:
                await exchange.drain()
        exchange.end()
    except BombyxError as error:
        log.warning("answer cut: %s", error)
        if response.between_events:  # inside an event our words would only spoil what is there
            exchange.write(b"data: " + problem_body(error) + b"\n\n")
        exchange.abort()
    finally:
        await asyncio.shield(response.aclose())


def _refuse(exchange: HttpExchange, error: BombyxError) -> None:
    if exchange.started:
        exchange.abort()
    else:
        exchange.respond(status_of(error), _JSON | problem_headers(error, sent=False), problem_body(error))


def _host_name(host: str) -> str:
    """The Host header without its port, in lower case; brackets of IPv6 removed."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _from_another_site(headers: Mapping[str, str], host: str) -> bool:
    """Whether a browser says that another site's page asks. A form or `no-cors` request needs no CORS to be sent."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and _host_name(origin.partition("://")[2]) != host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wants_json(query: str, accept: str) -> bool:
    chosen: Any = parse_qs(query).get("format", [""])[0]
    if chosen:
        return bool(chosen == "json")
    return "application/json" in accept and "text/html" not in accept
