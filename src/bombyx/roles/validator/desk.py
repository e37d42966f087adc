# SPDX-License-Identifier: Apache-2.0
"""A validator's page: its report, evidence it accuses with, its part of certificates, answers handed over to it.

    GET  /healthz, /metrics, /v1/report
    GET  /v1/evidence/SHA256          the evidence of a case, byte for byte as its digest stands on chain
    GET  /v1/certificates/CASE/ROUND  65 bytes: our signature on the verdict we committed to, once all have committed
    GET  /v1/enclave                  the Evidence bundle whose keyset holds the key that packages are sealed to
    POST /v1/opt-in                   one AuditPackage, sealed to it (spec AUD-57)

Sockets and parsing are the HTTP adapter's. Always: nothing here shows a word of a prompt or an answer, but canaries'
in evidence that was already named on chain.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from bombyx.errors import BadRequest, BombyxError, Peer, PeerError, Unavailable
from bombyx.ports import HttpExchange
from bombyx.protocol.primitives import Digest

JSON: Final = {"content-type": "application/json", "cache-control": "no-store"}
BYTES: Final = {"content-type": "application/octet-stream", "cache-control": "no-store"}
CBOR: Final = {"content-type": "application/cbor", "cache-control": "public, max-age=31536000, immutable"}
TEXT: Final = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
EVIDENCE, CERTIFICATES, OPT_IN = "/v1/evidence/", "/v1/certificates/", "/v1/opt-in"
log = logging.getLogger("bombyx.validator")


class Desk:
    """Routes. What stands behind them comes in as functions."""

    def __init__(
        self,
        *,
        report: Callable[[], Awaitable[dict[str, Any]]],
        metrics: Callable[[], bytes],
        evidence: Callable[[Digest], Awaitable[bytes | None]],
        certificate: Callable[[int, int], Awaitable[bytes]],
        enclave: Callable[[], bytes | None],
        opt_in: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._report = report
        self._metrics = metrics
        self._evidence = evidence
        self._certificate = certificate
        self._enclave = enclave
        self._opt_in = opt_in
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: HttpExchange) -> None:
        """The HTTP server's handler."""
        path, method = exchange.request.path, exchange.request.method
        if path == OPT_IN and method == "POST":
            self._spawn(exchange, self._take(exchange))
        elif method not in ("GET", "HEAD"):
            _refuse(exchange, BadRequest("this page takes GET", status=405, peer=Peer.CLIENT, rule="AUD-58"))
        elif path == "/healthz":
            exchange.respond(200, JSON, b'{"ok":true}')
        elif path == "/metrics":
            exchange.respond(200, TEXT, self._metrics())
        elif path == "/v1/report":
            self._spawn(exchange, self._show_report(exchange))
        elif path == "/v1/enclave":
            self._show_enclave(exchange)
        elif path.startswith(EVIDENCE):
            self._spawn(exchange, self._show_evidence(exchange, path.removeprefix(EVIDENCE)))
        elif path.startswith(CERTIFICATES):
            self._spawn(exchange, self._show_certificate(exchange, path.removeprefix(CERTIFICATES)))
        else:
            _refuse(exchange, _unknown())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, exchange: HttpExchange, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(exchange, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, exchange: HttpExchange, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BombyxError as error:
            _refuse(exchange, error)

    async def _show_report(self, exchange: HttpExchange) -> None:
        exchange.respond(200, JSON, json.dumps(await self._report()).encode())

    def _show_enclave(self, exchange: HttpExchange) -> None:
        bundle = self._enclave()
        if bundle is None:
            _refuse(exchange, Unavailable("no enclave here: answers are not taken", rule="AUD-57"))
        else:
            exchange.respond(200, BYTES, bundle)

    async def _show_evidence(self, exchange: HttpExchange, name: str) -> None:
        try:
            digest = Digest.parse(name)
        except ValueError:
            raise _unknown() from None
        data = await self._evidence(digest)
        if data is None:
            raise _unknown()
        exchange.respond(200, CBOR, data)

    async def _show_certificate(self, exchange: HttpExchange, name: str) -> None:
        case, _, round_ = name.partition("/")
        if not (case.isascii() and case.isdigit() and round_.isascii() and round_.isdigit() and len(name) < 24):
            raise _unknown()
        exchange.respond(200, BYTES, await self._certificate(int(case), int(round_)))

    async def _take(self, exchange: HttpExchange) -> None:
        await self._opt_in(exchange.request.body)
        exchange.respond(202, JSON, b'{"taken":true}')


def _unknown() -> BadRequest:
    return BadRequest("there is no such page", status=404, peer=Peer.CLIENT, rule="AUD-58", code="not_found")


def _refuse(exchange: HttpExchange, error: BombyxError) -> None:
    if exchange.started or exchange.disconnected:
        return
    status = error.status if isinstance(error, PeerError | Unavailable) else 500
    exchange.respond(status, JSON, json.dumps({"error": error.as_dict()}).encode())
