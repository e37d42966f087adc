# SPDX-License-Identifier: Apache-2.0
"""A simulated network of workers and validators that want to earn: who sits where, what they do, what it brings them.

Money rules are the contracts' (`StakeTerms`, the slasher's grades); evidence is the protocol's own `Evidence`, fed with
answers that fail as often as those of bench/verification.py did. NOT simulated: prices that react, reputations, clients
that leave. One epoch is one day; who was slashed tops its stake up to come back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np

from bombyx.adapters.evm.staked import StakeTerms
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.case import Verdict
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.rate import FLOOR
from bombyx.protocol.audit.verdict import find

FIRST_OFFENCE: Final = 0.10  # of the stake (VAL: graded slashing)
REPEATED: Final = 0.50


class Worker(StrEnum):
    HONEST = "honest"
    ALWAYS = "cheats always"
    FIFTH = "cheats on 20 %"
    TWENTIETH = "cheats on 5 %"
    RUNAWAY = "cheats, then leaves"


class Juror(StrEnum):
    HONEST = "honest"
    LAZY = "lazy: never runs, says innocent"
    PRIOR = "lazy: never runs, says guilty"
    COPY = "copies a hidden vote, late"
    COLLUDES = "acquits its friends"


SHARE: Final = {Worker.HONEST: 0.0, Worker.ALWAYS: 1.0, Worker.FIFTH: 0.2, Worker.TWENTIETH: 0.05, Worker.RUNAWAY: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Prices in base units (a million to the dollar), a day's traffic, and how well an audit sees."""

    terms: StakeTerms = field(default_factory=StakeTerms)
    answers: int = 5_000  # a worker's, a day
    fee: int = 2_000  # of one answer
    honest_cost: int = 1_200
    cheat_cost: int = 600  # a smaller model: half the machine
    verify_cost: int = 1_000  # one re-run of one answer: cost bench says 0.8 of generating
    rate: float = FLOOR  # canaries, as a share of a worker's answers, all validators together
    caught: float = 0.9  # a cheated answer fails (weights at 4 bits, mild)
    wronged: float = 0.0005  # an honest answer fails; measured 0, so this is a pessimist's number
    planted: float = 0.2  # planted cases beside each real one, half of them innocent
    bribe: int = 5_000_000  # what a friend pays a colluding juror for each acquittal
    days: int = 365

    @property
    def stake(self) -> int:
        return self.terms.worker_minimum


@dataclass(slots=True)
class Seat:
    """One worker."""

    kind: Worker
    evidence: dict[int, Evidence] = field(default_factory=dict)
    strikes: list[int] = field(default_factory=list)
    slashes: int = 0
    out_until: int = 0
    earned: float = 0.0
    lost: float = 0.0


@dataclass(slots=True)
class Chair:
    """One validator."""

    kind: Juror
    strikes: int = 0
    blunders: int = 0  # about samples: only another sample makes one good (VAL-10)
    dismissed: bool = False
    earned: float = 0.0
    days: int = 0


