# SPDX-License-Identifier: Apache-2.0
"""Samples with a known answer: what they do to jurors who do not look, and to planters who do not keep their word."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from tests.onchain.conftest import Bench
from tests.onchain.court import (
    CHEAT,
    COMMITTEE,
    GUILTY,
    HONEST,
    INNOCENT,
    SALT,
    STAKE,
    VALIDATOR,
    VALIDATORS,
    WORKER,
    Court,
)
from tests.onchain.jury_duty import STAKE as DUTY_STAKE
from tests.onchain.jury_duty import on_duty
from tests.unit.validator.world import TinyModel, TinyWorker

from bombyx.adapters.evm.staked import DEVELOPMENT
from bombyx.ports import OperatorRole
from bombyx.protocol.audit.case import Case, CaseState, Ending, Verdict
from bombyx.roles.validator.juror import Opinion
from bombyx.roles.validator.settings import ValidatorSettings

PLANTER = VALIDATORS[0]


@pytest.fixture(scope="module")
def built(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed, validators=4)


@pytest.fixture
def court(built: Court) -> Iterator[Court]:
    with built.boa.env.anchor():
        yield built
        built.check()


def test_a_juror_who_always_convicts_is_dismissed_by_samples_of_innocence(court: Court) -> None:
    """VAL-10, VAL-13: one strike a sample; at `patience` of them its seat is gone, its stake is not."""
    lazy = VALIDATORS[1]
    for strikes in (1, 2, 0):
        case = court.open(PLANTER, plant=court.plant(PLANTER, INNOCENT))
        court.vote(case, *[GUILTY if juror == lazy else INNOCENT for juror in court.draw(case)])
        court.service.revealPlant(case, INNOCENT, bytes(SALT), sender=str(PLANTER.address))
        assert court.service.blunders(str(lazy.address)) == strikes
        court.pass_time(court.terms.appeal)
        court.execute(case)
    assert not court.registry.inSet(str(lazy.address), VALIDATOR)
    assert court.shares(lazy) == STAKE
    assert court.shares(CHEAT) == STAKE


def test_attack_always_saying_what_most_accusations_are(court: Court) -> None:
    """VAL-10: however often it is right about the guilty, a juror who convicts unseen is not forgiven its samples."""
    lazy = VALIDATORS[1]
    for strikes in (1, 2, 0):
        sample = court.open(PLANTER, HONEST, plant=court.plant(PLANTER, INNOCENT))
        court.vote(sample, *[GUILTY if juror == lazy else INNOCENT for juror in court.draw(sample)])
        court.service.revealPlant(sample, INNOCENT, bytes(SALT), sender=str(PLANTER.address))
        assert court.service.blunders(str(lazy.address)) == strikes
        for _ in range(2 if strikes else 0):
            real = court.judged(PLANTER, GUILTY)
            assert lazy in court.jury(real)
            court.pass_time(court.terms.appeal)
            court.execute(real)
            court.slasher.cancelSlashingRequest(court.row(real)[18], sender=str(COMMITTEE.address))
            court.pass_time(court.terms.veto)
            court.execute(real)  # vetoed, so that there is somebody to accuse again; the jury was right all the same
            assert court.service.credits(str(lazy.address)) > 0
    assert not court.registry.inSet(str(lazy.address), VALIDATOR)


def test_a_mistake_about_a_sample_is_made_good_by_the_next(court: Court) -> None:
    """VAL-10: a juror who looks is not dismissed for three mistakes in a life."""
    clumsy = VALIDATORS[1]
    for said, blunders in ((GUILTY, 1), (INNOCENT, 0), (GUILTY, 1), (INNOCENT, 0), (GUILTY, 1), (INNOCENT, 0)):
        case = court.open(PLANTER, plant=court.plant(PLANTER, INNOCENT))
        court.vote(case, *[said if juror == clumsy else INNOCENT for juror in court.draw(case)])
        court.service.revealPlant(case, INNOCENT, bytes(SALT), sender=str(PLANTER.address))
        assert court.service.blunders(str(clumsy.address)) == blunders
    assert court.registry.inSet(str(clumsy.address), VALIDATOR)


def test_a_sample_of_guilt_may_be_shown_as_long_as_the_slash_waits(court: Court) -> None:
    """VAL-13: in the appeal's time no conviction counts; in the veto's time it counts as a strike, and slashes not."""
    for wait in (False, True):
        case = court.open(PLANTER, plant=court.plant(PLANTER, GUILTY))
        jury = court.draw(case)
        court.vote(case, *[GUILTY] * len(jury))
        if wait:
            court.pass_time(court.terms.appeal)
            court.execute(case)
        court.service.revealPlant(case, GUILTY, bytes(SALT), sender=str(PLANTER.address))
        assert court.ending(case) is Ending.PLANTED
        assert court.slasher.strikesOf(str(CHEAT.address)) == wait
    assert court.shares(CHEAT) == STAKE
    assert court.registry.inSet(str(CHEAT.address), WORKER)


def test_attack_a_sample_that_is_not_shown_is_a_conviction(court: Court) -> None:
    """VAL-13: a cheater with a validator of its own does not get away by having meant it as a test."""
    case = court.open(PLANTER, plant=court.plant(PLANTER, GUILTY))
    court.vote(case, *[GUILTY] * len(court.draw(case)))
    court.pass_time(court.terms.appeal)
    court.execute(case)
    court.pass_time(court.terms.veto)
    court.execute(case)
    assert court.ending(case) is Ending.SLASHED
    with court.bench.refused("OutsidePhase"):
        court.service.revealPlant(case, GUILTY, bytes(SALT), sender=str(PLANTER.address))
    assert court.shares(CHEAT) == STAKE * 9 // 10
    assert not court.registry.inSet(str(CHEAT.address), WORKER)


def test_attack_a_sample_shown_too_late_where_strikes_are_counted(deployed: Bench) -> None:
    """VAL-11, VAL-13: below the threshold the case closes with the strike, and there is nothing left to take back."""
    with deployed.boa.env.anchor():
        court = Court(deployed, validators=4, strikes=2, strike_cases=5)
        case = court.open(PLANTER, plant=court.plant(PLANTER, GUILTY))
        court.vote(case, *[GUILTY] * len(court.draw(case)))
        court.pass_time(court.terms.appeal)
        court.execute(case)
        assert court.ending(case) is Ending.STRUCK
        with court.bench.refused("OutsidePhase"):
            court.service.revealPlant(case, GUILTY, bytes(SALT), sender=str(PLANTER.address))
        assert court.slasher.strikesOf(str(CHEAT.address)) == 1
        court.check()


async def test_a_lazy_juror_is_dismissed_by_samples_of_guilt() -> None:
    """AUD-59, VAL-13: on a real node, by the roles themselves: the planter's canaries convict its decoy, two jurors
    re-run and agree, the third acquits unseen; it is struck, at `patience` dismissed, and the decoy keeps its stake."""
    decoy = TinyWorker("decoy", TinyModel(weights=b"cheap"))
    planter = ValidatorSettings(most_tokens=32, watch_seconds=1.0, decoy=decoy.operator)
    juror = ValidatorSettings(most_tokens=32, watch_seconds=1.0, accuse=False)
    terms = dataclasses.replace(DEVELOPMENT, patience=2)

    async def unseen(case: Case) -> Opinion:
        return Opinion(verdict=Verdict.INNOCENT, log10=0.0, why="unseen")

    async with on_duty([decoy, TinyWorker("honest")], terms, [planter, juror, juror, juror]) as duty:
        duty.validators[3].juror.judge = unseen  # type: ignore[method-assign]
        lazy = duty.keys[3].address
        for number in (1, 2):

            async def is_over(number: int = number) -> bool:
                cases = await duty.court.cases()
                return len(cases) >= number and all(case.state is CaseState.CLOSED for case in cases)

            await duty.comes(is_over)
            (case,) = (await duty.court.cases())[number - 1 :]
            assert (case.ending, case.accused) == (Ending.PLANTED, decoy.operator)
            said = {ballot.juror: ballot.verdict for ballot in case.ballots}
            assert said.pop(lazy) is Verdict.INNOCENT
            assert set(said.values()) == {Verdict.GUILTY}
            members = await duty.stakes.members(OperatorRole.VALIDATOR)
            assert (lazy in members) is (number == 1)
            if number == 1:
                await duty.later(64 * terms.epoch)  # a sample a block of epochs
        view = await duty.stakes.stake(decoy.operator)
        assert int(view.deposited) == DUTY_STAKE
        assert view.member == {OperatorRole.WORKER}
        assert await duty.court.convictions(decoy.operator) == 0
        assert int((await duty.stakes.stake(lazy)).deposited) == DUTY_STAKE
