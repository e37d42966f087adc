# SPDX-License-Identifier: Apache-2.0
"""Draws, seals, pays and sends one request, up to the first byte of its answer (spec CLI-5 .. CLI-7, SEAL, PAY).

Always: the payment is durable before a byte leaves; a proxy's refusal is a hint that frees the reservation and
nothing more; what may be sent a second time, and how, stands in `send`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson

from bombyx.errors import (
    BombyxError,
    HeldElsewhere,
    KeyConfigError,
    Peer,
    Unavailable,
    Unreachable,
    UntrustedProxyError,
)
from bombyx.ports import ProxyResponse
from bombyx.protocol.audit.structure import Sent as SentRequest
from bombyx.protocol.pay.payee import NO_SESSION
from bombyx.protocol.pay.price import cap_for, units
from bombyx.protocol.primitives import Address, RequestId
from bombyx.protocol.seal import Randomness, Request, SealedRequest, encode_request, pad_request, seal_request
from bombyx.protocol.seal.fields import CACHE_SALT_FIELD, CLAIMANT_FIELD, NONCE_FIELD
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.request import Meta, Payment
from bombyx.roles.client.answer import Terms, read_hint
from bombyx.roles.client.asked import Asked, cache_salt
from bombyx.roles.client.candidates import Candidate
from bombyx.roles.client.delivery import Desk
from bombyx.roles.client.network import Model, Network, View
from bombyx.roles.client.refunds import RefundKeys
from bombyx.roles.client.settings import ClientSettings
from bombyx.roles.client.tokens import TokenTables

REQUEST_TYPE: Final = "application/vnd.bombyx.request"
RESPONSE_TYPE: Final = "application/vnd.bombyx.response"
OHTTP_KEY_TYPE: Final = "https://iana.org/assignments/http-problem-types#ohttp-key"
MAX_PROBLEM: Final = 65_536  # bytes
NO_DEPOSIT: Final = frozenset({"PAY-2", "PAY-4"})  # the payee finds no channel, or too little in it
_PASSED_ON: Final = frozenset({400, 402, 404, 408, 409, 413, 429, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request whose answer begins."""

    terms: Terms
    response: ProxyResponse = field(repr=False)
    payment: Payment = field(repr=False)


@dataclass(slots=True, kw_only=True)
class Journey:
    """One request of an application, over all its attempts: its id, and whether a byte of it may have left."""

    request_id: RequestId
    posted: bool = False
    ceiling: int | None = None  # base units; more than this is not authorised
    candidates: tuple[Address, ...] = ()  # instead of a draw of our own; empty: we draw
    nonce: bytes = b""  # our share of the answer's seed; empty: 32 random bytes


