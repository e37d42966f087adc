# SPDX-License-Identifier: Apache-2.0
"""Carries one answer from the proxy to the application, and settles it: the shell around `Answer` (spec CLI-5, SES).

A task reads the proxy's bytes. A streamed answer is passed on as it opens; the application has its `[DONE]` at
once, and the task goes on through padding and receipts even if the application has left by then. An application
that leaves before `[DONE]` cancels the request. An answer that is not streamed is passed on only after every check.

Always: the end of the body is the end of the checks; a check that fails comes out of the body's iterator as its typed
error; the receipt and the charge it justifies are durable, in one batch, before the answer counts as finished.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import (
    BombyxError,
    DeadlineExceeded,
    MalformedMessage,
    PaymentError,
    Peer,
    PeerError,
    StreamTruncated,
)
from bombyx.ports import Clock, ProxyResponse, Write
from bombyx.protocol.pay.price import price_of, with_commission
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal import Head
from bombyx.protocol.session import Event, Stage, advance
from bombyx.protocol.wire.receipt import Kind, Receipt
from bombyx.protocol.wire.request import Payment
from bombyx.roles.client.alarm import Watch
from bombyx.roles.client.answer import Answer, Terms, Verdict
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.candidates import Candidates
from bombyx.roles.client.kept import KeptReceipt
from bombyx.roles.client.pipe import Pipe
from bombyx.roles.client.receipts import ReceiptBook
from bombyx.roles.client.recording import Chain, kept_of
from bombyx.roles.client.restitution import content_row
from bombyx.roles.client.shelf import AuditShelf
from bombyx.roles.client.tally import Tally
from bombyx.roles.client.wallet import Wallet

QUEUE: Final = 256  # pieces an application may lag behind before the proxy is read no further


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every delivery of a client shares."""

    clock: Clock
    wallet: Wallet
    blobs: Blobs
    tally: Tally
    watch: Watch
    candidates: Candidates
    chain: Chain
    max_answer: int
    keep_openings: bool
    shelf: AuditShelf
    on_kept: Callable[[KeptReceipt], None]


@dataclass(slots=True)
class Finished:
    """How an answer ended: `kept` is its record, `verdict` is there only when everything passed."""

    kept: KeptReceipt | None
    verdict: Verdict | None = field(repr=False, default=None)


