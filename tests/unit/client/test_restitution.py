# SPDX-License-Identifier: Apache-2.0
"""A client gets its money back from a convicted worker by itself. The chain's own checks are written out here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from tests.unit.client.pair import Pair, chat, make_pair
from tests.unit.validator.court import NOBODY, PARAMETERS

from bombyx.adapters.clock import SystemClock
from bombyx.errors import PaymentError
from bombyx.protocol.audit.case import Accusation, Case, CaseState, Ending, RefundClaim, refund_digest
from bombyx.protocol.audit.case import Restitution as Told
from bombyx.protocol.audit.commitment import AUDIT_TAG, claim_leaf
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.receipt import Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey, recover
from bombyx.roles.client.restitution import Restitution

PAYOUT = Address(b"p" * 20)


@dataclass
class Chain:
    """A sentence against one worker, and what it takes to be refunded (contracts/Restitution.vy)."""

    convicted: Receipt
    ending: Ending = Ending.SLASHED
    claim_until: int = 2**40
    refunded: list[SignedReceipt] = field(default_factory=list)
    refuse: bool = False

    async def parameters(self) -> object:
        return replace(PARAMETERS, restitution=Address(b"t" * 20))

    async def now(self) -> tuple[int, int]:
        return SystemClock().now().seconds, 1

    async def cases(self, first: int = 1) -> tuple[Case, ...]:
        accused = Accusation(
            accused=self.convicted.operator, model=self.convicted.model, evidence=Digest.zero(), uri="", from_epoch=1,
            to_epoch=2, plant=Digest.zero(),
        )  # fmt: skip
        case = Case(
            id=1, state=CaseState.CLOSED, accuser=NOBODY, accusation=accused, round=2, jury_block=1, ballots=(),
            commit_until=0, reveal_until=0, appeal_until=0, veto_until=0, outcome=None, ending=self.ending, sentence=5,
            opened_at=0, appellant=NOBODY,
        )  # fmt: skip
        return (case,) if first <= 1 else ()

    async def restitution(self, sentence: int) -> Told | None:
        return Told(
            sentence=sentence, operator=self.convicted.operator, slashed=9, bounty=1, for_clients=6, claimed=0,
            claim_until=self.claim_until, finished=False, owed={},
        )  # fmt: skip

    async def claim_refund(
        self, sentence: int, held: SignedReceipt, claim: RefundClaim, *, signer: SigningKey
    ) -> Digest:
        if self.refuse or held in self.refunded:
            raise PaymentError("the chain refuses: RefundedAlready", rule="LEDGER-1")
        leaf = claim_leaf(claim.claimant)
        assert sha256(AUDIT_TAG, leaf, claim.content) == held.receipt.audit_commitment
        named = held.receipt.typed_digest(receipt_domain(PARAMETERS.chain_id, PARAMETERS.registry))
        digest = refund_digest(PARAMETERS.chain_id, Address(b"t" * 20), sentence, named, claim.payout)
        assert recover(digest, claim.signature) == claim.claimant
        assert claim.payout == PAYOUT
        self.refunded.append(held)
        return Digest.zero()


async def ask(pair: Pair, times: int) -> Receipt:
    for _ in range(times):
        response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
        await response.read()
        await response.finished()
    last = pair.client.last_receipt
    assert last is not None
    assert last.last is not None
    return last.last.receipt


def claims(pair: Pair, chain: Chain) -> Restitution:
    return Restitution(
        pair.client.store,
        validation=chain,  # type: ignore[arg-type]  # what a client uses of it
        key=pair.client.refund_key,
        payout=PAYOUT,
        sender=pair.client.refund_key(chain.convicted.request_id),
        clock=SystemClock(),
    )


@pytest.fixture
async def paid() -> tuple[Pair, Chain]:
    pair = await make_pair()
    return pair, Chain(await ask(pair, 3))


async def test_every_receipt_of_a_convicted_worker_is_claimed_once(paid: tuple[Pair, Chain]) -> None:
    """CLI-11: the commitment opens for the address the request named, and its key signs where the money goes."""
    pair, chain = paid
    restitution = claims(pair, chain)
    assert await restitution.look() == 3
    assert {held.receipt.request_id for held in chain.refunded} == {
        kept.last.receipt.request_id for kept in await pair.client.book.newest() if kept.last
    }
    assert await claims(pair, chain).look() == 0  # another life of the same client
    assert len(chain.refunded) == 3


async def test_nothing_is_claimed_of_others_too_late_or_where_nobody_was_slashed(paid: tuple[Pair, Chain]) -> None:
    """CLI-11."""
    pair, chain = paid
    for bent in (
        replace(chain, convicted=replace(chain.convicted, operator=Address(b"o" * 20))),
        replace(chain, convicted=replace(chain.convicted, model=sha256(b"other"))),
        replace(chain, claim_until=1),
        replace(chain, ending=Ending.ACQUITTED),
        replace(chain, ending=Ending.STRUCK),
    ):
        assert await claims(pair, bent).look() == 0


async def test_a_claim_the_chain_refuses_is_left_and_spoils_no_other(paid: tuple[Pair, Chain]) -> None:
    """CLI-11: and may be tried again."""
    pair, chain = paid
    assert await claims(pair, replace(chain, refuse=True)).look() == 0
    assert await claims(pair, chain).look() == 3
