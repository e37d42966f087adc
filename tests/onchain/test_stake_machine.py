# SPDX-License-Identifier: Apache-2.0
"""Stake, cases and restitution together, whatever anybody does in whatever order.

Always, after every step: tokens are conserved and every contract can pay what it owes; nothing is slashed beyond what
was allocated; stake falls only after two thirds of a jury, two at least and the accuser not among them, said guilty
aloud, or after a proof; a closed case never moves again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import CHEAT, CLIENTS, COMMITTEE, HONEST, SALT, VALIDATOR, WORKER, Court

from bombyx.protocol.audit.case import WAD, CaseState, Verdict
from bombyx.protocol.wire.signing import SigningKey

workers = st.sampled_from((CHEAT, HONEST))
seats = st.integers(0, 4)  # of validators
verdicts = st.sampled_from(tuple(Verdict))
OPEN = (CaseState.DRAWING, CaseState.VOTING, CaseState.DECIDED, CaseState.QUEUED)


class Play(RuleBasedStateMachine):
    """Two workers, five validators, three clients, a committee and a stranger."""

    court: Court

    def __init__(self) -> None:
        super().__init__()
        self.anchor = self.court.boa.env.anchor()
        self.anchor.__enter__()
        self.ended: dict[int, Any] = {}
        self.seq = 0

    def teardown(self) -> None:
        self.anchor.__exit__(None, None, None)

    # --- what anybody may try: the contract refuses what is not due ---

    def attempt(self, step: Callable[[], Any]) -> bool:
        """Done, or refused. Whoever's stake falls must have been found guilty by others, in public."""
        before = {one: (self.court.shares(one), self._allocated(one)) for one in self._operators()}
        cases = {case: self.court.row(case) for case in self._cases()}
        try:
            step()
        except self.court.boa.BoaError:
            return False
        for one, (shares, allocated) in before.items():
            fallen = shares - self.court.shares(one)
            assert fallen <= allocated, "more was slashed than was allocated"
            if fallen and one in (CHEAT, HONEST):
                assert self._convicted(one, cases), "stake fell without a quorum"
        return True

    def _convicted(self, worker: SigningKey, before: dict[int, Any]) -> bool:
        court = self.court
        for case, row in before.items():
            if row[4] != str(worker.address) or row[0] != CaseState.QUEUED:
                continue
            jury = court.service.juryOf(case, row[2])
            guilty = {juror for juror in jury if court.service.verdictOf(case, row[2], juror) == Verdict.GUILTY}
            assert row[5] not in jury
            if len(guilty) >= 2 and 3 * len(guilty) >= 2 * len(jury):
                return True
        return False

    def _operators(self) -> tuple[SigningKey, ...]:
        return (CHEAT, HONEST, *self.court.validators)

    def _allocated(self, who: SigningKey) -> int:
        return self.court.allocated(who, WORKER) + self.court.allocated(who, VALIDATOR)

    def _cases(self) -> range:
        return range(1, self.court.service.caseCount() + 1)

    def _case(self, number: int, *states: CaseState) -> int | None:
        found = [case for case in self._cases() if self.court.state(case) in states]
        return found[number % len(found)] if found else None

    # --- cases ---

    @rule(seat=seats, accused=workers, planted=st.sampled_from((None, Verdict.GUILTY, Verdict.INNOCENT)))
    def accuse(self, seat: int, accused: SigningKey, planted: Verdict | None) -> None:
        accuser = self.court.validators[seat]
        plant = self.court.plant(accuser, planted) if planted else SALT
        self.attempt(lambda: self.court.open(accuser, accused, plant=plant))

    @rule(number=st.integers(0, 9), wait=st.booleans())
    def draw(self, number: int, wait: bool) -> None:
        case = self._case(number, CaseState.DRAWING)
        if case is not None:
            if wait:
                self.court.pass_blocks(self.court.terms.jury_delay + 1)
            self.attempt(lambda: self.court.service.draw(case))

    @rule(number=st.integers(0, 9), said=st.lists(verdicts, min_size=7, max_size=7), shy=st.integers(0, 3))
    def vote(self, number: int, said: list[Verdict], shy: int) -> None:
        """The whole jury votes; `shy` of them never show it."""
        case = self._case(number, CaseState.VOTING)
        if case is None:
            return
        jury = self.court.jury(case)
        for juror, verdict in zip(jury, said, strict=False):
            self.attempt(partial(self.court.commit, case, juror, verdict))
        for juror, verdict in list(zip(jury, said, strict=False))[shy:]:
            self.attempt(partial(self.court.reveal, case, juror, verdict))

    @rule(number=st.integers(0, 9), agreed=st.sampled_from((Verdict.GUILTY, Verdict.INNOCENT)))
    def agree(self, number: int, agreed: Verdict) -> None:
        """A jury of one mind, so that cases get far."""
        case = self._case(number, CaseState.VOTING)
        if case is not None:
            self.vote(number, [agreed] * 7, 0)

    @rule(number=st.integers(0, 9))
    def decide(self, number: int) -> None:
        case = self._case(number, *OPEN)
        if case is not None:
            self.attempt(lambda: self.court.decide(case))

    @rule(number=st.integers(0, 9), loser=st.booleans())
    def appeal(self, number: int, loser: bool) -> None:
        case = self._case(number, CaseState.DECIDED)
        if case is not None:
            row = self.court.row(case)
            who = row[4] if (row[3] == Verdict.GUILTY) == loser else row[5]
            self.attempt(lambda: self.court.service.appeal(case, sender=who))

    @rule(number=st.integers(0, 9))
    def execute(self, number: int) -> None:
        case = self._case(number, *OPEN)
        if case is not None:
            self.attempt(lambda: self.court.execute(case))

    @rule(number=st.integers(0, 9), committee=st.booleans())
    def veto(self, number: int, committee: bool) -> None:
        case = self._case(number, CaseState.QUEUED)
        if case is not None:
            sender = str((COMMITTEE if committee else STRANGER).address)
            self.attempt(lambda: self.court.slasher.cancelSlashingRequest(self.court.row(case)[18], sender=sender))

    @rule(number=st.integers(0, 9), verdict=verdicts)
    def show_plant(self, number: int, verdict: Verdict) -> None:
        case = self._case(number, CaseState.DECIDED, CaseState.QUEUED)
        if case is not None:
            accuser = self.court.row(case)[5]
            self.attempt(lambda: self.court.service.revealPlant(case, verdict, bytes(SALT), sender=accuser))

    # --- stake and time ---

    @rule(seconds=st.sampled_from((5, 20, 60, 130)))
    def wait(self, seconds: int) -> None:
        self.court.pass_time(seconds)

    @rule(who=st.integers(0, 6))
    def leave(self, who: int) -> None:
        operator = self._operators()[who]
        self.attempt(lambda: self.court.leave(operator, WORKER if operator in (CHEAT, HONEST) else VALIDATOR))

    @rule(who=workers, part=st.integers(0, 4))
    def allocate(self, who: SigningKey, part: int) -> None:
        self.attempt(lambda: self.court.allocate(who, WORKER, part * WAD // 4))

    @rule(who=workers, amount=st.integers(1, 10**8), take=st.booleans())
    def withdraw(self, who: SigningKey, amount: int, take: bool) -> None:
        sender, manager = str(who.address), self.court.manager
        before = self.court.shares(who)
        try:
            if take:
                manager.completeWithdrawal(sender=sender)
            else:
                manager.queueWithdrawal(amount, sender=sender)
        except self.court.boa.BoaError:
            assert self.court.shares(who) == before

    # --- restitution ---

    @rule(number=st.integers(1, 4), client=st.integers(0, 2), charge=st.integers(1, 10**7))
    def claim(self, number: int, client: int, charge: int) -> None:
        self.seq += 1
        when = self.court.restitution.rows(number)[3]  # the moment of the slash, if there was one
        held = self.court.paid_receipt(self.seq, CLIENTS[client], charge=charge, finished_at=max(0, when - 1))
        self.attempt(lambda: self.court.claim(number, held, CLIENTS[client]))

    @rule(number=st.integers(1, 4), client=st.integers(0, 2), pay=st.booleans())
    def settle(self, number: int, client: int, pay: bool) -> None:
        payout = str(CLIENTS[client].address)
        restitution = self.court.restitution
        step = partial(restitution.payRefund, number, payout) if pay else partial(restitution.finishRefunds, number)
        self.attempt(step)

    @rule(who=st.integers(0, 6))
    def collect(self, who: int) -> None:
        account = str(self._operators()[who].address)
        self.attempt(lambda: self.court.service.collect(account))
        self.attempt(lambda: self.court.restitution.collect(account))

    # --- always ---

    @invariant()
    def books_are_right(self) -> None:
        self.court.check()

    @invariant()
    def what_is_closed_stays(self) -> None:
        for case in self._cases():
            if case in self.ended:
                assert self.court.row(case) == self.ended[case], "a closed case moved"
            elif self.court.state(case) is CaseState.CLOSED:
                self.ended[case] = self.court.row(case)


@pytest.fixture(scope="module")
def built(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed, validators=5)


def _play(built: Court, examples: int, steps: int) -> None:
    class Machine(Play):
        court = built

    checks = list(HealthCheck)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks
        ),
    )