class Delivery:
    """One answer under way."""

    def __init__(self, desk: Desk, terms: Terms, response: ProxyResponse, payment: Payment, *, seconds: float) -> None:
        self._desk = desk
        self._terms = terms
        self._response = response
        self._payment = payment
        self._seconds = seconds
        self._answer = Answer(terms)
        self._stage = Stage.SENT
        self._pipe = Pipe(QUEUE)
        self._held = 0  # bytes of an answer that is not streamed
        self._error: BombyxError | None = None
        self._receipted = asyncio.Event()  # a receipt came, or the end
        self._head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run())

    @property
    def _proxy(self) -> Address:
        return self._terms.sealed.meta.proxy

    @property
    def answer(self) -> Answer:
        return self._answer

    async def head(self) -> Head:
        """The sealed answer's status and headers. Raises what went wrong before it."""
        return await asyncio.shield(self._head)

    async def finished(self) -> Finished:
        """Wait for the end of all checks. Raises the error if one failed."""
        finished = await asyncio.shield(self.task)
        if self._error is not None:
            raise self._error
        return finished

    async def body(self) -> AsyncIterator[bytes]:
        """The content; ends after the checks, or raises."""
        while (piece := await self._pipe.get()) is not None:
            yield piece
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        """The application is done. Before `[DONE]` that cancels the request; after it, the checks go on without it."""
        self._pipe.leave()
        if not self._answer.done and not self.task.done():
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self.task)

    def stop_reading(self) -> None:
        """Nobody reads the body any more: it ends at once for who waits for it; the answer runs on."""
        self._pipe.leave()

    async def leave(self, seconds: float) -> None:
        """The application is gone, but what it took shall be billed: read on to the next receipt, then cancel."""
        self._pipe.leave()
        self._receipted.clear()
        if not self.task.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._receipted.wait()
        await self.aclose()

    # --- the task ---

    async def _run(self) -> Finished:
        finished = Finished(kept=None)
        try:
            async with asyncio.timeout(self._seconds):
                await self._read()
            verdict = self._answer.finish()
            finished = Finished(kept=await self._settle(verdict), verdict=verdict)
        except TimeoutError:
            finished.kept = await self._fail(DeadlineExceeded(f"no end after {self._seconds:.0f} s", rule="CLI-7"))
        except BombyxError as error:
            finished.kept = await self._fail(error)
        except asyncio.CancelledError:
            self.task.uncancel()  # by `aclose`: what follows is no longer cancelled
            finished.kept = await self._fail(
                StreamTruncated("the application left", peer=Peer.APPLICATION, rule="CLI-5")
            )
        finally:
            await self._response.aclose()
            self._end()
        return finished

    async def _read(self) -> None:
        async for data in self._response.body():
            receipts = len(self._answer.receipts)
            for item in self._answer.feed(data):
                if isinstance(item, Head):
                    self._begin(item)
                else:
                    await self._pass_on(item)
            if self._answer.frames and self._stage is Stage.SENT:
                self._first_frame()
            self._agree_so_far(receipts)

    def _begin(self, head: Head) -> None:
        if not self._answer.streamed:
            self._pipe.hold_all()
        if not self._head.done():
            self._head.set_result(head)

    async def _pass_on(self, piece: bytes) -> None:
        if not self._answer.streamed:
            self._held += len(piece)
            if self._held > self._desk.max_answer:
                raise MalformedMessage("an answer above the limit", peer=Peer.WORKER, rule="CLI-5")
        await self._pipe.put(piece)

    def _first_frame(self) -> None:
        self._stage = advance(self._stage, Event.RECEIVE_FRAME)
        assert self._answer.candidate is not None
        self._desk.tally.answered(self._answer.candidate.operator)
        self._desk.wallet.confirm(self._proxy, self._payment)

    def _agree_so_far(self, known: int) -> None:
        if len(self._answer.receipts) > known:
            self._receipted.set()
        request_id = self._terms.sealed.meta.request_id
        for signed in self._answer.receipts[known:]:
            if signed.receipt.kind is Kind.CHECKPOINT:
                self._desk.wallet.checkpoint(self._proxy, request_id, signed.receipt.charge, self._terms.bps)

    async def _settle(self, verdict: Verdict) -> KeptReceipt:
        """Everything passed: keep the receipt, agree to the charge, compare books."""
        self._stage = advance(self._stage, Event.RECEIVE_FINAL)
        charge = verdict.final.charge
        paid = int(with_commission(charge, self._terms.bps))
        kept = self._kept(outcome=_outcome(verdict), paid=paid, verdict=verdict)
        request_id = self._terms.sealed.meta.request_id
        rows = await self._rows(kept)
        if verdict.package is not None:
            rows += self._desk.shelf.rows(request_id, verdict.package, self._desk.clock.now())
            rows += (content_row(request_id, verdict.package),)
        await self._desk.wallet.settle(self._proxy, request_id, charge, self._terms.bps, *rows)
        self._stage = advance(self._stage, Event.ACTION_SETTLE)
        self._desk.on_kept(kept)
        self._watch(verdict.final)
        if verdict.settlement is not None:
            evidence = verdict.settlement.digest()
            await self._desk.wallet.check_account(self._proxy, verdict.settlement.charged_total, evidence=evidence)
        return kept

    def _watch(self, final: Receipt) -> None:
        """Who was on offer, at what price, and who answered at which pace by its receipt (MKT-12)."""
        model = self._terms.sealed.meta.model
        prices = {c.operator: int(price_of(c.sheet, model).output) for c in self._terms.candidates.values()}
        seconds = (final.finished_at - final.started_at) / 1_000
        pace = seconds / final.output_units if final.output_units else None
        now = self._desk.clock.now()
        self._desk.watch.answered(self._proxy, final.operator, prices, pace=pace, now=now)

    async def _fail(self, error: BombyxError) -> KeptReceipt | None:
        """Something is wrong: agree to no more than the last checkpoint, keep what shows it, tell the application."""
        self._error = error
        answer, wallet = self._answer, self._desk.wallet
        cheated = isinstance(error, PeerError) and not isinstance(error, StreamTruncated)
        self._stage = self._stage_after(cheated)
        if cheated and answer.candidate is not None:
            self._desk.tally.failed(answer.candidate.operator)
            if isinstance(error, PeerError) and error.peer is Peer.WORKER:
                self._desk.candidates.distrust(answer.candidate.operator, error.message)
        kept = None
        try:
            rows: tuple[Write, ...] = ()
            if answer.candidate is not None:
                paid = int(with_commission(answer.trail.charge, self._terms.bps)) if answer.trail else 0
                kept = self._kept(outcome="cheated" if cheated else "cut", paid=paid, fault=error.message)
                rows = await self._rows(kept)
            if isinstance(error, PaymentError):
                await self._settle_and_freeze(error, *rows)
            else:
                await wallet.leave(self._proxy, self._terms.sealed.meta.request_id, *rows)
            if kept is not None:
                self._desk.on_kept(kept)
        except BombyxError as second:
            error.add_note(f"and it could not be written down: {second.code}")
        if not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # taken note of, should nobody ask
        return kept

    async def _settle_and_freeze(self, error: PaymentError, *rows: Write) -> None:
        """The answer is good, its account is not: agree to what the receipt says, and sign nothing more."""
        trail = self._answer.trail
        request_id = self._terms.sealed.meta.request_id
        if trail is not None and trail.final is not None:
            await self._desk.wallet.settle(self._proxy, request_id, int(trail.charge), self._terms.bps, *rows)
        else:
            await self._desk.wallet.leave(self._proxy, request_id, *rows)
        await self._desk.wallet.freeze(self._proxy, error.message, evidence=None)

    def _stage_after(self, cheated: bool) -> Stage:
        if self._stage is Stage.SETTLED:
            return self._stage
        if cheated:
            return advance(self._stage, Event.RECEIVE_CONTRADICTION)
        return self._stage if self._stage is Stage.ANSWERED else advance(self._stage, Event.OBSERVE_CUT)

    def _kept(self, *, outcome: str, paid: int, fault: str = "", verdict: Verdict | None = None) -> KeptReceipt:
        return kept_of(
            self._terms,
            self._answer,
            chain=self._desk.chain,
            at=self._desk.clock.now(),
            outcome=outcome,
            paid=paid,
            fault=fault,
            verdict=verdict,
            openings=self._desk.keep_openings,
        )

    async def _rows(self, kept: KeptReceipt) -> tuple[Write, ...]:
        """The receipt, and what it stands on by digest."""
        candidate = self._answer.candidate
        assert candidate is not None
        rows = ReceiptBook.rows(self._terms.sealed.meta.request_id, kept)
        for digest in (candidate.offer.bundle, candidate.sheet_digest):
            data = await self._desk.blobs.kept(digest)
            if data is not None:
                rows += (self._desk.blobs.row(digest, data),)
        return rows

    def _end(self) -> None:
        if not self._head.done():
            self._head.set_exception(StreamTruncated("no answer came", peer=Peer.PROXY, rule="SEAL-7"))
            self._head.exception()
        self._pipe.end()
        self._receipted.set()


def _outcome(verdict: Verdict) -> str:
    return verdict.final.outcome.name.lower()