class Game:
    """Days, one after the other."""

    def __init__(self, world: World, workers: Counter[Worker], validators: Counter[Juror], seed: int) -> None:
        self.world = world
        self.chance = np.random.default_rng(seed)
        self.workers = [Seat(kind) for kind, count in workers.items() for _ in range(count)]
        self.validators = [Chair(kind) for kind, count in validators.items() for _ in range(count)]
        self.wrong = 0  # honest workers convicted
        self.acquitted = 0  # guilty workers let go by a jury

    def play(self) -> Game:
        for day in range(self.world.days):
            for seat in self.workers:
                self._serve(seat, day)
            for number, chair in enumerate(self.validators):
                chair.days += not chair.dismissed
                if not chair.dismissed and chair.kind in (Juror.HONEST, Juror.COLLUDES):
                    self._audit(number, chair, day)
        return self

    def _serve(self, seat: Seat, day: int) -> None:
        if day < seat.out_until:
            return
        world, share = self.world, SHARE[seat.kind]
        if seat.kind is Worker.RUNAWAY and day >= 14:
            share = 0.0  # it has asked for its stake back, which stays slashable until it may leave
            return
        cost = share * world.cheat_cost + (1 - share) * world.honest_cost
        seat.earned += world.answers * (world.fee - cost)

    def _audit(self, number: int, chair: Chair, day: int) -> None:
        world = self.world
        canaries = world.rate * world.answers / max(1, len(self.validators))
        for seat in self.workers:
            running = day >= seat.out_until and not (seat.kind is Worker.RUNAWAY and day >= 14)
            if not running:
                continue
            count = int(self.chance.poisson(canaries))
            chair.earned -= count * (world.fee + world.verify_cost)
            evidence = seat.evidence.get(number) or Evidence.none(DEFAULT)
            for _ in range(count):
                cheated = self.chance.random() < SHARE[seat.kind]
                failed = self.chance.random() < (world.caught if cheated else world.wronged)
                evidence = evidence.update((), failed=bool(failed))
            seat.evidence[number] = evidence
            friends = chair.kind is Juror.COLLUDES
            if find(evidence) is Verdict.GUILTY and not friends:
                self._case(number, seat, day)

    # --- cases -------------------------------------------------------------------------------------------------------

    def _case(self, accuser: int, seat: Seat, day: int) -> None:
        guilty = SHARE[seat.kind] > 0
        outcome = self._vote(self.world.terms.jury, guilty, accuser, seat)
        if outcome is not Verdict.GUILTY and guilty:  # the accuser appeals; the jury is bigger
            outcome = self._vote(2 * self.world.terms.jury + 1, guilty, accuser, seat)
        for _ in range(int(self.chance.poisson(self.world.planted))):
            self._plant(accuser, guilty=bool(self.chance.random() < 0.5))
        seat.evidence.clear()
        if outcome is Verdict.GUILTY:
            self._convict(self.validators[accuser], seat, day, guilty)
        else:
            self.acquitted += guilty
            self.validators[accuser].earned -= self.world.terms.bond

    def _plant(self, accuser: int, *, guilty: bool) -> None:
        """A sample: its planter pays the jurors who were right, and the rest of its bond where nobody was guilty."""
        outcome = self._vote(self.world.terms.jury, guilty, accuser, None)
        if outcome is Verdict.INNOCENT and not guilty:
            self.validators[accuser].earned -= self.world.terms.bond
        elif outcome is not Verdict.ABSTAIN:
            self.validators[accuser].earned -= self.world.terms.jury * self.world.terms.juror_fee

    def _vote(self, size: int, guilty: bool, accuser: int, accused: Seat | None) -> Verdict:
        """One round. A planted case has no accused, and jurors cannot tell."""
        real = accused is not None
        others = [n for n, chair in enumerate(self.validators) if n != accuser and not chair.dismissed]
        if len(others) < self.world.terms.min_jury:
            return Verdict.ABSTAIN
        jury = [self.validators[n] for n in self.chance.permutation(others)[:size]]
        votes = [self._said(chair, guilty, accused) for chair in jury]
        said = Counter(votes)
        outcome = next((v for v in (Verdict.GUILTY, Verdict.INNOCENT) if 3 * said[v] >= 2 * len(jury)), Verdict.ABSTAIN)
        shown = not real and outcome is (Verdict.GUILTY if guilty else Verdict.INNOCENT)
        for chair, vote in zip(jury, votes, strict=True):
            right = vote is outcome and outcome is not Verdict.ABSTAIN
            if right:
                chair.earned += self.world.terms.juror_fee
                chair.strikes = max(0, chair.strikes - 1)
            elif vote is Verdict.ABSTAIN:  # the copied vote, which never opens
                chair.strikes += 1
            if shown and vote is not Verdict.ABSTAIN:
                chair.blunders = max(0, chair.blunders - 1) if right else chair.blunders + 1
            chair.dismissed |= max(chair.strikes, chair.blunders) >= self.world.terms.patience
        return outcome

    def _said(self, chair: Chair, guilty: bool, accused: Seat | None) -> Verdict:
        truth = Verdict.GUILTY if guilty else Verdict.INNOCENT
        if chair.kind is Juror.LAZY:
            return Verdict.INNOCENT
        if chair.kind is Juror.PRIOR:
            return Verdict.GUILTY
        if chair.kind is Juror.COPY:
            return Verdict.ABSTAIN  # a commitment holds its juror's address: a copied one opens for nobody else
        if chair.kind is Juror.COLLUDES and guilty and accused is not None:
            chair.earned += self.world.bribe
            accused.lost += self.world.bribe
            return Verdict.INNOCENT
        chair.earned -= 100 * self.world.verify_cost  # a case's canaries, re-run
        return truth

    def _convict(self, accuser: Chair, seat: Seat, day: int, guilty: bool) -> None:
        terms = self.world.terms
        self.wrong += not guilty
        seat.strikes.append(day)
        if len(seat.strikes) < terms.strikes:
            return
        seat.strikes.clear()
        slashed = self.world.stake * (REPEATED if seat.slashes else FIRST_OFFENCE)
        seat.slashes += 1
        seat.lost += slashed
        seat.out_until = day + round(terms.ejection / 86_400)
        accuser.earned += min(terms.bounty_most, slashed * terms.bounty_bps / 10_000)


def incomes(world: World, *, seeds: int, workers: Counter[Worker], validators: Counter[Juror]) -> dict[str, float]:
    """Mean yearly income of each kind of seat, in dollars, and what went wrong."""
    sums: dict[str, float] = defaultdict(float)
    heads: Counter[str] = Counter()
    wrong = acquitted = 0
    for seed in range(seeds):
        game = Game(world, workers, validators, seed).play()
        for seat in game.workers:
            sums[f"worker: {seat.kind}"] += (seat.earned - seat.lost) / 1e6
            heads[f"worker: {seat.kind}"] += 1
        for chair in game.validators:
            sums[f"validator: {chair.kind}"] += chair.earned / 1e6
            heads[f"validator: {chair.kind}"] += 1
        wrong += game.wrong
        acquitted += game.acquitted
    found = {name: sums[name] / heads[name] for name in heads}
    return found | {"honest workers convicted": wrong / seeds, "guilty workers acquitted": acquitted / seeds}


def with_stake(world: World, dollars: float) -> World:
    return replace(world, terms=replace(world.terms, worker_minimum=round(dollars * 1e6)))
