# SPDX-License-Identifier: Apache-2.0
"""What receipts prove by themselves, roots that hold, and everything that is no proof."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import CHEAT, HONEST, STAKE, VALIDATORS, WORKER, Court, signed

from bombyx.protocol.audit.merkle import merkle_proof, merkle_root
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.receipt import Kind, Outcome, SignedReceipt

WITNESS = VALIDATORS[0]


@pytest.fixture(scope="module")
def built(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed)


@pytest.fixture
def court(built: Court) -> Iterator[Court]:
    with built.boa.env.anchor():
        yield built
        built.check()


def prove(court: Court, one: SignedReceipt, other: SignedReceipt) -> None:
    court.faults.proveEquivocation(signed(one), signed(other), sender=str(WITNESS.address))


def digest_of(court: Court, held: SignedReceipt) -> Digest:
    return held.receipt.typed_digest(court.domain)


def post(court: Court, held: list[SignedReceipt], first: int = 1, *, epoch: int | None = None) -> list[Digest]:
    leaves = [digest_of(court, one) for one in held]
    mine = str(CHEAT.address)
    at = court.epoch - 1 if epoch is None else epoch
    court.roots.postRoot(mine, at, bytes(merkle_root(leaves)), first, len(leaves), sender=mine)
    return leaves


# --- equivocation ----------------------------------------------------------------------------------------------------


def test_two_receipts_with_one_seq_cost_everything_at_once(court: Court) -> None:
    """VAL-3, RCT-10: no jury, no wait, no veto; a proof counts once."""
    one, two = court.receipt(7), court.receipt(7, charge=2_000)
    prove(court, one, two)
    assert court.shares(CHEAT) == 0
    assert not court.registry.inSet(str(CHEAT.address), WORKER)
    assert court.restitution.credits(str(WITNESS.address)) == court.terms.bounty_most
    with court.bench.refused("ProvenAlready"):
        prove(court, two, one)
    with court.bench.refused("InvalidStrategy"):
        court.manager.depositIntoStrategy(court.manager.address, court.token.address, 1, sender=str(CHEAT.address))


def test_two_endings_of_one_request_are_a_fault(court: Court) -> None:
    """VAL-3, RCT-10: whatever their seq: two finals, or two checkpoints of the same frames."""
    same = sha256(b"request")
    prove(court, court.receipt(1, request_hash=same), court.receipt(2, request_hash=same, outcome=Outcome.FAILED))
    assert court.shares(CHEAT) == 0


def test_attack_calling_honest_receipts_a_contradiction(court: Court) -> None:
    """VAL-3: the same receipt twice, two requests, checkpoints at different frames, a checkpoint and its final, two
    workers that share a key, a key never published, a signature of nobody."""
    same = sha256(b"request")
    first = court.receipt(1, request_hash=same, kind=Kind.CHECKPOINT, outcome=Outcome.RUNNING, frames=1)
    later = court.receipt(2, request_hash=same, kind=Kind.CHECKPOINT, outcome=Outcome.RUNNING, frames=64)
    final = court.receipt(3, request_hash=same, frames=64)
    other = court.receipt(4)
    for one, two in ((first, first), (first, later), (later, final), (final, other)):
        with court.bench.refused("NoContradiction"):
            prove(court, one, two)
    mine = str(HONEST.address)
    court.registry.register(WORKER, str(CHEAT.address), mine, "", b"", bytes(32), [], sender=mine)
    with court.bench.refused("NoContradiction"):
        prove(court, court.receipt(5), court.receipt(5, operator=HONEST.address, charge=1))
    stolen = [court.receipt(6, signer=STRANGER, charge=charge) for charge in (1, 2)]
    with court.bench.refused("NotSignedByOperator"):
        prove(court, *stolen)
    broken = SignedReceipt(receipt=final.receipt, signature=bytes(65))
    with court.bench.refused("NotSignedByOperator"):
        prove(court, broken, other)
    assert court.shares(CHEAT) == STAKE


def test_a_checkpoint_pair_with_equal_frames_is_a_fault(court: Court) -> None:
    """VAL-3, RCT-10: it billed the same frames twice, differently."""
    same = sha256(b"request")
    pair = [
        court.receipt(seq, request_hash=same, kind=Kind.CHECKPOINT, outcome=Outcome.RUNNING, frames=64, charge=seq)
        for seq in (1, 2)
    ]
    prove(court, *pair)
    assert court.shares(CHEAT) == 0


# --- roots -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 40), data=st.data())
def test_contract_and_python_agree_on_every_proof(court: Court, count: int, data: st.DataObject) -> None:
    """VAL-1: differential: roots and proofs of Python, judged by the contract; any other place or leaf is refused."""
    with court.boa.env.anchor():
        leaves = [sha256(bytes([n])) for n in range(count)]
        mine = str(CHEAT.address)
        first = 1
        court.roots.postRoot(mine, court.epoch - 1, bytes(merkle_root(leaves)), first, count, sender=mine)
        place = data.draw(st.integers(0, count - 1))
        proof = [bytes(one) for one in merkle_proof(leaves, place)]

        def shown(seq: int, leaf: Digest, path: list[bytes]) -> bool:
            return bool(court.roots.includes(mine, mine, 0, seq, bytes(leaf), path))

        assert shown(first + place, leaves[place], proof)
        assert not shown(first + (place + 1) % (count + 1), leaves[place], proof)
        assert not shown(first + place, sha256(b"forged"), proof)
        assert not shown(first + place, leaves[place], [*proof, bytes(32)])
        assert not shown(first + place + count, leaves[place], proof)


def test_roots_are_consecutive_and_in_time(court: Court) -> None:
    """VAL-1: no gap, no overlap, no second root of an epoch, none for an epoch that runs or is long over, no other's
    key; seq starts at one for a key."""
    mine = str(CHEAT.address)
    root = bytes(sha256(b"root"))

    def posted(error: str, epoch: int, first: int, count: int, *, who: str = mine, whose: str = mine) -> None:
        with court.bench.refused(error):
            court.roots.postRoot(whose, epoch, root, first, count, sender=who)

    last = court.epoch - 1
    posted("NotItsKey", last, 1, 1, who=str(HONEST.address))
    posted("OutsideWindow", last + 1, 1, 1)
    posted("OutsideWindow", last - 1, 1, 1)
    posted("NotConsecutive", last, 2, 1)
    posted("NotConsecutive", last, 1, 0)
    court.roots.postRoot(mine, last, root, 1, 5, sender=mine)
    posted("AlreadyPosted", last, 6, 1)
    court.pass_time(court.terms.epoch - (court.now % court.terms.epoch) + court.terms.root_window)
    posted("OutsideWindow", court.epoch - 1, 6, 1)
    court.pass_time(court.terms.epoch - (court.now % court.terms.epoch))
    posted("NotConsecutive", court.epoch - 1, 5, 1)
    court.roots.postRoot(mine, court.epoch - 1, root, 6, 1, sender=mine)
    assert court.roots.nextSeq(mine, mine) == 7


def test_a_missing_receipt_is_asked_for_and_shown(court: Court) -> None:
    """VAL-4: who answers in time earns the bond."""
    held = [court.receipt(seq) for seq in range(1, 6)]
    leaves = post(court, held)
    ask = str(WITNESS.address)
    number = court.faults.challengeReceipt(signed(held[3]), 0, sender=ask)
    with court.bench.refused("ChallengedAlready"):
        court.faults.challengeReceipt(signed(held[3]), 0, sender=ask)
    with court.bench.refused("TooEarly"):
        court.faults.defaultChallenge(number)
    proof = [bytes(one) for one in merkle_proof(leaves, 3)]
    court.faults.answerChallenge(number, 0, proof, sender=str(STRANGER.address))
    with court.bench.refused("NoSuchChallenge"):
        court.faults.defaultChallenge(number)
    assert court.faults.credits(str(CHEAT.address)) == court.terms.challenge_bond
    assert court.shares(CHEAT) == STAKE
    court.faults.collect(str(CHEAT.address))


def test_attack_a_receipt_left_out_of_its_root(court: Court) -> None:
    """VAL-4: the root holds something else at its place; the worker cannot answer, and is slashed."""
    held = court.receipt(2)
    leaves = post(court, [court.receipt(1), court.receipt(2, charge=9), court.receipt(3)])
    number = court.faults.challengeReceipt(signed(held), 0, sender=str(WITNESS.address))
    forged = [bytes(one) for one in merkle_proof(leaves, 1)]
    for index, proof in ((0, forged), (0, []), (1, forged), (0, forged[:-1])):
        with court.bench.refused("NotIncluded"):
            court.faults.answerChallenge(number, index, proof)
    court.pass_time(court.terms.answer)
    with court.bench.refused("TooLate"):
        court.faults.answerChallenge(number, 0, forged)
    court.faults.defaultChallenge(number)
    assert court.shares(CHEAT) == STAKE * 9 // 10
    assert court.faults.credits(str(WITNESS.address)) == court.terms.challenge_bond


def test_a_receipt_asked_for_before_its_epoch_is_over_can_still_be_shown(court: Court) -> None:
    """VAL-4: the time for an answer is longer than an epoch and its window."""
    held = court.receipt(1)
    number = court.faults.challengeReceipt(signed(held), 0, sender=str(WITNESS.address))
    court.pass_time(court.terms.epoch)
    post(court, [held])
    court.faults.answerChallenge(number, 0, [])
    assert court.shares(CHEAT) == STAKE


def test_attack_asking_for_what_may_be_forgotten(court: Court) -> None:
    """VAL-4: long after its root a worker need not keep a receipt, and is not slashed for it."""
    held = court.receipt(1)
    post(court, [held])
    court.pass_time(court.terms.challengeable + 60)
    with court.bench.refused("TooLate"):
        court.faults.challengeReceipt(signed(held), 0, sender=str(WITNESS.address))
    with court.bench.refused("TooLate"):
        court.faults.challengeReceipt(signed(held), 1, sender=str(WITNESS.address))


# --- plans and beacons -----------------------------------------------------------------------------------------------


def test_plans_are_fixed_before_their_epoch(court: Court) -> None:
    """VAL-2: by members of the set, once, for an epoch that has not begun."""
    mine, root = str(WITNESS.address), bytes(sha256(b"plan"))
    court.roots.commitPlan(court.epoch + 1, root, 4, sender=mine)
    for error, sender, epoch, count in (
        ("AlreadyPosted", mine, court.epoch + 1, 4),
        ("OutsideWindow", mine, court.epoch, 4),
        ("OutsideWindow", mine, court.epoch + 2, 0),
        ("NotAValidator", str(STRANGER.address), court.epoch + 1, 4),
        ("NotAValidator", str(CHEAT.address), court.epoch + 1, 4),
    ):
        with court.bench.refused(error):
            court.roots.commitPlan(epoch, root, count, sender=sender)
    assert court.roots.planOf(mine, court.epoch + 1) == (root, 4)


def test_attack_reorg_shifted_beacon(court: Court) -> None:
    """VAL-2: named after the roots are final, of a block still to come; nobody picks among blocks that are there, and
    one that was missed is named anew, not chosen."""
    epoch = court.epoch
    with court.bench.refused("OutsideWindow"):
        court.roots.fixBeacon(epoch)
    court.pass_time(court.terms.epoch + court.terms.root_window)
    court.roots.fixBeacon(epoch)
    named = court.roots.beaconBlock(epoch)
    assert named > court.boa.env.evm.patch.block_number
    with court.bench.refused("TooEarly"):
        court.roots.fixBeacon(epoch)
    court.pass_blocks(300)
    court.roots.fixBeacon(epoch)
    assert court.roots.beaconOf(epoch) == bytes(32)
    assert court.roots.beaconBlock(epoch) > named + 256
    court.pass_blocks(court.terms.beacon_delay + 1)
    court.roots.fixBeacon(epoch)
    fixed = court.roots.beaconOf(epoch)
    assert fixed != bytes(32)
    with court.bench.refused("OutsideWindow"):
        court.roots.fixBeacon(epoch)