def test_whatever_is_done_nobody_loses_stake_without_a_quorum(built: Court) -> None:
    """VAL-5 .. VAL-16: quick; `slow` below plays long."""
    _play(built, 4, 15)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_whatever_is_done_for_long(built: Court) -> None:
    """VAL-5 .. VAL-16: many long plays."""
    _play(built, 20, 40)


def test_the_play_reaches_a_slash(built: Court) -> None:
    """VAL-11, VAL-15: by the machine's own rules a case goes to its end and its clients are paid."""

    class Machine(Play):
        court = built

    play = Machine()
    try:
        play.accuse(0, CHEAT, None)
        play.draw(0, True)
        play.agree(0, Verdict.GUILTY)
        play.decide(0)
        play.wait(built.terms.appeal)
        play.execute(0)
        play.wait(built.terms.veto)
        play.execute(0)
        assert built.state(1) is CaseState.CLOSED
        assert built.shares(CHEAT) < built.shares(HONEST)
        play.claim(1, 0, 500)
        play.wait(built.terms.claim)
        play.settle(1, 0, False)
        before = built.money(CLIENTS[0])
        play.settle(1, 0, True)
        assert built.money(CLIENTS[0]) - before == 500
        play.books_are_right()
        play.what_is_closed_stays()
        play.execute(0)
        play.what_is_closed_stays()
    finally:
        play.teardown()
