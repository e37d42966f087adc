# SPDX-License-Identifier: Apache-2.0
"""What an attempt says of its worker, and what is said of it: to statistics, log, metrics and client.

Always: a client that left says nothing of a worker; a client hears the proxy's own words, never a worker's text; logs
hold ids, sizes, durations and reasons, never content.
"""

from __future__ import annotations

import logging

from bombyx.errors import (
    BombyxError,
    BudgetExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    KeyConfigError,
    LeaseLost,
    LocalError,
    NoWorkers,
    Overloaded,
    Peer,
    PeerError,
    ReceiptError,
    Unavailable,
)
from bombyx.ports import Clock
from bombyx.protocol.market import WorkerStats
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.records import Settlement
from bombyx.roles.proxy.admission import Contestant, Job
from bombyx.roles.proxy.metrics import Metrics
from bombyx.roles.proxy.relay import Refused, Stream
from bombyx.roles.proxy.roster import Roster
from bombyx.roles.proxy.view import ProxyView
from bombyx.roles.proxy.wallet import Wallet

log = logging.getLogger("bombyx.proxy")


class Outcomes:
    """Books of everything but money."""

    def __init__(self, roster: Roster, wallet: Wallet, metrics: Metrics, clock: Clock) -> None:
        self._roster = roster
        self._wallet = wallet
        self._metrics = metrics
        self._clock = clock

    def judge(
        self, chosen: Contestant, stream: Stream, failure: BombyxError | None, seconds: float, load: float
    ) -> None:
        """What this answer says of the worker. A client that left says nothing."""
        now, stats = self._clock.monotonic(), chosen.seat.worker.stats
        final = stream.trail.final
        if failure is not None:
            if isinstance(failure, ReceiptError):
                self._metrics.receipts_bad.inc()
            if not isinstance(failure, LeaseLost) and not _by_client(failure):
                self.note(chosen, stats.failed(now))
        elif final is not None and final.receipt.outcome is Outcome.FAILED:
            self.note(chosen, stats.failed(now))
        elif final is not None and final.receipt.outcome in (Outcome.COMPLETE, Outcome.REFUSED):
            self.note(chosen, stats.finished(now, final.receipt.output_units, seconds, load))

    def did_not_start(self, job: Job, chosen: Contestant, reason: BombyxError, *, waited: bool) -> None:
        """Nothing was delivered, so nothing is owed; whether the worker is to blame depends on its reason. For the
        silence of its queue it is not."""
        self._wallet.release(chosen.seat.account.channel, job.meta.request_id)
        ours = isinstance(reason, LeaseLost) or _by_client(reason) or (waited and isinstance(reason, DeadlineExceeded))
        blamed = reason.blames_worker if isinstance(reason, Refused) else not ours
        if blamed and not job.exchange.disconnected:
            self.note(chosen, chosen.seat.worker.stats.failed(self._clock.monotonic()))
        self._metrics.attempts.labels("refused" if isinstance(reason, Refused) else "failed").inc()
        log.info(
            "request %s: worker %s did not start: %s", job.meta.request_id, chosen.seat.worker.operator, reason.code
        )

    def describe(
        self,
        job: Job,
        chosen: Contestant,
        stream: Stream,
        view: ProxyView,
        failure: BombyxError | None,
        settlement: Settlement,
    ) -> None:
        final = stream.trail.final
        view.outcome = final.receipt.outcome.name.lower() if failure is None and final else "truncated"
        view.frames, view.frame_sizes, view.answer_bytes = stream.trail.frames, stream.sizes, stream.bytes
        view.receipts = stream.receipts
        view.worker_charge, view.charge = settlement.worker_charge, settlement.charge
        metrics = self._metrics
        metrics.attempts.labels(view.outcome).inc()
        metrics.frames.inc(stream.trail.frames)
        metrics.answer_bytes.inc(stream.bytes)
        metrics.charged.inc(settlement.charge)
        metrics.paid.inc(settlement.worker_charge)
        log.info(
            "request %s: %s by %s (%s), %d frames, %d bytes, charge %d%s",
            job.meta.request_id,
            view.outcome,
            chosen.seat.worker.operator,
            view.why,
            stream.trail.frames,
            stream.bytes,
            settlement.charge,
            f", {failure}" if failure else "",
        )

    def note(self, chosen: Contestant, stats: WorkerStats) -> None:
        if stats is not chosen.seat.worker.stats:
            self._roster.note(chosen.seat.worker, stats)


def _by_client(failure: BombyxError) -> bool:
    return isinstance(failure, PeerError) and failure.peer is Peer.CLIENT


def told(failure: BombyxError, *, late: bool = False) -> BombyxError:
    """What a client may be told of the last candidate's failure: the proxy's own words, never the worker's text.
    `late`: the request's own deadline has passed."""
    if isinstance(failure, Refused):
        if failure.code == KeyConfigError.code:
            return KeyConfigError(
                "the worker no longer holds the key this was sealed to", peer=Peer.CLIENT, rule="SEAL-10"
            )
        if failure.final:
            refused = PeerError(f"the worker refused: {failure.code}", peer=Peer.CLIENT, rule="LINK-4")
            refused.code = failure.code
            refused.status = 409 if failure.code == "replayed" else 400
            return refused
        return NoWorkers(
            f"no candidate could start: {failure.code}", retry_after=max(1.0, failure.retry_after), rule="LINK-4"
        )
    if isinstance(failure, DeadlineExceeded) and not late:
        return NoWorkers("no candidate could start: silence", retry_after=1.0, rule="LINK-4")
    if isinstance(failure, Unavailable) and not isinstance(failure, EngineUnavailable | Overloaded):
        return failure
    if isinstance(failure, BudgetExceeded | LocalError):
        return NoWorkers("this proxy cannot pay its workers at the moment", retry_after=5.0, rule="PAY-18")
    return NoWorkers(f"no candidate could start: {failure.code}", retry_after=1.0, rule="LINK-4")
