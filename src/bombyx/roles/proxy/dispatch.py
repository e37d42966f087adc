# SPDX-License-Identifier: Apache-2.0
"""An admitted request's way: choose, hand over, watch, settle (spec MKT-5 .. MKT-8, LINK-4, PAY-8).

Always: before the first frame a failure moves the request to the next candidate, after it never; a client that goes
cancels the worker in the same turn of the event loop; whatever happens, the reservation is settled or released.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable
from typing import Final

from bombyx.errors import (
    BombyxError,
    DeadlineExceeded,
    LeaseLost,
    LocalError,
    NoWorkers,
    Peer,
    PeerError,
    StreamTruncated,
    Unavailable,
)
from bombyx.ports import Clock
from bombyx.protocol.market import Choice, Contender, choose
from bombyx.protocol.pay.receipts import Expectation
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Digest
from bombyx.protocol.seal import Randomness
from bombyx.protocol.wire.records import Record, Settlement, WorkerRequest, write_record
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
            failure = await self._offer(job, view)
            if failure is not None:
                raise told(failure, late=job.meta.deadline <= self._clock.now())
        except BaseException:
            if not job.exchange.started:
                self._settler.release(job.reservation)
            raise

    async def _offer(self, job: Job, view: ProxyView) -> BombyxError | None:
        """To one candidate after the other, until one answers; the last one's reason when none does. After a failure
        the rest is weighed anew: who was full when the request came may be idle by now."""
        left = {contestant.candidate: contestant for contestant in job.contestants}
        reason: BombyxError | None = None
        while left:
            choice = self._choose(job, left.values())
            if choice.worker is None:
                return reason or NoWorkers(choice.why, retry_after=self._settings.timings.retry_after, rule="MKT-5")
            view.why = choice.why
            if job.exchange.disconnected:
                raise StreamTruncated("the client went before anything was sent", peer=Peer.CLIENT)
            chosen = left.pop(choice.worker)
            reason = await self._try(job, chosen, view)
            if isinstance(reason, Refused) and self._worth_repeating(reason, chosen, again=False):
                reason = await self._try(job, chosen, view)
                if isinstance(reason, Refused):
                    self._worth_repeating(reason, chosen, again=True)
            if reason is None:
                return None
            if isinstance(reason, DeadlineExceeded) and job.meta.deadline <= self._clock.now():
                break
            if isinstance(reason, LeaseLost) or (isinstance(reason, Refused) and reason.final):
                break
        return reason

    def _choose(self, job: Job, contestants: Iterable[Contestant]) -> Choice:
        return choose(
            [_contender(contestant) for contestant in contestants],
            output_units=job.meta.max_output,
            now=self._clock.monotonic(),
            lottery=int.from_bytes(self._randomness.bytes(4)) / 2**32,
        )

    def _worth_repeating(self, reason: Refused, chosen: Contestant, *, again: bool) -> bool:
        """Whether the worker lacks something that the same request can bring when it is sent once more."""
        if reason.message.startswith(NO_DEPOSIT):
            self._wallet.doubt(chosen.seat.account)
        if again:
            return False
        if reason.message.startswith(BOOKED_MORE) and self._wallet.dispute(chosen.seat.account):
            return True
        if NO_SESSION not in reason.message:
            return False
        chosen.seat.account.channel.drop_session()
        return True

    # --- one attempt ---

    async def _try(self, job: Job, chosen: Contestant, view: ProxyView) -> BombyxError | None:
        """None when this worker answered, to the end or not; else why it did not start."""
        worker, account = chosen.seat.worker, chosen.seat.account
        attempt: Attempt = {"worker": worker.operator, "result": "open"}
        view.attempts.append(attempt)
        try:
            wrap, hashes = job.envelope.wrap_of(job.meta, chosen.candidate), job.hashes
            payment = await self._wallet.authorize(
                account,
                job.meta.request_id,
                cap=chosen.worker_cap,
                meta_hash=hashes.meta,
                body_hash=hashes.payload(wrap, job.envelope),
            )
            waits = worker.load.full
            stream = self._open(job, chosen, wrap)
        except (LocalError, PeerError, Unavailable) as error:
            self._wallet.release(account.channel, job.meta.request_id)  # nothing left, so nobody can be owed it
            attempt["result"] = error.code
            self._metrics.attempts.labels("not sent").inc()
            return error
        sent_at = self._clock.monotonic()
        self._outcomes.note(chosen, worker.stats.dispatched(sent_at))
        request = WorkerRequest(payment=payment, meta=job.envelope.meta_bytes, wrap=wrap, body=job.envelope.body)
        self._list(job, stream)
        try:
            self._watch_over(job, stream)
            await worker.link.upload(stream, self._shown(job, request.encode()))
            reason = await stream.opened
            if reason is None:
                account.channel.confirm(payment)
                await self._answer(job, chosen, stream, view, sent_at, waits=waits)
                attempt["result"] = view.outcome
                return None
        finally:
            self._unlist(job, stream)
        self._outcomes.did_not_start(job, chosen, reason, waited=waits)
        attempt["result"] = reason.code
        return reason

    def _list(self, job: Job, stream: Stream) -> None:
        """While the stream runs, `cut` finds it."""
        self._streams.setdefault(job.reservation.channel, set()).add(stream)
        if not self._accounts.keeps(job.reservation):  # the lease was lost before there was a stream to cut
            self.cut(job.reservation.channel)

    def _unlist(self, job: Job, stream: Stream) -> None:
        streams = self._streams[job.reservation.channel]
        streams.discard(stream)
        if not streams:
            del self._streams[job.reservation.channel]

    def _open(self, job: Job, chosen: Contestant, wrap: bytes) -> Stream:
        link = chosen.seat.worker.link
        return link.open(
            Stream(
                link,
                job.exchange,
                candidate=chosen.candidate,
                trail=ReceiptTrail(self._expectation(job, chosen, wrap)),
                window=self._settings.stream_window,
                on_receipt=functools.partial(
                    self._settler.keep, job.reservation, job.meta.commission_bps, chosen.seat.account.channel.id
                ),
                observer=self._watch(job) if self._observer is not None else None,
            )
        )

    def _expectation(self, job: Job, chosen: Contestant, wrap: bytes) -> Expectation:
        meta, seat = job.meta, chosen.seat
        return Expectation(
            domain=self._domain,
            receipt_address=seat.result.keyset.receipt_address,
            operator=seat.worker.operator,
            price_sheet=seat.sheet_digest,  # `Expectation.of` would encode the sheet again for each request
            price=chosen.price,
            grain=seat.sheet.grain,
            request_id=meta.request_id,
            request_hash=job.hashes.request(wrap),
            model=meta.model,
            max_input=meta.max_input,
            max_output=meta.max_output,
            cap=chosen.worker_cap,
        )

    def _watch_over(self, job: Job, stream: Stream) -> None:
        """We wait as long as we may, and not for a client that is gone."""
        times, exchange = self._settings.timings, job.exchange
        stream.watch(
            first_frame=times.first_frame,
            deadline=(job.meta.deadline - self._clock.now()) / 1000,
            grace=times.cancel_grace,
        )
        exchange.on_disconnect = stream.client_left
        exchange.on_resume = stream.grant
        if exchange.disconnected:
            stream.client_left()

    def _shown(self, job: Job, request: bytes) -> bytes:
        if self._observer is not None:
            self._observer(job.meta.request_id, "to worker", request)
        return request

    # --- the answer ---

    async def _answer(
        self, job: Job, chosen: Contestant, stream: Stream, view: ProxyView, sent_at: float, *, waits: bool
    ) -> None:
        """From the first frame to the end. The frames pass in callbacks; this only waits."""
        first = self._clock.monotonic()
        load = chosen.seat.worker.load.share
        view.first_frame_seconds = first - job.arrived
        self._metrics.first_frame.observe(first - job.arrived)
        if not waits:  # in a queue the time says nothing of the worker's speed
            self._outcomes.note(chosen, chosen.seat.worker.stats.first_frame_seen(first, first - sent_at, load))
        failure = await stream.ended
        job.exchange.on_disconnect = job.exchange.on_resume = None
        self._outcomes.judge(chosen, stream, failure, self._clock.monotonic() - first, load)
        try:
            settlement = await self._settler.settle(
                job.reservation,
                job.meta.commission_bps,
                chosen.seat.account.channel,
                stream.trail,
                kept=stream.kept,
                while_=functools.partial(self._awaited, job),
            )
        except BombyxError:
            job.exchange.abort()  # nothing is said to be booked that may not be
            raise
        self._say_end(job, stream, failure, settlement)
        self._outcomes.describe(job, chosen, stream, view, failure, settlement)

    def _awaited(self, job: Job) -> bool:
        """Whether the client is there and may still wait: its answer's end, which says what is booked, can be had
        later (PAY-17)."""
        return not job.exchange.disconnected and self._clock.now() < job.meta.deadline

    def _say_end(self, job: Job, stream: Stream, failure: BombyxError | None, settlement: Settlement) -> None:
        """END says what was booked. After a failure a HINT says why; the missing final frame is what proves it."""
        hint = b"" if failure is None else write_record(Record.HINT, json.dumps(failure.as_dict()).encode())
        stream.say_last(hint + write_record(Record.END, settlement.encode()))

    def _watch(self, job: Job) -> Callable[[str, bytes], None] | None:
        observer, request_id = self._observer, job.meta.request_id
        return None if observer is None else lambda what, data: observer(request_id, what, data)


def _contender(contestant: Contestant) -> Contender:
    worker = contestant.seat.worker
    return Contender(worker=contestant.candidate, price=contestant.worker_cap, load=worker.load, stats=worker.stats)
