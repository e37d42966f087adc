# SPDX-License-Identifier: Apache-2.0
"""Draws, seals, pays and sends one request, up to the first byte of its answer (spec CLI-5 .. CLI-7, SEAL, PAY).

Always: the payment is durable before a byte leaves; a proxy's refusal is a hint that frees the reservation and
nothing more; what may be sent a second time, and how, stands in `send`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from bombyx.errors import (
    BombyxError,
    KeyConfigError,
    NoWorkers,
    Unavailable,
    Unreachable,
    UntrustedProxyError,
)
from bombyx.ports import ProxyResponse
from bombyx.protocol.audit.structure import Sent as SentRequest
from bombyx.protocol.pay.payee import NO_SESSION
from bombyx.protocol.pay.price import cap_for, units
from bombyx.protocol.primitives import Address, Instant, RequestId
from bombyx.protocol.seal import Randomness, Request, SealedRequest, encode_request, pad_request, seal_request
from bombyx.protocol.seal.fields import CACHE_SALT_FIELD, CLAIMANT_FIELD, NONCE_FIELD
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.request import Meta, Payment
from bombyx.roles.client.answer import Terms
from bombyx.roles.client.asked import Asked, cache_salt
from bombyx.roles.client.candidates import Candidate
from bombyx.roles.client.delivery import Desk
from bombyx.roles.client.network import Model, Network, View
from bombyx.roles.client.refunds import RefundKeys
from bombyx.roles.client.refusal import json_object, refusal_of, wants_workers
from bombyx.roles.client.settings import ClientSettings
from bombyx.roles.client.tokens import TokenTables

REQUEST_TYPE: Final = "application/vnd.bombyx.request"
RESPONSE_TYPE: Final = "application/vnd.bombyx.response"
NO_DEPOSIT: Final = frozenset({"PAY-2", "PAY-4"})  # the payee finds no channel, or too little in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request whose answer begins. `instead`: what the caller is told all the same, the answer being cover."""

    terms: Terms
    response: ProxyResponse = field(repr=False)
    payment: Payment = field(repr=False)
    instead: BombyxError | None = None


@dataclass(slots=True, kw_only=True)
class Journey:
    """One request of an application, over all its attempts: its id, its end, and whether a byte of it may have left."""

    request_id: RequestId
    posted: bool = False
    resent: bool = False  # the same bytes went out twice: the first may be running
    tried: Address | None = None  # it went out to this worker alone, and none came of it
    until: Instant | None = None  # its deadline, from the first sealing on
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
        """One draw. To one of it first where that is its lot, then, for want of that one, to the others (MKT-14)."""
        self._check_commission(view)
        model = await self._network.resolve(asked.model, view)
        if journey.tried is not None:
            return await self._to_the_others(view, model, asked, body, journey)
        candidates = await self._desk.candidates.choose(
            view, model, journey.request_id, only=journey.candidates or asked.only
        )
        try:
            return await self._to(view, model, candidates, asked, body, journey)
        except (UntrustedProxyError, NoWorkers) as error:
            alone = len(journey.candidates or candidates) == 1 and not asked.only
            if not alone or journey.resent or not wants_workers(error):
                raise
            refusal = error
        journey.tried = candidates[0].operator
        try:
            sent = await self._to_the_others(view, model, asked, body, journey)
        except NoWorkers:
            raise refusal from None
        except BombyxError:
            if journey.candidates:
                raise refusal from None
            raise
        return replace(sent, instead=refusal) if journey.candidates else sent

    async def _to_the_others(self, view: View, model: Model, asked: Asked, body: bytes, journey: Journey) -> Sent:
        """Raises `NoWorkers` when there are none."""
        assert journey.tried is not None
        view = await self._network.view(view.line)
        others = await self._desk.candidates.others(view, model, journey.tried)
        if not others:
            raise NoWorkers("nobody else was drawn", retry_after=1.0, rule="MKT-14")
        return await self._to(view, model, others, asked, body, journey)

    async def _to(
        self,
        view: View,
        model: Model,
        candidates: tuple[Candidate, ...],
        asked: Asked,
        body: bytes,
        journey: Journey,
    ) -> Sent:
        """At most one more sealing after an `ohttp-key` problem, at most one more payment after PAY-11."""
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
        until = self._desk.clock.now().plus(seconds=self._settings.deadline_seconds)
        return _cap(self._meta(view, model, candidates, asked, RequestId.zero(), until), candidates)

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
                resent = journey.resent = True
                continue
            if response.status == 200 and response.headers.get("content-type", "").startswith(RESPONSE_TYPE):
                return Sent(terms=terms, response=response, payment=payment)
            refusal, rule = await refusal_of(response)
            await self._unserved(view, journey)
            if rule == NO_SESSION and not regranted:
                regranted = True
                self._desk.wallet.drop_session(view.line.address)
            elif rule in NO_DEPOSIT and not redeposited and await self._desk.wallet.lost_deposit(view.line.address):
                redeposited = True  # a reorg took it back
            else:
                raise refusal

    async def _unserved(self, view: View, journey: Journey) -> None:
        """Free the reservation; not if an earlier sending of the same request may be running after all."""
        wallet = self._desk.wallet
        await (wallet.leave if journey.resent else wallet.release)(view.line.address, journey.request_id)

    async def _terms(
        self,
        view: View,
        model: Model,
        candidates: tuple[Candidate, ...],
        asked: Asked,
        body: bytes,
        journey: Journey,
    ) -> Terms:
        until = journey.until or self._desk.clock.now().plus(seconds=self._settings.deadline_seconds)
        journey.until = until
        meta = self._meta(view, model, candidates, asked, journey.request_id, until)
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
            not_after=until,
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
        self,
        view: View,
        model: Model,
        candidates: tuple[Candidate, ...],
        asked: Asked,
        request_id: RequestId,
        until: Instant,
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
            deadline=until,
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
        told = json_object(data) if status == 200 else {}
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