class Sender:
    """Stateless but for the process's secret of cache salts."""

    def __init__(
        self,
        settings: ClientSettings,
        desk: Desk,
        *,
        network: Network,
        tables: TokenTables,
        randomness: Randomness,
        refunds: RefundKeys,
    ) -> None:
        self._settings = settings
        self._refunds = refunds
        self._desk = desk
        self._network = network
        self._tables = tables
        self._randomness = randomness
        self._salts = randomness.bytes(32)

    async def send(self, view: View, asked: Asked, body: bytes, journey: Journey) -> Sent:
        """One draw; at most one more sealing after an `ohttp-key` problem, at most one more payment after PAY-11."""
        self._check_commission(view)
        model = await self._network.resolve(asked.model, view)
        candidates = await self._desk.candidates.choose(
            view, model, journey.request_id, only=journey.candidates or asked.only
        )
        try:
            return await self._attempt(view, model, candidates, asked, body, journey)
        except KeyConfigError:
            view = await self._network.view(view.line, fresh=True)
            again = await self._again(candidates, view, model)
        try:
            return await self._attempt(view, model, again, asked, body, journey)
        except KeyConfigError:
            raise Unavailable("the workers' keys changed twice during one request", retry_after=1.0) from None

    def _check_commission(self, view: View) -> None:
        most = self._settings.max_commission_bps
        if view.commission_bps > most:
            raise UntrustedProxyError(
                f"the proxy takes a commission of {view.commission_bps} bps, we pay at most {most}",
                status=402,
                rule="PAY-13",
            )

    async def quote(self, view: View, asked: Asked) -> int:
        """The most that a request like this would be authorised for, sent now."""
        self._check_commission(view)
        model = await self._network.resolve(asked.model, view)
        candidates = await self._desk.candidates.preview(view, model)
        return _cap(self._meta(view, model, candidates, asked, RequestId.zero()), candidates)

    async def _again(self, candidates: tuple[Candidate, ...], view: View, model: Model) -> tuple[Candidate, ...]:
        """The same workers under their new keys; those that are gone are not replaced."""
        found: list[Candidate] = []
        reason: BombyxError | None = None
        for candidate in candidates:
            try:
                found.append(await self._desk.candidates.again(candidate, view, model))
            except BombyxError as error:
                reason = error
        if not found:
            assert reason is not None
            raise reason
        return tuple(found)

    async def _attempt(
        self,
        view: View,
        model: Model,
        candidates: tuple[Candidate, ...],
        asked: Asked,
        body: bytes,
        journey: Journey,
    ) -> Sent:
        terms = await self._terms(view, model, candidates, asked, body, journey)
        await self._settle_left(view)
        regranted = resent = redeposited = False
        while True:
            # A proxy that restarted has a new key, too: look it up again.
            payment = await self._pay(view, terms, journey, fresh=regranted)
            try:
                response = await self._post(view, terms.sealed, payment, journey)
            except Unavailable as error:
                if resent or isinstance(error, Unreachable):
                    raise
                # It broke off before a byte came back, as a proxy that restarts does to kept connections. The same
                # id and bytes may go to the same proxy again: if the first arrived, both proxy and worker refuse these.
                resent = True
                continue
            if response.status == 200 and response.headers.get("content-type", "").startswith(RESPONSE_TYPE):
                return Sent(terms=terms, response=response, payment=payment)
            refusal, rule = await _refusal(response)
            await self._unserved(view, journey.request_id, resent=resent)
            if rule == NO_SESSION and not regranted:
                regranted = True
                self._desk.wallet.drop_session(view.line.address)
            elif rule in NO_DEPOSIT and not redeposited and await self._desk.wallet.lost_deposit(view.line.address):
                redeposited = True  # a reorg took it back
            else:
                raise refusal

    async def _unserved(self, view: View, request_id: RequestId, *, resent: bool) -> None:
        """Free the reservation; not if an earlier sending of the same request may be running after all."""
        wallet = self._desk.wallet
        await (wallet.leave if resent else wallet.release)(view.line.address, request_id)

    async def _terms(
        self,
        view: View,
        model: Model,
        candidates: tuple[Candidate, ...],
        asked: Asked,
        body: bytes,
        journey: Journey,
    ) -> Terms:
        now = self._desk.clock.now()
        meta = self._meta(view, model, candidates, asked, journey.request_id)
        what = SentRequest(
            path=asked.path,
            body=body,
            nonce=journey.nonce or self._randomness.bytes(32),
            claimant=self._refunds.address(journey.request_id),
            cap=meta.max_output,
        )
        sealed = seal_request(
            meta=meta,
            bhttp=pad_request(encode_request(self._inner(asked, what))),
            recipients=[candidate.key_config for candidate in candidates],
            randomness=self._randomness,
            not_after=now.plus(seconds=self._settings.deadline_seconds),
        )
        chain = self._desk.chain
        tokenizer = model.manifest.tokenizer
        return Terms(
            sealed=sealed,
            candidates={candidate.id: candidate for candidate in candidates},
            asked=asked,
            sent=what,
            domain=receipt_domain(chain.chain_id, chain.registry),
            tables={tokenizer: await self._tables.get(tokenizer, view.line.transport)} if tokenizer else {},
        )

    def _meta(
        self, view: View, model: Model, candidates: tuple[Candidate, ...], asked: Asked, request_id: RequestId
    ) -> Meta:
        # One pair of caps for all candidates: a multiple of every grain, so that no worker's rounding passes it.
        grain = math.lcm(*(candidate.sheet.grain for candidate in candidates))
        context = model.manifest.context
        settings = self._settings
        return Meta(
            v=1,
            request_id=request_id,
            model=model.digest,
            proxy=view.line.address,
            price_sheets=tuple(candidate.sheet_digest for candidate in candidates),
            commission_bps=view.commission_bps,
            max_input=units(asked.max_input(context), grain),
            max_output=units(asked.max_output(context), grain),
            deadline=self._desk.clock.now().plus(seconds=settings.deadline_seconds),
            candidates=tuple(candidate.id for candidate in candidates),
            shape=settings.shape,
            frame_size=settings.frame,
        )

    def _inner(self, asked: Asked, what: SentRequest) -> Request:
        """What the worker opens. Of the application's headers none goes along."""
        conversation = asked.conversation or self._randomness.bytes(32)
        headers = (
            (b"content-type", b"application/json"),
            (NONCE_FIELD, what.nonce.hex().encode()),
            (CACHE_SALT_FIELD, cache_salt(self._salts, conversation).hex().encode()),
            (CLAIMANT_FIELD, what.claimant.hex().encode()),
        )
        return Request(method=asked.method.encode(), path=asked.path.encode(), headers=headers, content=what.body)

    async def _settle_left(self, view: View) -> None:
        """Ask the proxy for its account once several answers were left; no answer changes nothing."""
        channel = self._desk.wallet.wants_account(view.line.address)
        if channel is None:
            return
        try:
            status, data = await view.line.transport.get(f"/v1/channel/{channel.hex()}")
        except BombyxError:
            return
        told = _object(data) if status == 200 else {}
        charged, reserved = told.get("charged"), told.get("reserved")
        if isinstance(charged, int) and isinstance(reserved, int):
            await self._desk.wallet.conclude(view.line.address, charged=charged, reserved=reserved)

    async def _pay(self, view: View, terms: Terms, journey: Journey, *, fresh: bool) -> Payment:
        meta = terms.sealed.meta
        cap = _cap(meta, terms.candidates.values())
        if journey.ceiling is not None and cap > journey.ceiling:
            raise Unavailable(f"it may cost {cap} by now, {journey.ceiling} is allowed", retry_after=1.0, rule="CLI-4")
        proxy = await self._network.proxy(view.line, fresh=fresh)
        return await self._desk.wallet.pay(
            proxy,
            meta.request_id,
            cap=cap,
            meta_hash=terms.sealed.meta_hash,
            body_hash=terms.sealed.payload_hash,
        )

    async def _post(self, view: View, sealed: SealedRequest, payment: Payment, journey: Journey) -> ProxyResponse:
        posted, journey.posted = journey.posted, True
        try:
            return await view.line.transport.post("/v1/blind", REQUEST_TYPE, sealed.envelope(payment.encode()))
        except Unreachable:
            journey.posted = posted
            await self._desk.wallet.release(view.line.address, sealed.meta.request_id)
            raise
        except (BombyxError, asyncio.CancelledError):
            await self._desk.wallet.leave(view.line.address, sealed.meta.request_id)
            raise


