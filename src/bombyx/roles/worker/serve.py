# SPDX-License-Identifier: Apache-2.0
"""One request's life inside the enclave: paid, opened, run, sealed, receipted, settled (spec SEAL, WRK).

    payment accepted and written -> seal opened, every check in order -> what is asked -> engine -> answer -> receipt

Always: what fails before the seal opens is refused outside it (a hint, without content); whatever fails after it is
answered inside it, with a receipt; nothing delivered costs nothing; a deadline is kept by the monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from bombyx.errors import (
    BadRequest,
    BombyxError,
    DeadlineExceeded,
    MalformedMessage,
    PaymentError,
    Peer,
)
from bombyx.ports import Clock, Entropy, Write
from bombyx.protocol.pay.payee import Reservation
from bombyx.protocol.pay.price import price_of, worker_cap
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.seal.envelope import payload_hash
from bombyx.protocol.seal.ohttp import RESPONSE_NONCE_SIZE
from bombyx.protocol.seal.opening import OpenedRequest, open_request
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.records import WorkerRequest
from bombyx.protocol.wire.request import Meta
from bombyx.roles.worker.answer import Answer
from bombyx.roles.worker.ended import Ended
from bombyx.roles.worker.filling import Filler, Job
from bombyx.roles.worker.gate import Gate, Ticket
from bombyx.roles.worker.health import EngineHealth
from bombyx.roles.worker.keys import Keyring
from bombyx.roles.worker.meter import Meter
from bombyx.roles.worker.notary import AnswerReceipts, Notary, ended_rows
from bombyx.roles.worker.payments import Till
from bombyx.roles.worker.settings import Limits, ServedModel
from bombyx.roles.worker.signed import SignedAnswers
from bombyx.roles.worker.streams import Stream

log = logging.getLogger("bombyx.worker")

GRACE: Final = 10.0  # seconds past its deadline in which an answer's last frames may still leave


class Server:
    """Serves requests of all links."""

    def __init__(
        self,
        *,
        models: Mapping[Digest, ServedModel],
        sheet: PriceSheet,
        keyring: Keyring,
        till: Till,
        notary: Notary,
        ended: Ended,
        gate: Gate,
        health: Mapping[Digest, EngineHealth],
        limits: Limits,
        clock: Clock,
        entropy: Entropy,
        signed: SignedAnswers,
    ) -> None:
        self._models = models
        self._sheet = sheet
        self._sheet_digest = sheet.digest()
        self._keyring = keyring
        self._till = till
        self._notary = notary
        self._ended = ended
        self._gate = gate
        self._health = health
        self._limits = limits
        self._clock = clock
        self._entropy = entropy
        names = tuple(model.manifest.name for model in models.values())
        self._filler = Filler(limits=limits, clock=clock, names=names, signed=signed, operator=notary.operator)

    async def serve(self, proxy: Address, request: bytes, stream: Stream) -> None:
        """The whole life. Peers cannot make it raise."""
        try:
            with self._gate.entered() as ticket:
                await self._serve(proxy, WorkerRequest.decode(request), stream, ticket)
        except BombyxError as error:
            log.info("stream %d of %s refused: %s %s", stream.number, proxy, error.code, error.rule or "")
            if stream.delivered:
                stream.end()
            else:
                stream.refuse(error)

    async def _serve(self, proxy: Address, request: WorkerRequest, stream: Stream, ticket: Ticket) -> None:
        meta = Meta.decode(request.meta)
        model, ends_at = self._check_meta(meta), self._clock.monotonic() + self._seconds(meta)
        self._ended.begin(meta.request_id)
        try:
            reservation = await self._reserve(meta, request)
            try:
                opened = self._open(proxy, request)
            except BombyxError:
                if reservation is not None:
                    await self._till.release(reservation)
                raise
            health = self._health[meta.model]
            job = Job(
                opened=opened, model=model, health=health, ticket=ticket, reservation=reservation, ends_at=ends_at
            )
            await self._run(job, stream)
        finally:
            self._ended.leave(meta.request_id)

    # --- before the seal opens ---------------------------------------------------------------------------------------

    def _check_meta(self, meta: Meta) -> ServedModel:
        """What the proxy can see is wrong, before anything is paid or opened. The seal binds it all again."""
        model = self._models.get(meta.model)
        if model is None:
            raise BadRequest("this model is not served here", status=404, peer=Peer.PROXY, code="unknown_model")
        _, candidate = self._keyring.holding(meta.candidates, self._clock.monotonic())
        if len(meta.price_sheets) != len(meta.candidates):
            raise MalformedMessage("not one price sheet for each candidate", peer=Peer.CLIENT, rule="SEAL-1")
        if meta.price_sheets[meta.candidates.index(candidate)] != self._sheet_digest:
            raise PaymentError("the client agreed to another price sheet", peer=Peer.CLIENT, rule="PAY-12")
        self._health[meta.model].check()
        return model

    def _seconds(self, meta: Meta) -> float:
        seconds = min((meta.deadline - self._clock.now()) / 1000, self._limits.deadline_seconds)
        if seconds <= 0:
            raise DeadlineExceeded("the deadline had passed before the request came", rule="WRK-6")
        return seconds

    async def _reserve(self, meta: Meta, request: WorkerRequest) -> Reservation | None:
        """Paid before worked on; None where the price sheet makes it free."""
        cap = worker_cap(self._sheet, meta.model, meta.max_input, meta.max_output)
        if request.payment is None:
            if cap:
                raise PaymentError(f"no payment for a request that may cost {cap}", peer=Peer.PROXY, rule="PAY-5")
            return None
        return await self._till.reserve(
            request.payment,
            request_id=meta.request_id,
            cap=cap,
            meta_hash=sha256(request.meta),
            body_hash=payload_hash((request.wrap,) if request.wrap else (), request.body),
        )

    def _open(self, proxy: Address, request: WorkerRequest) -> OpenedRequest:
        meta = Meta.decode(request.meta)
        period, _ = self._keyring.holding(meta.candidates, self._clock.monotonic())
        return open_request(
            period.gateways,
            meta_bytes=request.meta,
            wrap=request.wrap,
            body=request.body,
            proxy=proxy,
            now=self._clock.now(),
            replays=period.replays,
            finished=self._ended,
        )

    # --- after it has opened -----------------------------------------------------------------------------------------

    async def _run(self, job: Job, stream: Stream) -> None:
        """Fill the answer and send it, side by side; then the end."""
        meter = Meter(
            price=price_of(self._sheet, job.meta.model),
            grain=self._sheet.grain,
            max_input=job.meta.max_input,
            max_output=job.meta.max_output,
        )
        answer = self._answer(job, stream, meter)
        filling = asyncio.create_task(self._filler.fill(job, answer, meter))
        whole = False
        try:
            async with asyncio.timeout(max(0.0, job.ends_at + GRACE - self._clock.monotonic())):
                whole = await answer.flow()
        except TimeoutError:
            log.info("request %s: the client did not take its answer in time", job.meta.request_id.hex())
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
            await self._conclude(job, answer, stream, whole=whole)

    def _answer(self, job: Job, stream: Stream, meter: Meter) -> Answer:
        return Answer(
            opened=job.opened,
            response_nonce=self._entropy.bytes(RESPONSE_NONCE_SIZE),
            stream=stream,
            meter=meter,
            receipts=AnswerReceipts(self._notary, job.opened, self._sheet_digest, self._clock.now()),
            notary=self._notary,
            clock=self._clock,
        )

    async def _conclude(self, job: Job, answer: Answer, stream: Stream, *, whole: bool) -> None:
        """The final receipt, the charge and the finished id: one batch, before END."""
        if stream.link_lost and not whole:
            await self._conclude_unheard(job, answer)
            return
        if whole:
            outcome, bill = answer.outcome, answer.bill
        else:
            outcome, bill = Outcome.CANCELLED, answer.delivered_bill()
        signed, rows = answer.sign_final(outcome, bill)
        self._ended.end(job.meta.request_id, self._clock.now())
        await answer.close(signed, [*rows, *self._settle(job, bill.charge)])
        self._log(job, outcome, answer.frames, bill.charge)

    async def _conclude_unheard(self, job: Job, answer: Answer) -> None:
        """The link broke: the proxy can agree to no more than the last receipt it may have seen."""
        if not answer.frames:  # nothing was delivered: it may come again over another link
            if job.reservation is not None:
                await self._till.release(job.reservation)
            return
        now = self._clock.now()
        self._ended.end(job.meta.request_id, now)
        await answer.abandon([*ended_rows(job.meta.request_id, now), *self._settle(job, answer.agreed)])
        self._log(job, Outcome.CANCELLED, answer.frames, answer.agreed)

    def _settle(self, job: Job, charge: int) -> list[Write]:
        return self._till.settle(job.reservation, charge) if job.reservation is not None else []

    def _log(self, job: Job, outcome: Outcome, frames: int, charge: int) -> None:
        log.info(
            "request %s: %s, %d frames, charge %d", job.meta.request_id.hex(), outcome.name.lower(), frames, charge
        )
