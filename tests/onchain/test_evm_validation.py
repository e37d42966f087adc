# SPDX-License-Identifier: Apache-2.0
"""`ports.Stakes` and `ports.Validation` on a real node: a case from the stake to the refund; answers that are none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.onchain.court import CHEAT, CLIENTS, GUILTY, MODEL, SALT, TERMS, VALIDATORS
from tests.onchain.devnet import MiningRpc, NodeClock, ledger_on, need_anvil

from bombyx.adapters.evm import AddressBook, EvmLedger, EvmStakes, EvmValidation, judged, seed, start_node
from bombyx.adapters.evm.abi import Reader
from bombyx.adapters.evm.staked import StakeTerms
from bombyx.errors import BombyxError, ConfigError, PaymentError, Unavailable
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.audit.case import (
    WAD,
    Accusation,
    CaseState,
    Ending,
    RefundClaim,
    Step,
    certificate_digest,
    certificate_message,
    encode_certificate,
    refund_digest,
    verdict_commitment,
)
from bombyx.protocol.audit.merkle import merkle_proof, merkle_root
from bombyx.protocol.primitives import Address, Amount, Digest, Instant, RequestId, sha256
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey

STAKE = 60_000_000
ACCUSER, *JURORS = VALIDATORS[:3]


@dataclass
class Net:
    """A node with everything on it, one worker and three validators, all staked."""

    ledger: EvmLedger
    stakes: EvmStakes
    court: EvmValidation
    clock: NodeClock

    async def enter(self, who: SigningKey, role: OperatorRole) -> None:
        await self.ledger.faucet(who.address, 3 * STAKE)
        line = Operator(
            address=who.address,
            role=role,
            endpoint="http://x",
            receipt_address=who.address,
            pay_authorizer=who.address,
            pay_key_config=b"",
            price_sheet=Digest.zero(),
            models=(MODEL,),
        )
        await self.ledger.register(line, signer=who)
        await self.stakes.deposit(Amount(STAKE), signer=who)
        await self.stakes.allocate(role, WAD, signer=who)
        await self.stakes.join(role, signer=who)

    async def until(self, moment: int) -> None:
        now, _ = await self.court.now()
        await self.clock.sleep(max(1, moment - now))

    async def receipt(self, seq: int, client: SigningKey) -> SignedReceipt:
        now, _ = await self.court.now()
        leaf = sha256(sha256(b"bombyx claim v1"), client.address)
        plain = Receipt(
            kind=Kind.FINAL,
            request_id=RequestId(seq.to_bytes(16)),
            request_hash=sha256(seq.to_bytes(8)),
            response_hash=Digest.zero(),
            model=MODEL,
            price_sheet=Digest.zero(),
            operator=CHEAT.address,
            frames=1,
            input_units=0,
            cached_units=0,
            output_units=16,
            charge=1_234,
            usage_commitment=Digest.zero(),
            audit_commitment=sha256(sha256(b"bombyx audit v2"), leaf, sha256(b"content")),
            outcome=Outcome.COMPLETE,
            seq=seq,
            started_at=Instant(now * 1_000),
            finished_at=Instant(now * 1_000),
            previous=Digest.zero(),
        )
        return SignedReceipt.sign(plain, self.domain, CHEAT)

    @property
    def domain(self) -> Digest:
        return receipt_domain(self.ledger.book.chain_id, self.ledger.book.registry)


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    need_anvil()
    node = await start_node()
    rpc = MiningRpc([node.url])
    try:
        book = await seed(rpc, terms=TERMS)
        ledger = ledger_on(rpc, book)
        made = Net(ledger, EvmStakes(ledger), EvmValidation(ledger), NodeClock(rpc))
        await made.enter(CHEAT, OperatorRole.WORKER)
        for one in (ACCUSER, *JURORS):
            await made.enter(one, OperatorRole.VALIDATOR)
        yield made
        await ledger.transactions.close()
    finally:
        await rpc.close()
        await node.close()


async def test_a_case_from_the_stake_to_the_refund(net: Net) -> None:
    """VAL-1 .. VAL-15 through the ports: roots, plan, beacon, accusation, jury, votes, slash, refund, fees."""
    court, client = net.court, CLIENTS[0]
    terms = await court.parameters()
    view = await net.stakes.stake(CHEAT.address)
    assert (view.deposited, view.allocated[OperatorRole.WORKER]) == (STAKE, STAKE)
    assert view.member == view.slashable == {OperatorRole.WORKER}
    assert set(await net.stakes.members(OperatorRole.VALIDATOR)) == {one.address for one in (ACCUSER, *JURORS)}
    assert (await net.stakes.info()).minimum[OperatorRole.WORKER] == TERMS.worker_minimum

    now, _ = await court.now()
    epoch = terms.epoch_of(now) + 1
    await court.commit_plan(epoch, sha256(b"plan"), 4, signer=ACCUSER)
    plan = await court.plan_of(ACCUSER.address, epoch)
    assert plan is not None
    assert (plan.root, plan.count) == (sha256(b"plan"), 4)
    await net.until(terms.epoch_start(epoch))
    held = [await net.receipt(seq, client) for seq in (1, 2, 3)]
    await net.until(terms.epoch_start(epoch + 1))
    leaves = [one.receipt.typed_digest(net.domain) for one in held]
    await court.post_root(CHEAT.address, epoch, merkle_root(leaves), 1, 3, signer=CHEAT)
    (root,) = await court.roots_of(CHEAT.address, CHEAT.address)
    assert (root.epoch, root.first_seq, root.count) == (epoch, 1, 3)
    assert await court.last_root(CHEAT.address, CHEAT.address) == root
    assert await court.last_root(CHEAT.address, ACCUSER.address) is None

    asked = await court.challenge_receipt(held[1], signer=ACCUSER)
    (challenge,) = await court.challenges()
    assert (challenge.id, challenge.seq, challenge.settled) == (asked, 2, False)
    await court.answer_challenge(asked, 0, merkle_proof(leaves, 1), signer=CHEAT)
    assert (await court.challenges())[0].settled

    accusation = Accusation(
        accused=CHEAT.address,
        model=MODEL,
        evidence=sha256(b"evidence"),
        uri="http://accuser/v1",
        from_epoch=epoch,
        to_epoch=epoch,
        plant=SALT,
    )
    case = await court.open_case(accusation, signer=ACCUSER)
    while (found := await court.case(case)) is None or found.step(now=0, block=(await court.now())[1]) is not Step.DRAW:
        await net.clock.sleep(1)
    assert (found.accusation, found.accuser, found.state) == (accusation, ACCUSER.address, CaseState.DRAWING)
    await court.draw(case, signer=ACCUSER)
    for juror in JURORS:
        hidden = verdict_commitment(case, 1, GUILTY, SALT, juror.address)
        await court.commit_verdict(case, hidden, signer=juror)
    found = await court.case(case)
    assert found is not None
    assert set(found.jury) == {one.address for one in JURORS}
    assert all(ballot.committed and ballot.verdict is None for ballot in found.ballots)
    await court.reveal_verdict(case, GUILTY, SALT, signer=JURORS[0])
    now, _ = await court.now()
    message = certificate_message(terms.chain_id, terms.service, case, 1, GUILTY)
    digest = certificate_digest(terms.service, now, message)
    certificate = encode_certificate({one.address: one.sign(digest) for one in JURORS})
    await court.certify(case, GUILTY, now, certificate, signer=ACCUSER)
    await court.reveal_verdict(case, GUILTY, SALT, signer=JURORS[1])
    found = await court.case(case)
    assert found is not None
    assert (found.state, found.outcome) == (CaseState.DECIDED, GUILTY)
    assert {ballot.verdict for ballot in found.ballots} == {GUILTY}
    with pytest.raises(PaymentError, match="TooEarly"):
        await court.execute(case, signer=ACCUSER)
    await net.until(found.appeal_until)
    await court.execute(case, signer=ACCUSER)
    (found,) = await court.cases()
    assert (found.state, found.sentence) == (CaseState.QUEUED, 1)
    assert await court.convictions(CHEAT.address) == 1
    await net.until(found.veto_until)
    await court.execute(case, signer=ACCUSER)
    (found,) = await court.cases()
    assert (found.state, found.ending) == (CaseState.CLOSED, Ending.SLASHED)

    view = await net.stakes.stake(CHEAT.address)
    assert (view.deposited, view.member) == (STAKE * 9 // 10, frozenset())
    assert view.ejected_until > now
    assert await net.stakes.is_slashable(CHEAT.address, OperatorRole.WORKER)
    assert await net.ledger.operators(OperatorRole.WORKER) == ()
    receipt_digest = held[0].receipt.typed_digest(net.domain)
    signature = client.sign(refund_digest(terms.chain_id, terms.restitution, 1, receipt_digest, client.address))
    claim = RefundClaim(claimant=client.address, content=sha256(b"content"), payout=client.address, signature=signature)
    await court.claim_refund(1, held[0], claim, signer=ACCUSER)
    paid = await court.restitution(1)
    assert paid is not None
    assert paid.owed == {client.address: 1_234}
    await net.until(paid.claim_until)
    await court.finish_refunds(1, signer=ACCUSER)
    await court.pay_refund(1, client.address, signer=ACCUSER)
    assert await net.ledger.balance(client.address) == 1_234
    assert await court.insurance() == paid.slashed - paid.bounty - 1_234
    assert await court.credit_of(JURORS[0].address) == terms.juror_fee
    await court.collect(signer=ACCUSER)
    assert await court.credit_of(ACCUSER.address) == 0
    assert await court.case(2) is None
    assert await court.restitution(2) is None


async def test_refusals_are_in_words_and_equivocation_needs_nobody(net: Net) -> None:
    """LEDGER-1, VAL-3, VAL-5: the contract's reason comes through; two receipts with one seq cost everything."""
    with pytest.raises(PaymentError, match="InvalidWithdrawal"):
        await net.stakes.queue_withdrawal(Amount(2 * STAKE), signer=CHEAT)
    with pytest.raises(PaymentError, match="SameMagnitude"):
        await net.stakes.allocate(OperatorRole.WORKER, WAD, signer=CHEAT)
    with pytest.raises(PaymentError, match="OutsidePhase"):
        await net.court.commit_verdict(1, SALT, signer=CHEAT)
    await net.stakes.queue_withdrawal(Amount(STAKE), signer=CHEAT)
    await net.stakes.leave(OperatorRole.WORKER, signer=CHEAT)
    with pytest.raises(PaymentError, match="WithdrawalDelayNotElapsed"):
        await net.stakes.withdraw(signer=CHEAT)
    assert (await net.stakes.stake(CHEAT.address)).withdraw_block > 0
    one = await net.receipt(1, CLIENTS[0])
    two = await net.receipt(1, CLIENTS[1])
    await net.court.prove_equivocation(one, two, signer=ACCUSER)
    assert (await net.stakes.stake(CHEAT.address)).deposited == 0


