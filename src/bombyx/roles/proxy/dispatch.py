# SPDX-License-Identifier: Apache-2.0
"""An admitted request's way: choose, hand over, watch, settle (spec MKT-5 .. MKT-8, LINK-4, PAY-8).

Always: before the first frame a failure moves the request to the next candidate, after it never; a client that goes
cancels the worker in the same turn of the event loop; whatever happens, the reservation is settled or released.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bombyx.errors import (
    BombyxError,
    DeadlineExceeded,
    LeaseLost,
    LocalError,
    Peer,
    PeerError,
    StreamTruncated,
    Unavailable,
)
from bombyx.ports import Clock
from bombyx.protocol.market import Contender, choose
from bombyx.protocol.pay.receipts import Expectation
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Digest
from bombyx.protocol.seal import Randomness, payload_hash, request_hash
from bombyx.protocol.wire.records import Record, Settlement, WorkerRequest, write_record
from bombyx.protocol.wire.request import Payment
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.admission import Contestant, Job
from bombyx.roles.proxy.metrics import Metrics
from bombyx.roles.proxy.outcomes import Outcomes, told
from bombyx.roles.proxy.relay import Refused, Stream
from bombyx.roles.proxy.roster import Roster
from bombyx.roles.proxy.settings import ProxySettings
from bombyx.roles.proxy.settlement import Settler
from bombyx.roles.proxy.view import Attempt, Observer, ProxyView
from bombyx.roles.proxy.wallet import Wallet

log = logging.getLogger("bombyx.proxy")

NO_SESSION: Final = "PAY-11"  # a worker that restarted knows no session of ours
BOOKED_MORE: Final = "PAY-5: ceiling"  # a worker whose account of cut answers is above what we agreed to
NO_DEPOSIT: Final = ("PAY-2:", "PAY-4:")  # a worker that finds no channel of ours, or too little in it


class Dispatcher:
    """Runs jobs. One task per request, none per frame."""

    def __init__(
        self,
        settings: ProxySettings,
        roster: Roster,
        accounts: Accounts,
        wallet: Wallet,
        settler: Settler,
        metrics: Metrics,
        *,
        receipt_domain: Digest,
        clock: Clock,
        randomness: Randomness,
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._wallet = wallet
        self._settler = settler
        self._metrics = metrics
        self._outcomes = Outcomes(roster, wallet, metrics, clock)
        self._domain = receipt_domain
        self._clock = clock
        self._randomness = randomness
        self._observer = observer
        self._streams: dict[Digest, set[Stream]] = {}  # by client's channel

    def cut(self, channel: Digest) -> None:
        """Another replica keeps this channel now: its streams end where they are, and nothing is booked here."""
        for stream in list(self._streams.get(channel, ())):
            stream.give_up(LeaseLost("another replica has taken this channel over", rule="LEASE-4"))

    async def run(self, job: Job, view: ProxyView) -> None:
        """Answer the job. Raises, with the reservation released, when no candidate started to answer."""
        try:
            await self._run(job, view)
        except BaseException:
            if not job.exchange.started:
                self._settler.release(job.reservation)
            raise

    async def _run(self, job: Job, view: ProxyView) -> None:
        by_candidate = {contestant.candidate: contestant for contestant in job.contestants}
        choice = choose(
            [_contender(contestant) for contestant in job.contestants],
            output_units=job.meta.max_output,
            now=self._clock.monotonic(),
            lottery=int.from_bytes(self._randomness.bytes(4)) / 2**32,
        )
        view.why = choice.why
        failure: BombyxError = Unavailable(choice.why, retry_after=self._settings.timings.retry_after, rule="MKT-5")
        for candidate in choice.ranking:
            if job.exchange.disconnected:
                raise StreamTruncated("the client went before anything was sent", peer=Peer.CLIENT)
            reason = await self._attempt(job, by_candidate[candidate], view)
            if reason is None:
                return
            failure = reason
            if isinstance(reason, DeadlineExceeded) and job.meta.deadline <= self._clock.now():
                break
            if isinstance(reason, LeaseLost) or (isinstance(reason, Refused) and reason.final):
                break
        raise told(failure)

    # --- one attempt ---

    async def _attempt(self, job: Job, chosen: Contestant, view: ProxyView) -> BombyxError | None:
        """None when this worker answered, to the end or not; else why it did not start."""
        for retry in (False, True):
            reason = await self._try(job, chosen, view)
            if isinstance(reason, Refused) and reason.message.startswith(NO_DEPOSIT):
                self._wallet.doubt(chosen.seat.account)
            if retry or not isinstance(reason, Refused):
                return reason
            if reason.message.startswith(BOOKED_MORE) and self._wallet.dispute(chosen.seat.account):
                continue
            if NO_SESSION not in reason.message:
                return reason
            chosen.seat.account.channel.drop_session()
        return None

    async def _try(self, job: Job, chosen: Contestant, view: ProxyView) -> BombyxError | None:
        attempt: Attempt = {"worker": chosen.seat.worker.operator, "result": "open"}
        view.attempts.append(attempt)
        try:
            payment, wrap = await self._pay(job, chosen)
            stream = self._open(job, chosen, view)
        except (LocalError, PeerError, Unavailable) as error:
            attempt["result"] = error.code
            self._metrics.attempts.labels("not sent").inc()
            return error
        sent_at = self._clock.monotonic()
        self._outcomes.note(chosen, chosen.seat.worker.stats.dispatched(sent_at))
        request = WorkerRequest(payment=payment, meta=job.envelope.meta_bytes, wrap=wrap, body=job.envelope.body)
        with self._listed(job, stream):
            reason = await self._first_frame(job, chosen, stream, request.encode(), view)
            if reason is None:
                chosen.seat.account.channel.confirm(payment)
                await self._answer(job, chosen, stream, view, sent_at)
                attempt["result"] = view.outcome
                return None
        self._outcomes.did_not_start(job, chosen, stream, reason)
        attempt["result"] = reason.code
        return reason

    @contextmanager
    def _listed(self, job: Job, stream: Stream) -> Iterator[None]:
        """While the stream runs, `cut` finds it."""
        channel = job.reservation.channel
        streams = self._streams.setdefault(channel, set())
        streams.add(stream)
        if not self._accounts.keeps(job.reservation):  # the lease was lost before there was a stream to cut
            self.cut(channel)
        try:
            yield
        finally:
            streams.discard(stream)
            if not streams:
                self._streams.pop(channel, None)

    async def _pay(self, job: Job, chosen: Contestant) -> tuple[Payment, bytes]:
        wrap = job.envelope.wrap_of(job.meta, chosen.candidate)
        payment = await self._wallet.authorize(
            chosen.seat.account,
            job.meta.request_id,
            cap=chosen.worker_cap,
            meta_hash=job.meta_hash,
            body_hash=payload_hash((wrap,) if wrap else (), job.envelope.body),
        )
        return payment, wrap

    def _open(self, job: Job, chosen: Contestant, view: ProxyView) -> Stream:
        link = chosen.seat.worker.link
        trail = ReceiptTrail(self._expectation(job, chosen))
        channel = chosen.seat.account.channel.id
        bps, reservation = job.meta.commission_bps, job.reservation

        def on_receipt(receipt: bytes) -> None:
            view.receipts += 1
            self._settler.keep(reservation, bps, channel, receipt)

        return link.open(
            lambda number: Stream(
                link,
                number,
                job.exchange,
                candidate=chosen.candidate,
                trail=trail,
                window=self._settings.stream_window,
                on_receipt=on_receipt,
                observer=self._watch(job),
            )
        )

    def _expectation(self, job: Job, chosen: Contestant) -> Expectation:
        meta, seat = job.meta, chosen.seat
        return Expectation(
            domain=self._domain,
            receipt_address=seat.result.keyset.receipt_address,
            operator=seat.worker.operator,
            price_sheet=seat.sheet_digest,  # `Expectation.of` would encode the sheet again for each request
            price=chosen.price,
            grain=seat.sheet.grain,
            request_id=meta.request_id,
            request_hash=request_hash(
                job.envelope.meta_bytes, job.envelope.wrap_of(meta, chosen.candidate), job.envelope.body
            ),
            model=meta.model,
            max_input=meta.max_input,
            max_output=meta.max_output,
            cap=chosen.worker_cap,
        )

    async def _first_frame(
        self, job: Job, chosen: Contestant, stream: Stream, request: bytes, view: ProxyView
    ) -> BombyxError | None:
        """Send, and wait for the first frame: as long as we may, and not for a client that is gone."""
        times = self._settings.timings
        loop = asyncio.get_running_loop()
        left = (job.meta.deadline - self._clock.now()) / 1000
        patience = min(left, times.first_frame)

        def hung() -> None:
            stream.give_up(DeadlineExceeded(f"no frame within {patience:.1f} s", rule="LINK-4"))

        def gone() -> None:
            stream.cancel()
            left_alone = StreamTruncated("the client went", peer=Peer.CLIENT, rule="LINK-4")
            loop.call_later(times.cancel_grace, stream.give_up, left_alone)

        timer = loop.call_later(max(0.0, patience), hung)
        job.exchange.on_disconnect = gone
        job.exchange.on_resume = stream.grant
        if job.exchange.disconnected:
            gone()
        if self._observer is not None:
            self._observer(job.meta.request_id, "to worker", request)
        await chosen.seat.worker.link.upload(stream, request)
        reason = await stream.opened
        timer.cancel()
        return reason

    # --- the answer ---

    async def _answer(self, job: Job, chosen: Contestant, stream: Stream, view: ProxyView, sent_at: float) -> None:
        """From the first frame to the end. The frames pass in callbacks; this only waits."""
        first = self._clock.monotonic()
        load = chosen.seat.worker.load.share
        view.first_frame_seconds = first - job.arrived
        self._metrics.first_frame.observe(first - job.arrived)
        self._outcomes.note(chosen, chosen.seat.worker.stats.first_frame_seen(first, first - sent_at, load))
        failure = await self._end_of(job, stream)
        job.exchange.on_disconnect = job.exchange.on_resume = None
        seconds = self._clock.monotonic() - first
        self._outcomes.judge(chosen, stream, failure, seconds, load)
        try:
            settlement = await self._settler.settle(
                job.reservation, job.meta.commission_bps, chosen.seat.account.channel, stream.trail
            )
        except BombyxError:
            job.exchange.abort()  # nothing is said to be booked that may not be
            raise
        self._say_end(job, stream, failure, settlement)
        self._outcomes.describe(job, chosen, stream, view, failure, settlement)

    async def _end_of(self, job: Job, stream: Stream) -> BombyxError | None:
        loop = asyncio.get_running_loop()

        def too_late() -> None:
            stream.cancel()
            late = DeadlineExceeded("the request's deadline has passed", rule="LINK-4")
            loop.call_later(self._settings.timings.cancel_grace, stream.give_up, late)

        timer = loop.call_later(max(0.0, (job.meta.deadline - self._clock.now()) / 1000), too_late)
        failure = await stream.ended
        timer.cancel()
        return failure

    def _say_end(self, job: Job, stream: Stream, failure: BombyxError | None, settlement: Settlement) -> None:
        """END says what was booked. After a failure a HINT says why; the missing final frame is what proves it."""
        hint = b"" if failure is None else write_record(Record.HINT, json.dumps(failure.as_dict()).encode())
        job.exchange.end(stream.rest() + hint + write_record(Record.END, settlement.encode()))

    def _watch(self, job: Job) -> Callable[[str, bytes], None] | None:
        observer, request_id = self._observer, job.meta.request_id
        return None if observer is None else lambda what, data: observer(request_id, what, data)


def _contender(contestant: Contestant) -> Contender:
    worker = contestant.seat.worker
    return Contender(worker=contestant.candidate, price=contestant.worker_cap, load=worker.load, stats=worker.stats)
