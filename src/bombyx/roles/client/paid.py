# SPDX-License-Identifier: Apache-2.0
"""The paid public endpoint: OpenAI requests of strangers, paid by x402 vouchers (spec X402-1 .. X402-11).

Decides what to answer; money is `till.py`'s, answers are `core.py`'s, sockets `adapters/http_server.py`'s.

Always: nothing is asked of the network before it is paid for, but a price; whoever paid learns the charge, in a header
or a comment before `[DONE]`; an answer that was begun is charged for what was delivered, its reader there or not.
This process reads every request it sells: it is no enclave, and says so in its 402 and at `/verification`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from bombyx.errors import BadRequest, BombyxError, LocalError, Overloaded, PaymentError, Unavailable
from bombyx.ports import Clock, HttpExchange
from bombyx.protocol.pay import x402
from bombyx.protocol.pay.x402_payment import read_payment
from bombyx.protocol.primitives import RequestId
from bombyx.protocol.seal import Randomness
from bombyx.roles.client.asked import SERVED
from bombyx.roles.client.core import Client
from bombyx.roles.client.lastly import Lastly
from bombyx.roles.client.pace import Pace
from bombyx.roles.client.problem import problem_body, problem_headers, problem_of, status_of
from bombyx.roles.client.receipts import summary
from bombyx.roles.client.response import ClientResponse
from bombyx.roles.client.till import Sale, Till
from bombyx.roles.client.verification import CSP, checked, page

log = logging.getLogger(__name__)
NOTICE: Final = (
    "this endpoint is no enclave: it reads your request and the answer in clear, and passes them on sealed to attested"
    " workers; to be read by nobody on the way, run a bombyx client yourself"
)
_RECEIPT: Final = re.compile(r"/v1/receipts/([0-9a-f]{32})(/proof)?")
_JSON: Final = {"content-type": "application/json", "cache-control": "no-store", "x-content-type-options": "nosniff"}
_HTML: Final = _JSON | {"content-type": "text/html; charset=utf-8", "content-security-policy": CSP}


class PaidEndpoint:
    """Sells answers of a `Client`. `handle` is an `HttpHandler`."""

    def __init__(self, client: Client, till: Till, *, clock: Clock, randomness: Randomness) -> None:
        self._client = client
        self._till = till
        self._clock = clock
        self._randomness = randomness
        self._pace = Pace(till.settings.rate)
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: HttpExchange) -> None:
        """Start the answer. It is never cancelled: a sale has to be brought to its end."""
        task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, *, grace: float = 15.0) -> None:
        """Let sales end; what does not end in time is charged for what it delivered."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _serve(self, exchange: HttpExchange) -> None:
        try:
            self._pace.ask(exchange.request.peer, self._clock.monotonic())
            if exchange.request.path in SERVED:
                await self._sell(exchange)
            else:
                await self._show(exchange)
        except BombyxError as error:
            _refuse(exchange, error)
        except Exception:
            log.exception("bug while serving %s", exchange.request.path)
            _refuse(exchange, LocalError("a bug in the endpoint; its log has the trace"))

    # --- what costs nothing ---

    async def _show(self, exchange: HttpExchange) -> None:
        """Models, what was checked, and a receipt to whoever knows its request's id: 16 random bytes we gave him."""
        request, path = exchange.request, exchange.request.path
        if request.method not in ("GET", "HEAD"):
            raise BadRequest(f"{path[:80]!r} takes GET", status=405, rule="X402-10", code="method_not_allowed")
        receipt = _RECEIPT.fullmatch(path)
        if path == "/healthz":
            exchange.respond(200, _JSON, orjson.dumps({"status": "ok"}))
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            response = await self._client.request("GET", path)
            exchange.respond(response.status, _JSON | response.headers, await response.read())
        elif path == "/verification":
            self._verification(exchange)
        elif receipt is not None and receipt[2]:
            proof = await self._client.book.proof(receipt[1], with_usage=False)
            exchange.respond(200, _JSON | {"content-type": "application/cbor"}, proof.encode())
        elif receipt is not None:
            _, kept = await self._client.book.get(receipt[1])
            exchange.respond(200, _JSON, orjson.dumps(summary(kept)))
        else:
            raise BadRequest(f"unknown path {path[:80]!r}", status=404, code="not_found", rule="X402-10")

    def _verification(self, exchange: HttpExchange) -> None:
        value = {"hop": NOTICE, "plaintext_here": True, **checked(self._client)}
        chosen: Any = parse_qs(exchange.request.query).get("format", [""])[0]
        if chosen == "json" or "text/html" not in exchange.request.headers.get("accept", ""):
            exchange.respond(200, _JSON, orjson.dumps(value))
        else:
            exchange.respond(200, _HTML, page(value))

    # --- what is sold ---

    async def _sell(self, exchange: HttpExchange) -> None:
        request = exchange.request
        if request.method != "POST":
            raise BadRequest(f"{request.path} takes POST", status=405, rule="X402-1", code="method_not_allowed")
        try:
            cost = await self._client.quote(request.path, request.body)
        except BombyxError as error:
            raise _told(error) from None
        price = self._till.price(cost)
        text = request.headers.get(x402.SIGNATURE)
        if text is None:
            self._ask(exchange, price)
            return
        presented = None
        try:
            presented = read_payment(text, self._till.asking)
            sale = await self._till.take(presented, RequestId(self._randomness.bytes(16)), price=price)
        except PaymentError as error:
            # Only a genuine voucher is told where its channel stands.
            corrects = presented is not None and error.rule == "PAY-14"
            self._ask(exchange, price, error, await self._till.standing(presented) if corrects and presented else None)
            return
        await self._deliver(exchange, sale, cost)

    def _ask(
        self,
        exchange: HttpExchange,
        price: int,
        error: PaymentError | None = None,
        standing: x402.Standing | None = None,
    ) -> None:
        """402, for x402 clients in the header, for OpenAI's in the body."""
        asking = self._till.asking
        required = x402.payment_required(
            asking,
            price,
            url=self._till.url + exchange.request.path,
            description=f"OpenAI-compatible, metered; {NOTICE}",
            error=x402.reason_of(error) if error else "payment required",
            standing=standing,
        )
        told = error or PaymentError(
            f"pay by x402: at most {price} of {asking.token} on {asking.network}", rule="X402-1"
        )
        body = problem_of(told) | {"x402": required, "plaintext_here": True, "notice": NOTICE}
        headers = _JSON | {x402.REQUIRED: x402.header(required), "x-should-retry": "false"}
        exchange.respond(402, headers, orjson.dumps(body))

    async def _deliver(self, exchange: HttpExchange, sale: Sale, cost: int) -> None:
        request, response = exchange.request, None
        try:
            response = await self._client.request(
                request.method,
                request.path,
                request.headers,
                request.body,
                request_id=sale.reservation.request_id,
                ceiling=cost,
            )
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                await self._stream(exchange, response, sale)
            else:
                await self._whole(exchange, response, sale)
        except BaseException:
            if response is not None:
                await asyncio.shield(response.aclose())
            await asyncio.shield(self._settle(sale, response))
            raise

    async def _settle(self, sale: Sale, response: ClientResponse | None) -> dict[str, Any]:
        """Charge what the receipts say, once; gives the PaymentResponse."""
        paid = await response.paid() if response is not None else 0
        charged = await self._till.settle(sale, paid)
        return x402.payment_response(
            self._till.asking,
            self._till.stands(sale.reservation.channel),
            payer=sale.payer,
            charged=charged,
            transaction=str(sale.transaction) if sale.transaction is not None else "",
        )

    async def _whole(self, exchange: HttpExchange, response: ClientResponse, sale: Sale) -> None:
        """An answer that is not streamed runs to its end and is charged, whether or not its reader waits (X402-8)."""
        status, headers, body = response.status, response.headers, await response.read()
        if response.error is not None:
            told = _told(response.error)
            status, body = status_of(told), problem_body(told)
            headers = headers | problem_headers(told, sent=True)
        settled = await self._settle(sale, response)
        exchange.respond(status, _JSON | headers | {x402.RESPONSE: x402.header(settled)}, body)

    async def _stream(self, exchange: HttpExchange, response: ClientResponse, sale: Sale) -> None:
        exchange.on_disconnect = response.stop_reading
        if exchange.disconnected:
            response.stop_reading()
        exchange.start(response.status, _JSON | response.headers)
        lastly, failed = Lastly(), None
        try:
            async for piece in response.body:
                exchange.write(lastly.feed(piece))
                if exchange.paused:
                    await exchange.drain()
        except BombyxError as error:
            log.warning("answer cut: %s", error)
            failed = error
        if exchange.disconnected:
            await response.leave(self._till.settings.linger_seconds)
        settled = await self._settle(sale, response)
        if failed is None:
            exchange.write(x402.comment(settled))
            exchange.end(lastly.rest)
            return
        if response.between_events:  # inside an event our words would only spoil what is there
            exchange.write(x402.comment(settled) + b"data: " + problem_body(failed) + b"\n\n")
        exchange.abort()


def _told(error: BombyxError) -> BombyxError:
    """An error as strangers may see it: our accounts and our budget are none of their business."""
    if isinstance(error, LocalError) or status_of(error) == 402:
        log.warning("cannot pay for a customer's request: %s", error)
        return Unavailable("this endpoint cannot pay for requests now", retry_after=30.0, rule="X402-6")
    return error


def _refuse(exchange: HttpExchange, error: BombyxError) -> None:
    if exchange.started:
        exchange.abort()
        return
    headers = _JSON | problem_headers(error, sent=False)
    if isinstance(error, Overloaded):
        headers |= {"x-should-retry": "true"}
    exchange.respond(status_of(error), headers, problem_body(error))
