# SPDX-License-Identifier: Apache-2.0
"""Stake, cases and restitution together, whatever anybody does in whatever order.

A rule is tried only where there is a case it could concern, and one rule (`go_on`) takes whatever step is due: else
nearly every play ends before anybody is slashed.

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
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import CHEAT, CLIENTS, COMMITTEE, HONEST, SALT, VALIDATOR, WORKER, Court

from bombyx.protocol.audit.case import WAD, CaseState, Verdict
from bombyx.protocol.wire.signing import SigningKey

workers = st.sampled_from((CHEAT, HONEST))
seats = st.integers(0, 4)  # of validators
verdicts = st.sampled_from(tuple(Verdict))
agreements = st.sampled_from((Verdict.GUILTY, Verdict.INNOCENT))
MOST_OPEN = 3  # cases at a time: more of them only get less far each
OPEN = (CaseState.DRAWING, CaseState.VOTING, CaseState.DECIDED, CaseState.QUEUED)


def some(*states: CaseState) -> Callable[[Any], Any]:
    """A rule for cases in these states: not tried where there are none."""
    return precondition(lambda play: bool(play._in(*states)))


sentenced = precondition(lambda play: any(row[18] for row in play.rows.values()))


class Play(RuleBasedStateMachine):
    """Two workers, five validators, three clients, a committee and a stranger."""

    court: Court

    def __init__(self) -> None:
        super().__init__()
        self.anchor = self.court.boa.env.anchor()
        self.anchor.__enter__()
        self.ended: dict[int, Any] = {}
        self.rows: dict[int, Any] = {}  # as they stood after the last step
        self.seq = 0

    def teardown(self) -> None:
        self.anchor.__exit__(None, None, None)

    # --- what anybody may try: the contract refuses what is not due ---

    def attempt(self, step: Callable[[], Any], *, slashes: bool = False) -> bool:
        """Done, or refused. Stake falls by what may slash alone, never below what was allocated; and a worker's only
        where it had been found guilty by others, in public."""
        before = {one: self.court.shares(one) for one in self._operators()}
        allocated = {one: self._allocated(one) for one in before} if slashes else {}
        cases = self._read()
        try:
            step()
        except self.court.boa.BoaError:
            return False
        self._read()
        for one, shares in before.items():
            fallen = shares - self.court.shares(one)
            assert fallen <= allocated.get(one, 0), "more was slashed than was allocated, or by the wrong step"
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

    def _read(self) -> dict[int, Any]:
        self.rows = {case: self.court.row(case) for case in self._cases()}
        return self.rows

    def _in(self, *states: CaseState) -> list[int]:
        return [case for case, row in self.rows.items() if row[0] in states]

    def _case(self, number: int, *states: CaseState) -> int:
        found = self._in(*states)
        return found[number % len(found)]

    # --- cases ---

    @precondition(lambda play: len(play._in(*OPEN)) < MOST_OPEN)
    @rule(seat=seats, accused=workers, planted=st.sampled_from((None, Verdict.GUILTY, Verdict.INNOCENT)))
    def accuse(self, seat: int, accused: SigningKey, planted: Verdict | None) -> None:
        accuser = self.court.validators[seat]
        plant = self.court.plant(accuser, planted) if planted else SALT
        self.attempt(lambda: self.court.open(accuser, accused, plant=plant))

    @some(CaseState.DRAWING)
    @rule(number=st.integers(0, 9), wait=st.booleans())
    def draw(self, number: int, wait: bool) -> None:
        case = self._case(number, CaseState.DRAWING)
        if wait:
            self.court.pass_blocks(self.court.terms.jury_delay + 1)
        self.attempt(lambda: self.court.service.draw(case), slashes=True)

    @some(CaseState.VOTING)
    @rule(number=st.integers(0, 9), said=st.lists(verdicts, min_size=7, max_size=7), shy=st.integers(0, 3))
    def vote(self, number: int, said: list[Verdict], shy: int) -> None:
        """The whole jury votes; `shy` of them never show it."""
        self._vote(self._case(number, CaseState.VOTING), said, shy)

    def _vote(self, case: int, said: list[Verdict], shy: int) -> None:
        jury = self.court.jury(case)
        for juror, verdict in zip(jury, said, strict=False):
            self.attempt(partial(self.court.commit, case, juror, verdict))
        for juror, verdict in list(zip(jury, said, strict=False))[shy:]:
            self.attempt(partial(self.court.reveal, case, juror, verdict))

    @some(*OPEN)
    @rule(number=st.integers(0, 9), agreed=agreements, steps=st.integers(1, 4), shown=st.booleans())
    def go_on(self, number: int, agreed: Verdict, steps: int, shown: bool) -> None:
        """Whatever is due next of one case, when it is due, by juries of one mind; `shown`: a sample is."""
        case = self._case(number, *OPEN)
        for _ in range(steps):
            self._next(case, agreed, shown)

    def _next(self, case: int, agreed: Verdict, shown: bool) -> None:
        row, terms = self.rows[case], self.court.terms
        state = CaseState(row[0])
        if state is CaseState.DRAWING:
            self.court.pass_blocks(terms.jury_delay + 1)
            self.attempt(lambda: self.court.service.draw(case), slashes=True)
        elif state is CaseState.VOTING:
            self._vote(case, [agreed] * 7, 0)
            if not self.attempt(lambda: self.court.decide(case)):  # some had said nothing
                self.court.pass_time(max(1, self.rows[case][15] - self.court.now))
                self.attempt(lambda: self.court.decide(case))
        elif state is CaseState.DECIDED and shown and self._shows(case):
            return
        elif state is not CaseState.CLOSED:
            self.court.pass_time(terms.appeal if state is CaseState.DECIDED else terms.veto)
            self.attempt(lambda: self.court.execute(case), slashes=True)

    def _shows(self, case: int) -> bool:
        row, show = self.rows[case], self.court.service.revealPlant
        return self.attempt(lambda: show(case, row[3], bytes(SALT), sender=row[5]), slashes=True)

    @some(*OPEN)
    @rule(number=st.integers(0, 9))
    def decide(self, number: int) -> None:
        case = self._case(number, *OPEN)
        self.attempt(lambda: self.court.decide(case))

    @some(CaseState.DECIDED)
    @rule(number=st.integers(0, 9), loser=st.booleans())
    def appeal(self, number: int, loser: bool) -> None:
        case = self._case(number, CaseState.DECIDED)
        row = self.rows[case]
        who = row[4] if (row[3] == Verdict.GUILTY) == loser else row[5]
        self.attempt(lambda: self.court.service.appeal(case, sender=who))

    @some(*OPEN)
    @rule(number=st.integers(0, 9))
    def execute(self, number: int) -> None:
        case = self._case(number, *OPEN)
        self.attempt(lambda: self.court.execute(case), slashes=True)

    @some(CaseState.QUEUED)
    @rule(number=st.integers(0, 9), committee=st.booleans())
    def veto(self, number: int, committee: bool) -> None:
        sentence = self.rows[self._case(number, CaseState.QUEUED)][18]
        sender = str((COMMITTEE if committee else STRANGER).address)
        self.attempt(lambda: self.court.slasher.cancelSlashingRequest(sentence, sender=sender))

    @some(CaseState.DECIDED, CaseState.QUEUED)
    @rule(number=st.integers(0, 9), verdict=st.sampled_from((Verdict.GUILTY, Verdict.INNOCENT)))
    def show_plant(self, number: int, verdict: Verdict) -> None:
        case = self._case(number, CaseState.DECIDED, CaseState.QUEUED)
        accuser = self.rows[case][5]
        self.attempt(lambda: self.court.service.revealPlant(case, verdict, bytes(SALT), sender=accuser), slashes=True)

    # --- stake and time ---

    @rule(seconds=st.sampled_from((5, 20, 60, 130)), who=workers, part=st.integers(0, 4), what=st.integers(0, 5))
    def meanwhile(self, seconds: int, who: SigningKey, part: int, what: int) -> None:
        """What goes on beside the cases; one rule, so that most steps are about cases."""
        if what == 0:
            self.court.pass_time(seconds)
        elif what == 1:
            self.leave(who if part else self.court.validators[seconds % 5])
        elif what == 2:
            self.attempt(lambda: self.court.allocate(who, WORKER, part * WAD // 4))
        elif what in (3, 4):
            self.withdraw(who, part * 10**7 + seconds, take=what == 3)
        else:
            self.collect(self._operators()[part])

    def leave(self, operator: SigningKey) -> None:
        self.attempt(lambda: self.court.leave(operator, WORKER if operator in (CHEAT, HONEST) else VALIDATOR))

    def withdraw(self, who: SigningKey, amount: int, *, take: bool) -> None:
        sender, manager = str(who.address), self.court.manager
        before = self.court.shares(who)
        try:
            if take:
                manager.completeWithdrawal(sender=sender)
            else:
                manager.queueWithdrawal(amount, sender=sender)
        except self.court.boa.BoaError:
            assert self.court.shares(who) == before

    def collect(self, who: SigningKey) -> None:
        account = str(who.address)
        self.attempt(lambda: self.court.service.collect(account))
        self.attempt(lambda: self.court.restitution.collect(account))

    # --- restitution ---

    @sentenced
    @rule(number=st.integers(1, 4), client=st.integers(0, 2), charge=st.integers(1, 10**7))
    def claim(self, number: int, client: int, charge: int) -> None:
        self.seq += 1
        when = self.court.restitution.rows(number)[3]  # the moment of the slash, if there was one
        held = self.court.paid_receipt(self.seq, CLIENTS[client], charge=charge, finished_at=max(0, when - 1))
        self.attempt(lambda: self.court.claim(number, held, CLIENTS[client]))

    @sentenced
    @rule(number=st.integers(1, 4), client=st.integers(0, 2), pay=st.booleans())
    def settle(self, number: int, client: int, pay: bool) -> None:
        payout = str(CLIENTS[client].address)
        restitution = self.court.restitution
        step = partial(restitution.payRefund, number, payout) if pay else partial(restitution.finishRefunds, number)
        self.attempt(step)

    # --- always ---

    @invariant()
    def books_are_right(self) -> None:
        self.court.check()

    @invariant()
    def what_is_closed_stays(self) -> None:
        for case, row in self._read().items():
            if case in self.ended:
                assert row == self.ended[case], "a closed case moved"
            elif row[0] == CaseState.CLOSED:
                self.ended[case] = row


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
        for _ in range(3):
            play.go_on(0, Verdict.GUILTY, 1, False)
        assert built.state(1) is CaseState.CLOSED
        assert built.shares(CHEAT) < built.shares(HONEST)
        play.claim(1, 0, 500)
        built.pass_time(built.terms.claim)
        play.settle(1, 0, False)
        before = built.money(CLIENTS[0])
        play.settle(1, 0, True)
        assert built.money(CLIENTS[0]) - before == 500
        play.books_are_right()
        play.what_is_closed_stays()
        built.pass_time(built.terms.epoch)
        assert not play.attempt(lambda: built.execute(1))
        play.what_is_closed_stays()
    finally:
        play.teardown()
