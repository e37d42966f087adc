# SPDX-License-Identifier: Apache-2.0
"""The workers linked to this proxy: who they are, what was proven of them, how they do (spec MKT-5 .. MKT-8).

A `Worker` is an operator with a live link; a `Seat` is one attested keyset of it. After a key rotation the old seat
stays until its keyset ends, so requests sealed a moment ago are still served.

Always: a candidate names one seat; what was observed of an operator outlives its links.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bombyx.protocol.attest import AttestationResult
from bombyx.protocol.market import Load, WorkerStats
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.seal import parse_key_configs
from bombyx.protocol.wire.market import ModelPrice, Offer, PriceSheet
from bombyx.protocol.wire.records import LinkLoad
from bombyx.roles.proxy.links import LinkSession
from bombyx.roles.proxy.wallet import WorkerAccount


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One operator's link and state."""

    operator: Address
    link: LinkSession
    hardware: str
    capacity: int
    stats: WorkerStats
    reported: LinkLoad | None = None
    draining: bool = False
    seats: list[Seat] = field(default_factory=list)

    @property
    def load(self) -> Load:
        """What it says of itself, or what we gave it, whichever is more: its report is always a little old."""
        said = self.reported
        inside, capacity = self.link.open_streams, self.capacity
        if said is not None:
            inside, capacity = max(inside, said.active + said.queued), said.capacity
        active = min(inside, capacity)
        return Load(active=active, queued=inside - active, capacity=capacity)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seat:
    """One keyset of a worker, appraised."""

    worker: Worker
    result: AttestationResult
    candidates: tuple[Digest, ...]
    sheet: PriceSheet
    sheet_digest: Digest
    lines: dict[Digest, ModelPrice]  # of the sheet, which was checked
    account: WorkerAccount
    asked: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False)  # what `admission.py` has priced
    offer: bytes  # what the directory says of it, encoded once


class Roster:
    """All seats, by candidate."""

    def __init__(self) -> None:
        self.workers: dict[Address, Worker] = {}
        self.changes = 0  # counts up; whoever caches a directory compares
        self._seats: dict[Digest, Seat] = {}
        self._stats: dict[Address, WorkerStats] = {}
        self._departed: dict[Digest, Instant] = {}  # candidates whose worker left, until their keyset ends

    def stats_of(self, operator: Address, hardware: str) -> WorkerStats:
        """What is known of an operator from before, or nothing yet."""
        return self._stats.get(operator) or WorkerStats.fresh(hardware)

    def note(self, worker: Worker, stats: WorkerStats) -> None:
        worker.stats = stats
        self._stats[worker.operator] = stats

    def take(self, worker: Worker) -> None:
        """A worker was welcomed; a link it had before is replaced."""
        old = self.workers.get(worker.operator)
        if old is not None and old is not worker:
            self.drop(old)
        self.workers[worker.operator] = worker
        self.changes += 1

    def seat(
        self,
        worker: Worker,
        result: AttestationResult,
        sheet: PriceSheet,
        account: WorkerAccount,
    ) -> Seat:
        """Offer one more keyset of `worker`."""
        candidates = tuple(config.candidate_id() for config in parse_key_configs(result.key_configs))
        offer = Offer(
            v=1,
            operator=worker.operator,
            bundle=result.bundle,
            candidates=candidates,
            models=result.keyset.models,
            price_sheet=sheet.digest(),
            hardware=worker.hardware,
            not_after=result.until,
        )
        seat = Seat(
            worker=worker,
            result=result,
            candidates=candidates,
            sheet=sheet,
            sheet_digest=offer.price_sheet,
            lines={line.model: line for line in sheet.prices},
            account=account,
            offer=offer.encode(),
        )
        worker.seats.append(seat)
        for candidate in candidates:
            self._seats[candidate] = seat
            self._departed.pop(candidate, None)
        self.changes += 1
        return seat

    def drop(self, worker: Worker) -> None:
        """Its link is gone."""
        if self.workers.get(worker.operator) is worker:
            del self.workers[worker.operator]
        for seat in worker.seats:
            self._forget(seat)
            self._departed.update(dict.fromkeys(seat.candidates, seat.result.until))
        worker.seats.clear()
        self.changes += 1

    def departed(self, candidate: Digest) -> bool:
        """Whether this candidate was here, with a keyset that still holds: its worker is gone, not its key."""
        return candidate in self._departed

    def expire(self, now: Instant) -> None:
        """Forget keysets whose time is over."""
        self._departed = {candidate: until for candidate, until in self._departed.items() if until > now}
        for worker in self.workers.values():
            for seat in [s for s in worker.seats if s.result.until <= now]:
                worker.seats.remove(seat)
                self._forget(seat)
                self.changes += 1

    def retract(self, seat: Seat) -> None:
        """Its image was revoked: nothing more is sent to this keyset."""
        if seat in seat.worker.seats:
            seat.worker.seats.remove(seat)
            self._forget(seat)
            self.changes += 1

    def find(self, candidate: Digest) -> Seat | None:
        return self._seats.get(candidate)

    def offered(self, now: Instant) -> Iterator[Seat]:
        """The newest keyset of every worker that takes requests."""
        for worker in self.workers.values():
            if worker.seats and not worker.draining and worker.seats[-1].result.until > now:
                yield worker.seats[-1]

    def _forget(self, seat: Seat) -> None:
        for candidate in seat.candidates:
            if self._seats.get(candidate) is seat:
                del self._seats[candidate]
