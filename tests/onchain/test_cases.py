# SPDX-License-Identifier: Apache-2.0
"""Cases from the accusation to the slash, and everything a party may try on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from eth.exceptions import Revert
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import (
    ABSTAIN,
    CHEAT,
    COMMITTEE,
    EVIDENCE,
    GUILTY,
    HONEST,
    INNOCENT,
    MODEL,
    SALT,
    STAKE,
    VALIDATOR,
    VALIDATORS,
    WORKER,
    Court,
)

from bombyx.protocol.audit.case import CaseState, Ending, certificate_digest, certificate_message, encode_certificate
from bombyx.protocol.primitives import keccak256, sha256
from bombyx.protocol.wire.eip712 import word
from bombyx.protocol.wire.signing import SigningKey

ACCUSER = VALIDATORS[0]


@pytest.fixture(scope="module")
def built(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed)


@pytest.fixture
def court(built: Court) -> Iterator[Court]:
    with built.boa.env.anchor():
        yield built
        built.check()


# --- the ordinary course ---------------------------------------------------------------------------------------------


def test_a_conviction_slashes_ejects_and_pays(court: Court) -> None:
    """VAL-7 .. VAL-11: two thirds say guilty, nobody appeals or vetoes; a tenth of the stake goes, and so does the
    worker's line; who said what came out is paid, the accuser has its bond again and a bounded bounty."""
    case = court.convicted(ACCUSER)
    assert (court.state(case), court.ending(case)) == (CaseState.CLOSED, Ending.SLASHED)
    assert court.shares(CHEAT) == STAKE * 9 // 10
    assert not court.registry.inSet(str(CHEAT.address), WORKER)
    assert [line[0] for line in court.registry.operators(WORKER, 0, 9)] == [str(HONEST.address)]
    terms = court.terms
    assert court.service.credits(str(ACCUSER.address)) == terms.bond - 3 * terms.juror_fee
    assert all(court.service.credits(str(one.address)) == terms.juror_fee for one in court.jury(case))
    assert court.restitution.credits(str(ACCUSER.address)) == min(STAKE // 100, terms.bounty_most)
    court.service.collect(str(ACCUSER.address))
    assert court.service.credits(str(ACCUSER.address)) == 0


def test_an_acquittal_pays_the_accused_for_the_trouble(court: Court) -> None:
    """VAL-10: the accuser loses its bond: fees to the jury, the rest to the accused."""
    case = court.judged(ACCUSER, INNOCENT)
    court.pass_time(court.terms.appeal)
    court.execute(case)
    assert court.ending(case) is Ending.ACQUITTED
    assert court.shares(CHEAT) == STAKE
    assert court.service.credits(str(CHEAT.address)) == court.terms.bond - 3 * court.terms.juror_fee
    assert court.service.credits(str(ACCUSER.address)) == 0


def test_an_appeal_that_wins_takes_everything_back(court: Court) -> None:
    """VAL-9: the bigger jury overrules the smaller; those who convicted earn nothing and lose no stake."""
    case = court.judged(ACCUSER, GUILTY)
    first = court.jury(case)
    court.service.appeal(case, sender=str(CHEAT.address))
    second = court.draw(case)
    assert len(second) == 5  # 2n + 1 would be 7; the set has five besides the accuser
    court.vote(case, *[INNOCENT] * 5)
    court.execute(case)
    assert court.ending(case) is Ending.ACQUITTED
    assert court.shares(CHEAT) == STAKE
    fees = {str(one.address): court.service.credits(str(one.address)) for one in second}
    assert set(fees.values()) == {court.terms.juror_fee}
    assert all(court.allocated(one, VALIDATOR) == STAKE for one in first)
    appeal = court.terms.bond + 4 * court.terms.juror_fee
    assert court.service.credits(str(CHEAT.address)) == appeal - 5 * court.terms.juror_fee + court.terms.bond


def test_an_appeal_that_loses_pays_for_its_jury(court: Court) -> None:
    """VAL-9: and the rest of its bond is the accuser's."""
    case = court.judged(ACCUSER, GUILTY)
    court.service.appeal(case, sender=str(CHEAT.address))
    court.draw(case)
    court.vote(case, *[GUILTY] * 5)
    court.execute(case)
    court.pass_time(court.terms.veto)
    court.execute(case)
    assert court.ending(case) is Ending.SLASHED
    terms = court.terms
    appeal = terms.bond + 4 * terms.juror_fee
    expected = terms.bond - 3 * terms.juror_fee + appeal - 5 * terms.juror_fee
    assert court.service.credits(str(ACCUSER.address)) == expected


def test_no_quorum_is_no_conviction(court: Court) -> None:
    """VAL-8: one of three abstains, one disagrees: bonds go back, nobody is paid, nobody slashed."""
    case = court.open(ACCUSER)
    court.draw(case)
    court.vote(case, GUILTY, INNOCENT, ABSTAIN)
    for party in (CHEAT, ACCUSER):
        with court.bench.refused("NotTheLoser"):
            court.service.appeal(case, sender=str(party.address))
    court.pass_time(court.terms.appeal)
    court.execute(case)
    assert court.ending(case) is Ending.VOID
    assert court.service.credits(str(ACCUSER.address)) == court.terms.bond


def test_the_committee_may_veto_and_nothing_else(court: Court) -> None:
    """VAL-11: in time, and only a jury's slash; nobody else may."""
    case = court.judged(ACCUSER, GUILTY)
    court.pass_time(court.terms.appeal)
    court.execute(case)
    sentence = court.row(case)[18]
    for other in (STRANGER, CHEAT, ACCUSER):
        with court.bench.refused("OnlyVetoCommittee"):
            court.slasher.cancelSlashingRequest(sentence, sender=str(other.address))
    court.slasher.cancelSlashingRequest(sentence, sender=str(COMMITTEE.address))
    with court.bench.refused("NotQueued"):
        court.slasher.cancelSlashingRequest(sentence, sender=str(COMMITTEE.address))
    court.pass_time(court.terms.veto)
    court.execute(case)
    assert court.ending(case) is Ending.VETOED
    assert court.shares(CHEAT) == STAKE


def test_a_veto_too_late_is_none(court: Court) -> None:
    """VAL-11: a captured committee cannot hold a slash back for ever."""
    case = court.judged(ACCUSER, GUILTY)
    court.pass_time(court.terms.appeal)
    court.execute(case)
    court.pass_time(court.terms.veto)
    with court.bench.refused("OnlyVetoCommittee"):
        court.slasher.cancelSlashingRequest(court.row(case)[18], sender=str(COMMITTEE.address))
    court.execute(case)
    assert court.ending(case) is Ending.SLASHED


def test_strikes_below_the_threshold_slash_nobody(deployed: Bench) -> None:
    """VAL-11: three convictions within the last five cases; an acquittal moves old ones out."""
    with deployed.boa.env.anchor():
        court = Court(deployed, strikes=3, strike_cases=3)
        for verdict, ending in (
            (GUILTY, Ending.STRUCK),
            (INNOCENT, Ending.ACQUITTED),
            (GUILTY, Ending.STRUCK),
            (GUILTY, Ending.STRUCK),
        ):
            case = court.judged(ACCUSER, verdict)
            court.pass_time(court.terms.appeal)
            court.execute(case)
            assert court.ending(case) is ending
        assert court.slasher.strikesOf(str(CHEAT.address)) == 2
        case = court.convicted(ACCUSER)
        assert court.ending(case) is Ending.SLASHED
        court.check()


# --- attacks ---------------------------------------------------------------------------------------------------------


def test_attack_collusion_below_quorum(court: Court) -> None:
    """VAL-8: one colluding juror of three, or three of five in the appeal, convict nobody."""
    case = court.open(ACCUSER, HONEST)
    court.draw(case)
    court.vote(case, GUILTY, INNOCENT, INNOCENT)
    assert court.row(case)[3] == INNOCENT
    court.service.appeal(case, sender=str(ACCUSER.address))
    court.draw(case)
    court.vote(case, GUILTY, GUILTY, GUILTY, INNOCENT, INNOCENT)
    court.execute(case)
    assert court.ending(case) is Ending.VOID
    assert court.shares(HONEST) == STAKE


def test_attack_one_validator_alone(deployed: Bench) -> None:
    """VAL-8: where one juror only could be drawn there is no case; a jury of two must agree. A deployment cannot choose
    otherwise."""
    with deployed.boa.env.anchor():
        court = Court(deployed, validators=2)
        case = court.open(ACCUSER)
        court.pass_blocks(court.terms.jury_delay + 1)
        court.service.draw(case)
        assert court.ending(case) is Ending.VOID
        assert court.service.credits(str(ACCUSER.address)) == court.terms.bond
        court.check()
        with pytest.raises(Revert):
            Court(deployed, min_jury=1)
    with deployed.boa.env.anchor():
        court = Court(deployed, validators=3)
        case = court.open(ACCUSER)
        assert len(court.draw(case)) == 2
        court.vote(case, GUILTY, ABSTAIN)
        court.pass_time(court.terms.appeal)
        court.execute(case)
        assert court.ending(case) is Ending.VOID


def test_attack_accuser_on_its_own_jury(court: Court) -> None:
    """VAL-7: neither the accuser nor the accused is ever drawn, in either round."""
    for accuser in court.validators:
        case = court.open(accuser)
        assert accuser not in court.draw(case)
    court.vote(case, *[GUILTY] * 3)
    court.service.appeal(case, sender=str(CHEAT.address))
    assert len(court.draw(case)) == len(court.validators) - 1
    assert accuser not in court.jury(case)
    with court.bench.refused("NotAJuror"):
        court.commit(case, accuser, GUILTY)


def test_attack_late_reveal(court: Court) -> None:
    """VAL-10: a juror that hides its verdict cannot choose later; it counts as not agreeing, and is fined."""
    case = court.open(ACCUSER)
    one, two, late = court.draw(case)
    for juror in (one, two, late):
        court.commit(case, juror, INNOCENT)
    for juror in (one, two):
        court.reveal(case, juror, INNOCENT)
    with court.bench.refused("TooEarly"):
        court.decide(case)
    court.pass_time(court.terms.reveal)
    with court.bench.refused("OutsidePhase"):
        court.reveal(case, late, INNOCENT)
    court.decide(case)
    court.pass_time(court.terms.appeal)
    court.execute(case)
    assert court.ending(case) is Ending.ACQUITTED
    assert court.allocated(late, VALIDATOR) == STAKE * 99 // 100
    assert court.restitution.insurance() == STAKE // 100
    assert court.service.strikes(str(late.address)) == 1
    assert court.service.credits(str(late.address)) == 0


def test_attack_staying_away(court: Court) -> None:
    """VAL-10: a juror that never votes loses no stake, and its seat after three times."""
    missed = 0
    while court.registry.inSet(str(VALIDATORS[1].address), VALIDATOR):
        case = court.open(ACCUSER)
        jury = court.draw(case)
        missed += VALIDATORS[1] in jury
        for juror in jury:
            if juror != VALIDATORS[1]:
                court.commit(case, juror, INNOCENT)
        if VALIDATORS[1] in jury:
            court.pass_time(court.terms.commit)
        for juror in jury:
            if juror != VALIDATORS[1]:
                court.reveal(case, juror, INNOCENT)
        court.pass_time(court.terms.reveal)
        court.decide(case)
        court.pass_time(court.terms.appeal)
        court.execute(case)
    assert missed == court.terms.patience
    assert court.shares(VALIDATORS[1]) == STAKE


def test_attack_double_vote(court: Court) -> None:
    """VAL-8: one commitment, one verdict, one voice."""
    case = court.open(ACCUSER)
    one, two, three = court.draw(case)
    court.commit(case, one, GUILTY)
    with court.bench.refused("AlreadyVoted"):
        court.commit(case, one, INNOCENT)
    court.commit(case, two, INNOCENT)
    court.commit(case, three, INNOCENT)
    court.reveal(case, one, GUILTY)
    with court.bench.refused("AlreadyVoted"):
        court.reveal(case, one, GUILTY)
    for other in (STRANGER, ACCUSER, CHEAT):
        with court.bench.refused("OutsidePhase"):
            court.commit(case, other, GUILTY)
        with court.bench.refused("NotWhatWasCommitted"):
            court.reveal(case, other, GUILTY)


def test_attack_copying_a_verdict(court: Court) -> None:
    """VAL-8: another juror's commitment, sent again, opens for nobody; one's own opens to what was committed only."""
    case = court.open(ACCUSER)
    one, two, three = court.draw(case)
    court.commit(case, one, GUILTY)
    copied = bytes(court.service.commitmentOf(case, 1, str(one.address)))
    court.service.commitVerdict(case, copied, sender=str(two.address))
    court.commit(case, three, ABSTAIN)
    court.reveal(case, one, GUILTY)
    with court.bench.refused("NotWhatWasCommitted"):
        court.reveal(case, two, GUILTY)
    with court.bench.refused("NotWhatWasCommitted"):
        court.reveal(case, three, GUILTY)


def test_attack_forced_abstention_by_an_odd_verdict(court: Court) -> None:
    """VAL-8: what is committed to is one of three verdicts, or it is never shown."""
    case = court.open(ACCUSER)
    jury = court.draw(case)
    for juror in jury:
        odd = keccak256(word(case), word(1), word(9), SALT, word(juror.address))
        court.service.commitVerdict(case, bytes(odd), sender=str(juror.address))
    with court.bench.refused("AlreadyVoted"):
        court.service.revealVerdict(case, 9, bytes(SALT), sender=str(jury[0].address))


def _certificate(
    court: Court, case: int, jury: tuple[SigningKey, ...], *, round_: int = 1, chain: int | None = None
) -> tuple[int, bytes]:
    message = certificate_message(
        court.bench.chain_id if chain is None else chain, court.staked.validation, case, round_, GUILTY
    )
    digest = certificate_digest(court.staked.validation, court.now, message)
    return court.now, encode_certificate({one.address: one.sign(digest) for one in jury})


def test_a_certificate_of_two_thirds_ends_the_round(court: Court) -> None:
    """VAL-8: EigenLayer's digest and encoding; reveals stay open, for the fee alone."""
    case = court.open(ACCUSER)
    jury = court.draw(case)
    for juror in jury[:2]:
        court.commit(case, juror, GUILTY)
    at, certificate = _certificate(court, case, jury[:2])
    court.service.certify(case, GUILTY, at, certificate, sender=str(STRANGER.address))
    assert court.state(case) is CaseState.DECIDED
    with court.bench.refused("OutsidePhase"):
        court.service.appeal(case, sender=str(CHEAT.address))  # not before the reveals are over
    court.reveal(case, jury[0], GUILTY)
    court.pass_time(court.terms.reveal + court.terms.appeal)
    court.execute(case)
    court.pass_time(court.terms.veto)
    court.execute(case)
    assert court.ending(case) is Ending.SLASHED
    paid = [court.service.credits(str(one.address)) for one in jury]
    assert paid == [court.terms.juror_fee, 0, 0]
    assert court.allocated(jury[1], VALIDATOR) == STAKE * 99 // 100  # it committed and never showed


def test_attack_replayed_certificate(court: Court) -> None:
    """VAL-8: of another case, round or chain; by too few, by strangers, by one signer twice."""
    case = court.open(ACCUSER)
    jury = court.draw(case)
    for juror in jury:
        court.commit(case, juror, GUILTY)
    other_case, wrong_round = _certificate(court, case + 1, jury), _certificate(court, case, jury, round_=2)
    other_chain = _certificate(court, case, jury, chain=court.bench.chain_id + 1)
    service, sender = court.service, str(STRANGER.address)
    for at, certificate in (other_case, wrong_round, other_chain):
        with pytest.raises(court.boa.BoaError):  # recovers strangers: unordered, or no jurors
            service.certify(case, GUILTY, at, certificate, sender=sender)
    at, good = _certificate(court, case, jury)
    with pytest.raises(court.boa.BoaError):
        service.certify(case, INNOCENT, at, good, sender=sender)
    with court.bench.refused("NoQuorum"):
        service.certify(case, GUILTY, at, good[:65], sender=sender)
    with court.bench.refused("SignersNotOrdered"):
        service.certify(case, GUILTY, at, good[:65] * 2, sender=sender)
    with court.bench.refused("SignersNotOrdered"):
        service.certify(case, GUILTY, at, good[65:130] + good[:65], sender=sender)
    with court.bench.refused("InvalidSignatureLength"):
        service.certify(case, GUILTY, at, good + b"\x00", sender=sender)
    with court.bench.refused("OutsidePhase"):
        service.certify(case, ABSTAIN, at, good, sender=sender)
    strangers = tuple(one for one in VALIDATORS if one not in jury)[:3]
    at, theirs = _certificate(court, case, strangers)
    with court.bench.refused("NotAJuror"):
        service.certify(case, GUILTY, at, theirs, sender=sender)
    service.certify(case, GUILTY, at, good, sender=sender)
    with court.bench.refused("OutsidePhase"):
        service.certify(case, GUILTY, at, good, sender=sender)


def test_attack_signing_with_the_majority_without_having_committed(court: Court) -> None:
    """VAL-8: who waits to see what others say has no voice in a certificate."""
    case = court.open(ACCUSER)
    jury = court.draw(case)
    court.commit(case, jury[0], GUILTY)
    at, certificate = _certificate(court, case, jury)
    with court.bench.refused("NotAJuror"):
        court.service.certify(case, GUILTY, at, certificate, sender=str(STRANGER.address))


def test_attack_griefing_appeals(court: Court) -> None:
    """VAL-9: one appeal a case, by the loser, in time, for a bond that pays the bigger jury."""
    case = court.judged(ACCUSER, GUILTY)
    for other in (ACCUSER, STRANGER, court.jury(case)[0]):
        with court.bench.refused("NotTheLoser"):
            court.service.appeal(case, sender=str(other.address))
    poor = court.token.balanceOf(str(CHEAT.address))
    court.token.transfer(str(STRANGER.address), poor, sender=str(CHEAT.address))
    with pytest.raises(court.boa.BoaError):
        court.service.appeal(case, sender=str(CHEAT.address))
    court.token.transfer(str(CHEAT.address), poor, sender=str(STRANGER.address))
    before = court.money(CHEAT)
    court.service.appeal(case, sender=str(CHEAT.address))
    assert before - court.money(CHEAT) == court.terms.bond + 4 * court.terms.juror_fee
    court.draw(case)
    court.vote(case, *[GUILTY] * 5)
    for party in (CHEAT, ACCUSER):
        with court.bench.refused("OutsidePhase"):
            court.service.appeal(case, sender=str(party.address))
    late = court.judged(ACCUSER, GUILTY, HONEST)
    court.pass_time(court.terms.appeal)
    with court.bench.refused("OutsidePhase"):
        court.service.appeal(late, sender=str(HONEST.address))


def test_attack_an_appeal_nobody_can_judge(court: Court) -> None:
    """VAL-9: validators that leave after the first round do not save the convict."""
    case = court.judged(ACCUSER, GUILTY)
    court.service.appeal(case, sender=str(CHEAT.address))
    for one in court.validators[1:]:
        court.leave(one, VALIDATOR)
    court.pass_blocks(court.terms.jury_delay + 1)
    court.service.draw(case)
    court.execute(case)
    court.pass_time(court.terms.veto)
    court.execute(case)
    assert court.ending(case) is Ending.SLASHED


def test_attack_deregister_and_run(court: Court) -> None:
    """VAL-5: a worker that leaves, deallocates and withdraws as soon as it is accused is slashed all the same."""
    case = court.open(ACCUSER)
    court.leave(CHEAT, WORKER)
    court.allocate(CHEAT, WORKER, 0)
    court.manager.queueWithdrawal(STAKE, sender=str(CHEAT.address))
    court.vote(case, *[GUILTY] * len(court.draw(case)))
    court.pass_time(court.terms.appeal)
    court.execute(case)
    with court.bench.refused("WithdrawalDelayNotElapsed"):
        court.manager.completeWithdrawal(sender=str(CHEAT.address))
    court.pass_time(court.terms.veto)
    court.execute(case)
    assert court.ending(case) is Ending.SLASHED
    court.pass_blocks(court.terms.deallocation_blocks + 2)
    before = court.money(CHEAT)
    court.manager.completeWithdrawal(sender=str(CHEAT.address))
    assert court.money(CHEAT) - before == STAKE * 9 // 10


def test_attack_leaving_before_the_accusation(court: Court) -> None:
    """VAL-5: as long as the stake can be slashed the operator can be accused; not a block longer."""
    court.leave(CHEAT, WORKER)
    court.pass_blocks(court.terms.deallocation_blocks)
    court.open(ACCUSER)
    court.pass_blocks(1)
    with court.bench.refused("NotAccusable"):
        court.open(ACCUSER)


def test_attack_accusing_for_what_has_not_happened(court: Court) -> None:
    """VAL-6: epochs that have ended, of an operator that has stake, by somebody else, with a bond."""
    ahead = court.epoch
    arguments = (bytes(MODEL), bytes(EVIDENCE), "http://a")
    with court.bench.refused("NotYetOver"):
        court.service.openCase(*(str(CHEAT.address), *arguments, 0, ahead, bytes(32)), sender=str(ACCUSER.address))
    with court.bench.refused("NotYetOver"):
        court.service.openCase(*(str(CHEAT.address), *arguments, 5, 4, bytes(32)), sender=str(ACCUSER.address))
    with court.bench.refused("NotAccusable"):
        court.open(CHEAT)
    with court.bench.refused("NotAccusable"):
        court.open(ACCUSER, STRANGER)
    court.token.approve(court.service.address, 0, sender=str(ACCUSER.address))
    with pytest.raises(court.boa.BoaError):
        court.open(ACCUSER)


def test_attack_punished_twice_for_the_same_epochs(court: Court) -> None:
    """VAL-11: two accusers, one offence: the second conviction slashes nothing; a new offence costs half."""
    one, two = court.judged(VALIDATORS[0], GUILTY), court.judged(VALIDATORS[1], GUILTY)
    court.pass_time(court.terms.appeal)
    court.execute(one)
    court.execute(two)
    court.pass_time(court.terms.veto)
    court.execute(one)
    court.execute(two)
    assert (court.ending(one), court.ending(two)) == (Ending.SLASHED, Ending.STRUCK)
    left = STAKE * 9 // 10
    assert court.shares(CHEAT) == left
    court.pass_time(court.terms.ejection)
    court.pass_blocks(court.terms.deallocation_blocks + 1)
    mine = str(CHEAT.address)
    court.registry.register(WORKER, mine, mine, "", b"", bytes(32), [], sender=mine)
    court.manager.registerForOperatorSets(mine, (court.registry.address, [WORKER], b""), sender=mine)
    court.convicted(VALIDATORS[2])
    assert court.shares(CHEAT) == left // 2


def test_attack_coming_back_at_once(court: Court) -> None:
    """VAL-12: an ejected operator has no line and joins nothing until its time is over."""
    court.convicted(ACCUSER)
    mine = str(CHEAT.address)
    with court.bench.refused("Ejected"):
        court.registry.register(WORKER, mine, mine, "", b"", bytes(32), [], sender=mine)
    court.pass_blocks(court.terms.deallocation_blocks + 1)
    with court.bench.refused("Ejected"):
        court.manager.registerForOperatorSets(mine, (court.registry.address, [WORKER], b""), sender=mine)


def test_attack_planted_sample_abuse(court: Court) -> None:
    """VAL-13: a plant nobody agrees with strikes nobody; one made up later, or another's, opens nothing; an accusation
    that failed, called a test, gets no bond back."""
    wrong = court.open(ACCUSER, plant=court.plant(ACCUSER, GUILTY))
    court.vote(wrong, *[INNOCENT] * len(court.draw(wrong)))
    with court.bench.refused("OutsidePhase"):
        court.service.revealPlant(wrong, GUILTY, bytes(SALT), sender=str(ACCUSER.address))
    hedge = court.open(ACCUSER, plant=court.plant(ACCUSER, INNOCENT))
    court.vote(hedge, *[INNOCENT] * len(court.draw(hedge)))
    with court.bench.refused("NotWhatWasCommitted"):
        court.service.revealPlant(hedge, INNOCENT, bytes(sha256(b"x")), sender=str(ACCUSER.address))
    with court.bench.refused("NotWhatWasCommitted"):
        court.service.revealPlant(hedge, INNOCENT, bytes(SALT), sender=str(VALIDATORS[1].address))
    court.service.revealPlant(hedge, INNOCENT, bytes(SALT), sender=str(ACCUSER.address))
    with court.bench.refused("NotWhatWasCommitted"):
        court.service.revealPlant(hedge, INNOCENT, bytes(SALT), sender=str(ACCUSER.address))
    court.pass_time(court.terms.appeal)
    court.execute(hedge)
    assert court.ending(hedge) is Ending.ACQUITTED
    assert court.service.credits(str(ACCUSER.address)) == 0


def test_a_planted_sample_finds_the_lazy_juror(court: Court) -> None:
    """VAL-13: it knew the answer, so did the majority; who said the opposite gets a strike, and nobody is slashed."""
    accomplice = CHEAT
    case = court.open(ACCUSER, accomplice, plant=court.plant(ACCUSER, GUILTY))
    one, two, lazy = court.draw(case)
    court.vote(case, GUILTY, GUILTY, INNOCENT)
    court.pass_time(court.terms.appeal)
    court.execute(case)
    assert court.state(case) is CaseState.QUEUED
    court.service.revealPlant(case, GUILTY, bytes(SALT), sender=str(ACCUSER.address))
    assert court.ending(case) is Ending.PLANTED
    assert court.shares(accomplice) == STAKE
    assert [court.service.blunders(str(who.address)) for who in (one, two, lazy)] == [0, 0, 1]
    with court.bench.refused("TooEarly"):
        court.execute(case)
    assert court.service.credits(str(ACCUSER.address)) == court.terms.bond - 2 * court.terms.juror_fee


def test_attack_shifting_the_jury(court: Court) -> None:
    """VAL-7: nobody draws before the block named at the opening is there; who lets its hash lapse gets another block,
    still to come, and so no choice."""
    case = court.open(ACCUSER)
    named = court.row(case)[13]
    with court.bench.refused("TooEarly"):
        court.service.draw(case)
    court.pass_blocks(300)
    court.service.draw(case)
    assert court.state(case) is CaseState.DRAWING
    assert court.row(case)[13] > named + 256
    with court.bench.refused("TooEarly"):
        court.service.draw(case)
    assert len(court.draw(case)) == 3
    with court.bench.refused("OutsidePhase"):
        court.service.draw(case)


def test_a_closed_case_never_moves(court: Court) -> None:
    """VAL-14: every step is refused, whoever takes it and however late."""
    case = court.convicted(ACCUSER)
    before = court.row(case)
    for seconds in (0, court.terms.epoch):
        court.pass_time(seconds)
        service, sender = court.service, str(ACCUSER.address)
        with court.bench.refused("TooEarly"):
            court.execute(case)
        for step in (service.draw, service.decide, service.appeal):
            with court.bench.refused("OutsidePhase"):
                step(case, sender=sender)
        with court.bench.refused("OutsidePhase"):
            court.commit(case, court.jury(case)[0], GUILTY)
        with court.bench.refused("OutsidePhase"):
            court.reveal(case, court.jury(case)[0], GUILTY)
        with court.bench.refused("OutsidePhase"):
            service.revealPlant(case, GUILTY, bytes(SALT), sender=sender)
        with court.bench.refused("OnlyVetoCommittee"):
            court.slasher.cancelSlashingRequest(court.row(case)[18], sender=str(COMMITTEE.address))
    assert court.row(case) == before


def test_attack_calling_the_slasher_directly(court: Court) -> None:
    """VAL-8: whoever is not the service, or the prover of faults, convicts, fines and ejects nobody."""
    who, other = str(CHEAT.address), str(STRANGER.address)
    for sender in (other, str(ACCUSER.address), str(COMMITTEE.address)):
        slasher = court.slasher
        for step, arguments in (
            (slasher.convict, (who, other, bytes(32), 0, 0)),
            (slasher.acquit, (who,)),
            (slasher.punish, (who, other, 10**18, "")),
            (slasher.fine, (who,)),
            (slasher.dismiss, (who,)),
            (slasher.fulfillSlashingRequest, (1,)),
        ):
            with court.bench.refused("OnlyItsCaller"):
                step(*arguments, sender=sender)
        with court.bench.refused("OnlyEnforcer"):
            court.registry.eject(who, 2**60, sender=sender)
        with court.bench.refused("OnlySlasher"):
            court.restitution.open(1, who, bytes(32), 0, other, 0, sender=sender)
        with court.bench.refused("OnlyOnce"):
            court.slasher.start(other, other, other, sender=sender)
        with court.bench.refused("OnlyOnce"):
            court.registry.start(other, other, "", sender=str(STRANGER.address))


def test_how_a_case_ended_is_said_in_erc_8004s_words(court: Court) -> None:
    """VAL-12: the worker asked about its epoch's root; the service answers 0 or 100, about that root only."""
    mine = str(CHEAT.address)
    root = bytes(sha256(b"root"))
    court.roots.postRoot(mine, court.epoch - 1, root, 1, 5, sender=mine)
    court.validations.validationRequest(court.service.address, int(mine, 16), "", root, sender=mine)
    case = court.open(ACCUSER, since=court.epoch - 1)
    with court.bench.refused("OutsidePhase"):
        court.service.publish(case, mine, 0)
    court.vote(case, *[GUILTY] * len(court.draw(case)))
    court.pass_time(court.terms.appeal)
    court.execute(case)
    court.pass_time(court.terms.veto)
    court.execute(case)
    court.service.publish(case, mine, 0, sender=str(STRANGER.address))
    who, agent, answer, evidence, tag, _ = court.validations.getValidationStatus(root)
    assert (who, agent, answer, tag) == (court.service.address, int(mine, 16), 0, "posp-re-exec")
    assert bytes(evidence) == EVIDENCE
    with court.bench.refused("OtherReceipt"):
        court.service.publish(case, mine, 1)
    assert court.validations.getSummary(int(mine, 16), [], "") == (1, 0)
