# SPDX-License-Identifier: Apache-2.0
"""Slashed stake finds its clients: each receipt once, to whom its claimant says, and never more than came in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.onchain.conftest import STRANGER, Bench
from tests.onchain.court import CLIENTS, COMMITTEE, HONEST, STAKE, VALIDATORS, Court, signed

from bombyx.protocol.primitives import Address, Instant, sha256
from bombyx.protocol.wire.receipt import Kind, Outcome

ONE, TWO, THREE = CLIENTS
SENTENCE = 1


@pytest.fixture(scope="module")
def built(deployed: Bench) -> Iterator[Court]:
    with deployed.boa.env.anchor():
        yield Court(deployed)


@pytest.fixture
def court(built: Court) -> Iterator[Court]:
    with built.boa.env.anchor():
        yield built
        built.check()


def finish(court: Court) -> None:
    court.pass_time(court.terms.claim)
    court.restitution.finishRefunds(SENTENCE, sender=str(STRANGER.address))


def pay(court: Court, who: Address) -> int:
    before = court.token.balanceOf(str(who))
    court.restitution.payRefund(SENTENCE, str(who), sender=str(STRANGER.address))
    return int(court.token.balanceOf(str(who)) - before)


def test_clients_are_made_whole_and_the_rest_is_insured(court: Court) -> None:
    """VAL-15: clients get what their receipts say; what is left goes to the pool, a bounded bounty to the accuser."""
    held = [court.paid_receipt(1, ONE, charge=700), court.paid_receipt(2, TWO, charge=900), court.paid_receipt(3, ONE)]
    court.convicted(VALIDATORS[0])
    slashed = STAKE // 10
    bounty = min(slashed // 10, court.terms.bounty_most)
    for receipt, client in zip(held, (ONE, TWO, ONE), strict=True):
        court.claim(SENTENCE, receipt, client)
    finish(court)
    assert pay(court, ONE.address) == 1_700
    assert pay(court, TWO.address) == 900
    assert court.restitution.insurance() == slashed - bounty - 2_600
    assert court.restitution.credits(str(VALIDATORS[0].address)) == bounty


def test_too_many_claims_share_pro_rata(deployed: Bench) -> None:
    """VAL-15: what came in for clients is divided by what they paid, and nobody gets more than its part."""
    with deployed.boa.env.anchor():
        court = Court(deployed, refund_cap=10**9)
        held = [court.paid_receipt(1, ONE, charge=6_000_000), court.paid_receipt(2, TWO, charge=3_000_000)]
        court.convicted(VALIDATORS[0])
        for receipt, client in zip(held, (ONE, TWO), strict=True):
            court.claim(SENTENCE, receipt, client)
        finish(court)
        for_clients = STAKE // 10 * court.terms.client_bps // 10_000
        assert pay(court, ONE.address) == for_clients * 2 // 3
        assert pay(court, TWO.address) == for_clients // 3
        court.check()


def test_attack_refund_claimed_twice(court: Court) -> None:
    """VAL-15: a receipt counts once: to another payout, in another sentence, paid again, claimed late."""
    held = court.paid_receipt(1, ONE)
    court.convicted(VALIDATORS[0])
    court.claim(SENTENCE, held, ONE)
    for payout in (ONE.address, STRANGER.address):
        with court.bench.refused("RefundedAlready"):
            court.claim(SENTENCE, held, ONE, payout=payout)
    late = court.paid_receipt(2, ONE, finished_at=held.receipt.finished_at)
    finish(court)
    with court.bench.refused("TooLate"):
        court.claim(SENTENCE, late, ONE)
    assert pay(court, ONE.address) == 1_000
    with court.bench.refused("NothingOwed"):
        court.restitution.payRefund(SENTENCE, str(ONE.address))
    with court.bench.refused("TooEarly"):
        court.restitution.finishRefunds(SENTENCE)
    one, two = court.receipt(50), court.receipt(50, charge=7)
    court.faults.proveEquivocation(signed(one), signed(two), sender=str(VALIDATORS[1].address))
    with court.bench.refused("RefundedAlready"):
        court.claim(SENTENCE + 1, held, ONE)


def test_attack_claim_of_another_clients_refund(court: Court) -> None:
    """VAL-15: who sees a receipt and its opening on the way can neither claim for itself nor redirect the payout."""
    held = court.paid_receipt(1, ONE)
    court.convicted(VALIDATORS[0])
    with court.bench.refused("NotItsClaimant"):
        court.claim(SENTENCE, held, TWO)
    with court.bench.refused("NotItsClaimant"):
        court.claim(SENTENCE, held, ONE, signer=TWO)
    with court.bench.refused("NotItsClaimant"):
        court.claim(SENTENCE, held, ONE, payout=TWO.address, signed_payout=ONE.address)
    with court.bench.refused("TooLate"):
        court.claim(SENTENCE, held, ONE, payout=Address.zero())
    court.claim(SENTENCE, held, ONE, payout=THREE.address)
    finish(court)
    assert pay(court, THREE.address) == 1_000


def test_attack_claims_on_receipts_that_are_not_of_the_offence(court: Court) -> None:
    """VAL-15: another worker's, another model's, a checkpoint, one from before the offence or after the slash, a key
    the worker never published, charges in the sky."""
    late_before = court.paid_receipt(1, ONE, finished_at=Instant((court.epoch - 1) * court.terms.epoch * 1_000 - 1))
    others = [
        court.paid_receipt(2, ONE, signer=HONEST, operator=HONEST.address),
        court.paid_receipt(3, ONE, model=sha256(b"other model")),
        court.paid_receipt(4, ONE, kind=Kind.CHECKPOINT, outcome=Outcome.RUNNING),
        court.paid_receipt(5, ONE, finished_at=Instant(court.now * 1_000 + 10**9)),
        late_before,
    ]
    strange = court.paid_receipt(6, ONE, signer=STRANGER)
    dear = court.paid_receipt(7, ONE, charge=10**15)
    court.convicted(VALIDATORS[0])
    for held in others:
        with court.bench.refused("OtherReceipt"):
            court.claim(SENTENCE, held, ONE)
    with court.bench.refused("NotSignedByOperator"):
        court.claim(SENTENCE, strange, ONE)
    with court.bench.refused("TooLate"):
        court.claim(SENTENCE + 1, dear, ONE)
    court.claim(SENTENCE, dear, ONE)
    assert court.restitution.owed(SENTENCE, str(ONE.address)) == court.terms.refund_cap


def test_attack_a_worker_pays_itself_back(court: Court) -> None:
    """VAL-15: receipts it signed for an accomplice win back at most the clients' part; the rest is lost for good."""
    fakes = [court.paid_receipt(seq, ONE, charge=10**9) for seq in range(1, 5)]
    court.convicted(VALIDATORS[0])
    for fake in fakes:
        court.claim(SENTENCE, fake, ONE)
    finish(court)
    assert pay(court, ONE.address) <= STAKE // 10 * court.terms.client_bps // 10_000
    assert court.restitution.insurance() >= STAKE // 10 * 2 // 10


