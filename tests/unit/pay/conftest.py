# SPDX-License-Identifier: Apache-2.0
"""One payer, one payee and a chain in memory, for the stories in this folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from bombyx.adapters.memory_chain import MemoryChain
from bombyx.errors import Peer
from bombyx.ports import ChannelView
from bombyx.protocol.pay.grant import key_hash
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms, Reservation
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.pay.receipts import Expectation
from bombyx.protocol.pay.rows import Row
from bombyx.protocol.primitives import Digest, Instant, RequestId, Secret, sha256
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.market import ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt, receipt_domain
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.signing import SigningKey


class HandClock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.at = Instant(1_800_000_000_000)

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000

    async def sleep(self, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        self.at = self.at.plus(seconds=seconds)


class Town:
    """Everybody a payment needs, and short words for what they do."""

    META = sha256(b"meta")
    BODY = sha256(b"body")

    def __init__(self, *, deposit: int = 10_000, budget: int = 8_000, window: int = 1_000) -> None:
        self.clock = HandClock()
        self.chain = MemoryChain(self.clock)
        self.domain = self.chain.domain
        self.payer_key = SigningKey(Secret(b"\x01" * 32))
        self.session_key = SigningKey(Secret(b"\x02" * 32))
        self.payee_key = SigningKey(Secret(b"\x03" * 32))
        self.stranger = SigningKey(Secret(b"\x04" * 32))
        self.config = ChannelConfig(
            payer=self.payer_key.address,
            payer_authorizer=self.session_key.address,
            receiver=self.payee_key.address,
            receiver_authorizer=self.payee_key.address,
            token=self.chain.info.token,
            withdraw_delay=3_600,
            salt=Digest(bytes(32)),
        )
        self.channel = self.config.channel_id(self.domain)
        self.chain.mint(self.payer_key.address, 100_000)
        self.chain.deposit(self.payer_key.address, self.config, deposit)
        self.terms = PayeeTerms(
            receiver=self.payee_key.address,
            receiver_authorizer=self.payee_key.address,
            token=self.chain.info.token,
            claim_threshold=500,
        )
        self.policy = PayerPolicy(budget=budget, window=window, max_in_flight=8)
        self.book = PayeeBook(self.terms, self.domain)
        self.book.open(self.view)
        self.payer = PayerChannel(self.config, self.domain, self.policy)
        self.payer.observe(self.view)
        self.keys: dict[Digest, Secret] = {}
        self.payee_rows: dict[bytes, bytes] = {}
        self.payer_rows: dict[bytes, bytes] = {}
        self._sessions = 0

    @property
    def view(self) -> ChannelView:
        found = self.chain.channel(self.channel)
        assert found is not None
        return found

    def open_session(self, *, hours: float = 6) -> Secret:
        self._sessions += 1
        key = Secret(self._sessions.to_bytes(32))
        self.keys[key_hash(key)] = key
        until = self.clock.now().plus(seconds=3600 * hours)
        self.payer.open_session(key, sealed_key=b"sealed", not_after=until, signer=self.session_key)
        return key

    def pay(self, name: int, cap: int = 100) -> Payment:
        if self.payer.needs_session(self.clock.now()):
            self.open_session()
        return self.payer.authorize(
            rid(name), cap=cap, meta_hash=self.META, body_hash=self.BODY, signer=self.session_key
        )

    def pay_strict(self, name: int, cap: int = 100) -> Payment:
        return self.payer.authorize_strict(rid(name), cap=cap, signer=self.session_key)

    def accept(
        self, payment: Payment, name: int, *, cap: int | None = None, meta: Digest = META, body: Digest = BODY
    ) -> Reservation:
        key = self.keys[payment.grant.key_hash] if payment.grant and self.book.wants_key(payment) else None
        return self.book.accept(
            payment,
            request_id=rid(name),
            cap=payment.cap if cap is None else cap,
            meta_hash=meta,
            body_hash=body,
            now=self.clock.now(),
            view=self.view,
            session_key=key,
        )

    def settle(self, name: int, charge: int) -> int:
        return self.book.settle(self.channel, rid(name), charge, now=self.clock.now())

    def serve(self, name: int, cap: int = 100, charge: int = 60) -> None:
        """One request from payment to agreed charge."""
        self.accept(self.pay(name, cap), name)
        self.settle(name, charge)
        self.payer.agree(rid(name), charge)

    def claim(self) -> None:
        claim = self.book.claim_now(self.channel)
        if claim is not None:
            self.chain.claim(self.payee_key.address, [claim])
            self.book.observe(self.view, now=self.clock.now())

    def save(self) -> None:
        """What the roles do before they act."""
        write(self.payee_rows, self.book.take_rows())
        write(self.payer_rows, self.payer.take_rows())

    def crash_payee(self) -> None:
        self.book = PayeeBook.load(self.terms, self.domain, self.payee_rows.items())

    def crash_payer(self) -> None:
        (self.payer,) = PayerChannel.load(self.domain, self.policy, self.payer_rows.items(), payee=Peer.PROXY)
        self.payer.observe(self.view)


def rid(name: int) -> RequestId:
    return RequestId(name.to_bytes(16))


def write(rows: dict[bytes, bytes], changes: tuple[Row, ...]) -> None:
    for key, value in changes:
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


@dataclass
class Answering:
    """A worker that signs receipts about one answer, honestly unless told otherwise."""

    key: SigningKey = field(default_factory=lambda: SigningKey(Secret(b"\x05" * 32)))
    domain: Digest = field(default_factory=lambda: receipt_domain(31_337, SigningKey(Secret(b"\x06" * 32)).address))
    frame: int = 1_024
    seq: int = 0
    frames: int = 0
    chain: Digest = field(default_factory=Digest.zero)
    previous: Digest = field(default_factory=Digest.zero)

    def __post_init__(self) -> None:
        self.model = sha256(b"model")
        line = ModelPrice(model=self.model, input=1_000_000, cached_input=100_000, output=4_000_000)
        self.sheet = PriceSheet(v=1, operator=SigningKey(Secret(b"\x07" * 32)).address, grain=16, prices=(line,))
        self.expected = Expectation.of(
            self.sheet,
            domain=self.domain,
            receipt_address=self.key.address,
            request_id=rid(1),
            request_hash=sha256(b"request"),
            model=self.model,
            max_input=1_024,
            max_output=1_024,
            cap=5_120,
        )

    def deliver(self) -> tuple[Digest, int]:
        """One more frame leaves: (chain after it, its size)."""
        self.chain = sha256(self.chain, self.frames.to_bytes(4))
        self.frames += 1
        return self.chain, self.frame

    def receipt(self, kind: Kind = Kind.CHECKPOINT, **changes: object) -> Receipt:
        """What is true now, but for `changes`."""
        self.seq += 1
        output = 16 * self.frames
        honest = Receipt(
            kind=kind,
            request_id=rid(1),
            request_hash=self.expected.request_hash,
            response_hash=self.chain,
            model=self.model,
            price_sheet=self.expected.price_sheet,
            operator=self.sheet.operator,
            frames=self.frames,
            input_units=32,
            cached_units=16,
            output_units=output,
            charge=-(-(16 * 1_000_000 + 16 * 100_000 + output * 4_000_000) // 1_000_000),
            usage_commitment=sha256(b"usage"),
            audit_commitment=Digest.zero(),
            outcome=Outcome.RUNNING if kind is Kind.CHECKPOINT else Outcome.COMPLETE,
            seq=self.seq,
            started_at=Instant(1_000),
            finished_at=Instant(2_000 + self.frames),
            previous=self.previous,
        )
        return dataclasses.replace(honest, **changes)  # type: ignore[arg-type]

    def sign(self, kind: Kind = Kind.CHECKPOINT, **changes: object) -> SignedReceipt:
        signed = SignedReceipt.sign(self.receipt(kind, **changes), self.domain, self.key)
        self.previous = signed.receipt.typed_digest(self.domain)
        return signed


@pytest.fixture
def town() -> Town:
    return Town()


@pytest.fixture
def answering() -> Answering:
    return Answering()


@pytest.fixture
def new_town() -> type[Town]:
    """For stories that need a town of their own making."""
    return Town


@pytest.fixture(scope="module")
def town_class() -> type[Town]:
    """For a whole file of towns."""
    return Town
