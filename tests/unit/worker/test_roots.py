# SPDX-License-Identifier: Apache-2.0
"""Roots of receipts: consecutive over restarts and crashes, never before the receipts are durable, shown when asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from bombyx.adapters.memory import MemoryStore
from bombyx.errors import PaymentError
from bombyx.ports import Write
from bombyx.protocol.audit.case import Challenge, EpochRoot, ValidationParameters
from bombyx.protocol.audit.merkle import merkle_root, merkle_verifies
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret, sha256
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.notary import RECEIPTS
from bombyx.roles.worker.roots import ROOT_LEAVES, Chain, Roots

OPERATOR, FIRST, SECOND = (SigningKey(Secret(bytes([n]) * 32)) for n in (1, 2, 3))
REGISTRY = Address(b"R" * 20)
DOMAIN = receipt_domain(31337, REGISTRY)
EPOCH, WINDOW = 30, 20


@dataclass
class Court:
    """Roots and challenges by the rules of ReceiptRoots.vy and ReceiptFaults.vy, in memory."""

    seconds: int = 1_000
    staked: bool = True
    roots: dict[Address, list[EpochRoot]] = field(default_factory=dict)
    asked: list[Challenge] = field(default_factory=list)
    answers: list[tuple[int, int, tuple[Digest, ...]]] = field(default_factory=list)

    async def parameters(self) -> ValidationParameters:
        zero = dict.fromkeys(ValidationParameters.__dataclass_fields__, 0)
        known: dict[str, Any] = {"chain_id": 31337, "registry": REGISTRY, "epoch_seconds": EPOCH, "root_window": WINDOW}
        return ValidationParameters(**(zero | known))

    async def now(self) -> tuple[int, int]:
        return self.seconds, self.seconds

    async def is_slashable(self, *_: object) -> bool:
        return self.staked

    async def roots_of(self, worker: Address, key: Address) -> tuple[EpochRoot, ...]:
        return tuple(self.roots.get(key, ()))

    async def post_root(
        self, key: Address, epoch: int, root: Digest, first: int, count: int, *, signer: SigningKey
    ) -> Digest:
        rows = self.roots.setdefault(key, [])
        expected = rows[-1].first_seq + rows[-1].count if rows else 1
        late = self.seconds >= (epoch + 1) * EPOCH + WINDOW or epoch >= self.seconds // EPOCH
        if first != expected or late or (rows and epoch <= rows[-1].epoch):
            raise PaymentError("NotConsecutive or OutsideWindow", rule="LEDGER-1")
        rows.append(EpochRoot(epoch=epoch, root=root, first_seq=first, count=count))
        return root

    async def challenges(self, first: int = 1) -> tuple[Challenge, ...]:
        return tuple(one for one in self.asked if one.id >= first)

    async def answer_challenge(self, challenge: int, index: int, proof: Any, *, signer: SigningKey) -> Digest:
        self.answers.append((challenge, index, tuple(proof)))
        return Digest.zero()


def receipt(key: SigningKey, seq: int) -> SignedReceipt:
    plain = Receipt(
        kind=Kind.FINAL,
        request_id=RequestId(seq.to_bytes(16)),
        request_hash=sha256(seq.to_bytes(8)),
        response_hash=Digest.zero(),
        model=Digest.zero(),
        price_sheet=Digest.zero(),
        operator=OPERATOR.address,
        frames=1,
        input_units=0,
        cached_units=0,
        output_units=0,
        charge=seq,
        usage_commitment=Digest.zero(),
        audit_commitment=Digest.zero(),
        outcome=Outcome.COMPLETE,
        seq=seq,
        started_at=Instant(0),
        finished_at=Instant(0),
        previous=Digest.zero(),
    )
    return SignedReceipt.sign(plain, DOMAIN, key)


async def sign(store: MemoryStore, key: SigningKey, *seqs: int) -> list[Digest]:
    held = [receipt(key, seq) for seq in seqs]
    rows = [(bytes(key.address) + one.receipt.seq.to_bytes(8), one.encode()) for one in held]
    await store.write([Write(table=RECEIPTS, key=place, value=value) for place, value in rows])
    return [one.receipt.typed_digest(DOMAIN) for one in held]


async def boot(court: Court, store: MemoryStore, key: SigningKey) -> Roots:
    chain = Chain(validation=court, stakes=court)  # type: ignore[arg-type]  # as much of both as roots ask for
    made = Roots(chain, store, None, OPERATOR, key.address)  # type: ignore[arg-type]  # only `run` needs a clock
    await made.start()
    return made


@pytest.fixture
def court() -> Court:
    return Court()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def test_every_receipt_comes_into_one_root_in_order(court: Court, store: MemoryStore) -> None:
    """VAL-1: one root an epoch, none for an epoch without receipts, and no receipt twice."""
    roots = await boot(court, store, FIRST)
    assert await roots.round() == 0
    leaves = await sign(store, FIRST, 1, 2, 3)
    assert await roots.round() == 1
    assert await roots.round() == 0  # this epoch has its root
    court.seconds += EPOCH
    assert await roots.round() == 0
    later = await sign(store, FIRST, 4)
    court.seconds += EPOCH
    assert await roots.round() == 1
    (one, two) = court.roots[FIRST.address]
    assert (one.root, one.first_seq, one.count) == (merkle_root(leaves), 1, 3)
    assert (two.root, two.first_seq, two.count) == (merkle_root(later), 4, 1)


async def test_a_receipt_that_is_not_durable_yet_waits_and_so_do_those_after_it(
    court: Court, store: MemoryStore
) -> None:
    """VAL-1: rows are durable before a root says so."""
    roots = await boot(court, store, FIRST)
    await sign(store, FIRST, 1, 3)
    await roots.round()
    assert court.roots[FIRST.address][-1].count == 1
    await sign(store, FIRST, 2)
    court.seconds += EPOCH
    await roots.round()
    assert (court.roots[FIRST.address][-1].first_seq, court.roots[FIRST.address][-1].count) == (2, 2)


async def test_a_receipt_whose_write_failed_does_not_hold_the_others_up(court: Court, store: MemoryStore) -> None:
    """VAL-1: an epoch later it is lost, and its place is empty."""
    roots = await boot(court, store, FIRST)
    await sign(store, FIRST, 1)
    await roots.round()
    (three,) = await sign(store, FIRST, 3)
    for _ in range(2):
        court.seconds += EPOCH
        await roots.round()
    assert court.roots[FIRST.address][-1].root == merkle_root([Digest.zero(), three])


async def test_a_restart_goes_on_and_a_receipt_lost_in_a_crash_holds_its_place(
    court: Court, store: MemoryStore
) -> None:
    """VAL-1: seq 2 was signed, never durable and never sent; who holds seq 3 is shown it all the same."""
    await boot(court, store, FIRST)
    one, three = await sign(store, FIRST, 1, 3)
    again = await boot(court, store, SECOND)
    await sign(store, SECOND, 1)
    assert await again.round() == 2
    posted = court.roots[FIRST.address][0]
    assert posted.root == merkle_root([one, Digest.zero(), three])
    court.asked.append(challenge(1, three, 3))
    await again.round()
    ((_, index, proof),) = court.answers
    assert index == 0
    assert merkle_verifies(posted.root, posted.count, 2, three, proof)


async def test_the_window_missed_is_made_up_for_in_the_next_epoch(court: Court, store: MemoryStore) -> None:
    """VAL-1: a worker that was away for an epoch loses nothing."""
    roots = await boot(court, store, FIRST)
    await sign(store, FIRST, 1)
    court.seconds = 1_000 // EPOCH * EPOCH + WINDOW + 5
    assert await roots.round() == 0
    court.seconds += EPOCH - 20
    assert await roots.round() == 1


async def test_a_challenge_waits_for_its_root_and_is_answered_once(court: Court, store: MemoryStore) -> None:
    """VAL-4: asked for before its epoch is over, shown after; others' challenges are not ours."""
    roots = await boot(court, store, FIRST)
    (leaf,) = await sign(store, FIRST, 1)
    court.seconds = 1_000 // EPOCH * EPOCH + WINDOW + 5  # too late to post for the last epoch
    court.asked += [challenge(1, leaf, 1), challenge(2, leaf, 1, worker=SECOND.address)]
    await roots.round()
    assert court.answers == []
    court.seconds += EPOCH - 20
    await roots.round()
    assert [(asked, index) for asked, index, _ in court.answers] == [(1, 0)]
    await roots.round()
    assert len(court.answers) == 1


async def test_a_receipt_that_was_never_ours_cannot_be_shown(
    court: Court, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """VAL-4: the key signed something else for that place; there is nothing to answer with, and it is said."""
    roots = await boot(court, store, FIRST)
    await sign(store, FIRST, 1)
    await roots.round()
    court.asked.append(challenge(1, sha256(b"other"), 1))
    await roots.round()
    assert court.answers == []
    assert "cannot show receipt 1" in caplog.text


async def test_a_worker_without_stake_posts_nothing(court: Court, store: MemoryStore) -> None:
    """VAL-1: roots cost gas and answer for stake."""
    court.staked = False
    roots = await boot(court, store, FIRST)
    await sign(store, FIRST, 1)
    assert await roots.round() == 0
    assert await store.scan(ROOT_LEAVES) == []


def challenge(number: int, leaf: Digest, seq: int, *, worker: Address = OPERATOR.address) -> Challenge:
    return Challenge(
        id=number,
        worker=worker,
        challenger=SECOND.address,
        receipt_key=FIRST.address,
        seq=seq,
        leaf=leaf,
        answer_until=10**9,
        settled=False,
    )