def test_attack_finishing_early_or_from_nothing(court: Court) -> None:
    """VAL-15: claims have their time; what never came in is not given out."""
    with court.bench.refused("TooEarly"):
        court.restitution.finishRefunds(9)
    court.convicted(VALIDATORS[0])
    with court.bench.refused("TooEarly"):
        court.restitution.finishRefunds(SENTENCE)
    with court.bench.refused("NothingOwed"):
        court.restitution.payRefund(SENTENCE, str(ONE.address))
    slasher = court.slasher.address
    with court.bench.refused("NothingCame"):
        court.restitution.insure(1, sender=slasher)


def test_the_steward_grants_from_the_pool_alone(court: Court) -> None:
    """VAL-15: never from what clients may still claim, never somebody else."""
    court.convicted(VALIDATORS[0])
    pool = court.restitution.insurance()
    for sender, amount in ((STRANGER, 1), (COMMITTEE, pool + 1)):
        with court.bench.refused("OnlySteward"):
            court.restitution.grant(str(TWO.address), amount, sender=str(sender.address))
    before = court.money(TWO)
    court.restitution.grant(str(TWO.address), pool, sender=str(COMMITTEE.address))
    assert court.money(TWO) - before == pool


def test_a_receipt_of_no_claimant_is_nobodys(court: Court) -> None:
    """VAL-15: an answer without a claimant is refunded to nobody: no signature is the zero address's."""
    leaf = sha256(sha256(b"bombyx claim v1"), Address.zero())
    commitment = sha256(sha256(b"bombyx audit v2"), leaf, court.content(1))
    held = court.receipt(1, audit_commitment=commitment)
    court.convicted(VALIDATORS[0])
    with court.bench.refused("NotItsClaimant"):
        court.restitution.claimRefund(
            *(SENTENCE, signed(held), str(Address.zero()), bytes(court.content(1)), str(ONE.address), bytes(65))
        )
    assert court.restitution.owed(SENTENCE, str(ONE.address)) == 0