async def test_beacons_come_in_two_steps(net: Net) -> None:
    """VAL-2: named, then fixed."""
    terms = await net.court.parameters()
    now, _ = await net.court.now()
    epoch = terms.epoch_of(now)
    await net.until(terms.epoch_start(epoch + 1) + terms.root_window)
    await net.court.fix_beacon(epoch, signer=ACCUSER)
    assert await net.court.beacon_of(epoch) is None
    for _ in range(TERMS.beacon_delay + 1):
        await net.clock.sleep(1)
    await net.court.fix_beacon(epoch, signer=ACCUSER)
    assert await net.court.beacon_of(epoch) is not None


@given(st.binary(max_size=1_200))
def test_an_answer_that_is_no_case_is_no_answer(answer: bytes) -> None:
    """LEDGER-2: whatever a node says, it is a case, a root, a challenge, or the node does not answer."""
    reader = Reader(answer)
    for read in (
        lambda: judged.case_of(1, reader, ()),
        lambda: judged.root_of(reader),
        lambda: judged.challenge_of(1, reader),
        lambda: judged.payout_of_log({"topics": ["0x" + answer[:32].hex()] * 3, "data": "0x"}),
        lambda: judged.id_of([{"topics": [str(judged.CASE_OPENED), "0x" + answer.hex()]}], judged.CASE_OPENED),
    ):
        try:
            read()
        except BombyxError as error:
            assert isinstance(error, Unavailable)  # noqa: PT017  what else may come is the subject


def test_terms_that_let_stake_escape_are_refused() -> None:
    """VAL-5, VAL-4: a deployment whose stake can leave before a case ends, or whose challenges cannot be answered."""
    StakeTerms().check()
    TERMS.check(block_seconds=1.0)
    with pytest.raises(ConfigError, match="before a case"):
        StakeTerms(deallocation_blocks=100).check()
    with pytest.raises(ConfigError, match="epoch's root"):
        StakeTerms(answer=10).check()


def test_a_chain_without_stake_has_no_ports() -> None:
    """LEDGER-7: an address book that names no stake manager."""
    nobody = Address.zero()
    plain = AddressBook(
        chain_id=1,
        settlement=nobody,
        registry=nobody,
        token=nobody,
        erc3009_collector=nobody,
        allowance_collector=nobody,
        reference_values=nobody,
    )
    ledger = ledger_on(MiningRpc(["http://127.0.0.1:9"]), plain)
    for kind in (EvmStakes, EvmValidation):
        with pytest.raises(ConfigError, match="names no"):
            kind(ledger)