def _cap(meta: Meta, candidates: Iterable[Candidate]) -> int:
    """What whichever of them answers may charge, with the proxy's commission."""
    return max(
        int(cap_for(c.sheet, meta.model, meta.max_input, meta.max_output, meta.commission_bps)) for c in candidates
    )


async def _refusal(response: ProxyResponse) -> tuple[BombyxError, str | None]:
    """What a proxy answered instead of an answer, as an error of the right kind, and the rule it names."""
    data = bytearray()
    try:
        async for piece in response.body():
            data += piece
            if len(data) > MAX_PROBLEM:
                break
    except BombyxError:
        pass  # the status alone must do
    finally:
        await response.aclose()
    problem = _object(bytes(data))
    if problem.get("type") == OHTTP_KEY_TYPE:
        return KeyConfigError("the proxy says a worker no longer holds our key", peer=Peer.PROXY, rule="SEAL-10"), None
    code, replica = read_hint(bytes(data)), problem.get("replica")
    if code == HeldElsewhere.code and isinstance(replica, str):
        pause = _seconds(response.headers.get("retry-after"))
        return HeldElsewhere("another replica of the proxy keeps our channel", holder=replica, retry_after=pause), None
    status = response.status if response.status in _PASSED_ON else 502
    rule = problem.get("rule")
    named = rule if isinstance(rule, str) and len(rule) <= 16 and rule.isascii() else None
    error = UntrustedProxyError(
        f"the proxy refused with status {response.status} and says {code!r}",
        status=status,
        hint=code,
        rule=None,
        retry_after=_seconds(response.headers.get("retry-after")),
    )
    return error, named


def _object(data: bytes) -> dict[str, object]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 6:
        return None
    return float(text)
