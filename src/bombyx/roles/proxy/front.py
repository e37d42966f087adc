# SPDX-License-Identifier: Apache-2.0
"""The proxy's routes, and its errors as problems (RFC 9457). Sockets and parsing are the HTTP adapter's.

Always: an error says what, whose fault and which rule, never a byte of what was sent; before the first frame it is a
status and a problem, after it a HINT in the stream (`dispatch.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final

from bombyx.errors import BadRequest, BombyxError, HeldElsewhere, KeyConfigError, PaymentError, Peer, Unavailable
from bombyx.ports import Clock, HttpExchange
from bombyx.protocol.pay.payee import Account
from bombyx.protocol.primitives import Digest, RequestId
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.admission import SHOWN_CIPHERTEXT, Admission, Job
from bombyx.roles.proxy.census import Census
from bombyx.roles.proxy.closing import Closing
from bombyx.roles.proxy.directory import Noticeboard, Shelf
from bombyx.roles.proxy.dispatch import Dispatcher
from bombyx.roles.proxy.metrics import Metrics
from bombyx.roles.proxy.opt_in import PATH as OPT_IN
from bombyx.roles.proxy.opt_in import OptInRelay
from bombyx.roles.proxy.view import Observer, ProxyView, Sent, Views

log = logging.getLogger("bombyx.proxy")

JSON: Final = {"content-type": "application/json", "cache-control": "no-store"}
CBOR: Final = {"content-type": "application/cbor", "cache-control": "no-store"}
BLOB: Final = {"content-type": "application/cbor", "cache-control": "public, max-age=31536000, immutable"}
TEXT: Final = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
OHTTP_KEY: Final = "https://iana.org/assignments/http-problem-types#ohttp-key"
OCTETS: Final = {"content-type": "application/octet-stream", "cache-control": "no-store"}
BLIND: Final = "/v1/blind"
CHANNEL: Final = "/v1/channel/"
CLOSE: Final = "/close"


class Front:
    """Every request a proxy gets, worker links aside."""

    def __init__(
        self,
        admission: Admission,
        dispatcher: Dispatcher,
        accounts: Accounts,
        board: Noticeboard,
        shelf: Shelf,
        metrics: Metrics,
        clock: Clock,
        *,
        closing: Closing,
        census: Census,
        expose_views: bool,
        observer: Observer | None = None,
        opt_ins: OptInRelay | None = None,
    ) -> None:
        self._opt_ins = opt_ins
        self._closing = closing
        self._census = census
        self._admission = admission
        self._dispatcher = dispatcher
        self._accounts = accounts
        self._board = board
        self._shelf = shelf
        self._metrics = metrics
        self._clock = clock
        self._views = Views() if expose_views else None
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    @property
    def open(self) -> int:
        return self._admission.open

    def handle(self, exchange: HttpExchange) -> None:
        """The HTTP server's handler."""
        path, method = exchange.request.path, exchange.request.method
        try:
            if path == BLIND:
                _allow(method, "POST")
                self._begin(exchange)
            elif path.startswith(CHANNEL) and path.endswith(CLOSE):
                _allow(method, "POST")
                self._spawn(self._close(exchange, _digest(path.removeprefix(CHANNEL).removesuffix(CLOSE))))
            elif path.startswith(OPT_IN) and self._opt_ins is not None:
                _allow(method, "GET", "HEAD", "POST")
                self._spawn(self._opt_in(exchange, self._opt_ins, path.removeprefix(OPT_IN)))
            else:
                _allow(method, "GET", "HEAD")
                self._page(exchange, path)
        except BombyxError as error:
            self._refuse(exchange, error)

    async def _opt_in(self, exchange: HttpExchange, relay: OptInRelay, name: str) -> None:
        """A client's answer on its way to a validator, or that validator's evidence; neither is read here."""
        try:
            if exchange.request.method == "POST":
                exchange.respond(await relay.take(name, exchange.request.body), JSON)
            else:
                exchange.respond(200, OCTETS, await relay.evidence(name))
        except BombyxError as error:
            self._refuse(exchange, error)

    # --- pages ---

    def _page(self, exchange: HttpExchange, path: str) -> None:
        if path == "/v1/directory":
            exchange.respond(200, CBOR, self._board.directory())
        elif path.startswith("/v1/blob/"):
            self._blob(exchange, path.removeprefix("/v1/blob/"))
        elif path.startswith(CHANNEL):
            channel = _digest(path.removeprefix(CHANNEL))
            if channel in self._accounts.book:
                self._channel(exchange, self._accounts.account(channel), channel)
            else:
                self._spawn(self._stored_channel(exchange, channel))
        elif path.startswith("/v1/view/") and self._views is not None:
            self._view(exchange, self._views, path.removeprefix("/v1/view/"))
        elif path == "/v1/info":
            exchange.respond(200, JSON, _json(self._board.info()))
        elif path == "/network":
            self._spawn(self._network(exchange))
        elif path == "/healthz":
            exchange.respond(503 if self.draining else 200, JSON, _json({"ok": not self.draining, "open": self.open}))
        elif path == "/metrics":
            self._metrics.open.set(self.open)
            exchange.respond(200, TEXT, self._metrics.text())
        else:
            raise BadRequest("there is no such page", status=404, peer=Peer.CLIENT, rule="PROXY-1", code="not_found")

    def _blob(self, exchange: HttpExchange, name: str) -> None:
        blob = self._shelf.get(_digest(name))
        if blob is None:
            raise BadRequest("no such blob here", status=404, peer=Peer.CLIENT, rule="PROXY-1", code="not_found")
        exchange.respond(200, BLOB, blob)

    async def _stored_channel(self, exchange: HttpExchange, channel: Digest) -> None:
        """A channel that this process does not keep: what the store says of it."""
        try:
            account = await self._accounts.stored(channel)
            if account is None:
                raise BadRequest("no such channel here", status=404, peer=Peer.CLIENT, rule="PAY-2", code="not_found")
            self._channel(exchange, account, channel)
        except BombyxError as error:
            self._refuse(exchange, error)

    def _channel(self, exchange: HttpExchange, account: Account, channel: Digest) -> None:
        told = {
            "channel": channel.hex(),
            "ceiling": account.ceiling,
            "charged": account.charged,
            "claimed": account.claimed,
            "reserved": account.reserved,
            "in_flight": account.in_flight,
            "phase": account.phase.name.lower(),
        }
        exchange.respond(200, JSON, _json(told))

    async def _network(self, exchange: HttpExchange) -> None:
        exchange.respond(200, JSON, _json(self._board.network() | await self._census.counts()))

    async def _close(self, exchange: HttpExchange, channel: Digest) -> None:
        try:
            exchange.respond(200, JSON, _json(await self._closing.close(channel, exchange.request.body)))
        except BombyxError as error:
            self._refuse(exchange, error)

    def _view(self, exchange: HttpExchange, views: Views, name: str) -> None:
        try:
            view = views.get(RequestId.parse(name))
        except ValueError:
            view = None
        if view is None:
            raise BadRequest("no such request here", status=404, peer=Peer.CLIENT, rule="PROXY-1", code="not_found")
        exchange.respond(200, JSON, _json(view.as_dict()))

    # --- sealed requests ---

    def _begin(self, exchange: HttpExchange) -> None:
        if self.draining:
            raise Unavailable("this proxy is shutting down", retry_after=5.0, rule="PROXY-6")
        self._admission.check_room(exchange)
        # Counted here, not when the task runs: what arrives in one turn of the loop must not all find room.
        self._admission.open += 1
        self._admission.held_bytes += len(exchange.request.body)
        self._spawn(self._blind(exchange))

    async def _blind(self, exchange: HttpExchange) -> None:
        """One sealed request, from its last byte to the last byte of its answer."""
        arrived, size = self._clock.monotonic(), len(exchange.request.body)
        admission = self._admission
        self._metrics.request_bytes.inc(size)
        view: ProxyView | None = None
        try:
            job = await admission.admit(exchange, arrived)
            view = self._saw(job)
            await self._dispatcher.run(job, view)
            self._metrics.requests.labels(view.outcome).inc()
        except BombyxError as error:
            self._metrics.requests.labels("refused").inc()
            if view is not None:
                view.outcome = error.code
            self._refuse(exchange, error)
        finally:
            admission.open -= 1
            admission.held_bytes -= size
            seconds = self._clock.monotonic() - arrived
            self._metrics.duration.observe(seconds)
            if view is not None:
                view.seconds = seconds

    def _saw(self, job: Job) -> ProxyView:
        view = ProxyView(request_id=job.meta.request_id, started_at=self._clock.now())
        if self._observer is not None:
            self._observer(job.meta.request_id, "envelope", job.exchange.request.body)
        if self._views is not None:
            view.sent = _sent(job)
            self._views.add(view)
        return view

    def _refuse(self, exchange: HttpExchange, error: BombyxError) -> None:
        self._metrics.refused.labels(error.code).inc()
        if exchange.started:
            exchange.abort()
            return
        status, headers, body = problem(error)
        exchange.respond(status, headers, body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request ended in %s; this is a fault of the proxy", type(error).__name__, exc_info=error)

    async def settled(self, seconds: float) -> None:
        """Wait until no request is open, at most so long."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _sent(job: Job) -> Sent:
    envelope, meta = job.envelope, job.meta
    return Sent(
        envelope_bytes=len(job.exchange.request.body),
        payment_bytes=len(envelope.payment_bytes),
        meta_bytes=len(envelope.meta_bytes),
        wrap_bytes=tuple(map(len, envelope.wraps)),
        body_bytes=len(envelope.body),
        ciphertext_start=envelope.body[:SHOWN_CIPHERTEXT],
        candidates=meta.candidates,
        model=meta.model,
        max_output=meta.max_output,
        shape=meta.shape.value,
    )


def problem(error: BombyxError) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of an error, as a client may see it."""
    status, code = error.status, error.code
    if isinstance(error, PaymentError) and error.rule == "PAY-23":
        status, code = 409, "duplicate_request"
    headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
    retry_after = error.retry_after if isinstance(error, Unavailable) else None
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(retry_after or 1.0)))
    told = error.as_dict()
    body = {
        "type": OHTTP_KEY if isinstance(error, KeyConfigError) else "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": code,
        "fault": told["fault"],
        "rule": error.rule,
    }
    if retry_after is not None:
        body["retry_after"] = retry_after
    if isinstance(error, HeldElsewhere):
        body["replica"] = error.holder
    return status, headers, _json(body)


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise BadRequest(
            f"{method[:20]} is not {' or '.join(allowed)}", status=405, peer=Peer.CLIENT, rule="PROXY-1", code="method"
        )


def _digest(name: str) -> Digest:
    try:
        return Digest.parse(name)
    except ValueError:
        raise BadRequest("a digest is 64 hex digits", status=404, peer=Peer.CLIENT, rule="PROXY-1") from None


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
