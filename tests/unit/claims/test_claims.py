# SPDX-License-Identifier: Apache-2.0
"""Getting paid on chain, by both payees: the proxy by clients, the worker by proxies. The clock is the test's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import PaymentError, Unavailable
from bombyx.ports import ChannelView, Claim, Write
from bombyx.protocol.pay.batches import BATCH, Batches
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.payer import PayerChannel, PayerPolicy
from bombyx.protocol.primitives import Digest, Instant, RequestId, Secret
from bombyx.protocol.seal import GatewayKey, Kem
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.claiming import WATCHED, Claims
from bombyx.roles.worker.payments import BOOK, Till

PAYER, PAYEE = SigningKey(Secret(b"\x01" * 32)), SigningKey(Secret(b"\x03" * 32))
BODY = Digest(bytes(32))


class HandClock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.at = Instant(1_800_000_000_000)

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000

    async def sleep(self, seconds: float) -> None:
        self.at = self.at.plus(seconds=seconds)


class Chain(MemoryLedger):
    """Counts batches, and can be away."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__(clock)
        self.batches: list[int] = []
        self.away = False

    async def channel(self, channel: Digest) -> ChannelView | None:
        if self.away:
            raise Unavailable("the chain is away")
        return await super().channel(channel)

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        done = await super().claim(claims, signer=signer)
        self.batches.append(len(claims))
        return done


class Payee:
    """A book with channels on a chain, and whichever role claims from it."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.clock = HandClock()
        self.chain = Chain(self.clock)
        self.chain.chain.mint(PAYER.address, 10**12)
        self.domain = self.chain.chain.domain
        self.terms = PayeeTerms(
            receiver=PAYEE.address,
            receiver_authorizer=PAYEE.address,
            token=self.chain.chain.info.token,
            claim_threshold=500,
            claim_age=3_600,
        )
        self.book = PayeeBook(self.terms, self.domain)
        self.store = MemoryStore()
        self.payers: list[PayerChannel] = []
        self._claims: Claims | None = None
        self._till: Till | None = None
        self._names = 0

    def open(self, deposit: int = 10_000) -> PayerChannel:
        config = ChannelConfig(
            payer=PAYER.address,
            payer_authorizer=PAYER.address,
            receiver=PAYEE.address,
            receiver_authorizer=PAYEE.address,
            token=self.terms.token,
            withdraw_delay=3_600,
            salt=Digest(len(self.payers).to_bytes(32)),
        )
        self.chain.chain.deposit(PAYER.address, config, deposit)
        channel = PayerChannel(config, self.domain, PayerPolicy(budget=10**9, window=1, max_in_flight=8))
        view = self.view(channel)
        channel.observe(view)
        self.book.open(view)
        self.payers.append(channel)
        return channel

    def view(self, channel: PayerChannel) -> ChannelView:
        found = self.chain.chain.channel(channel.id)
        assert found is not None
        return found

    def serve(self, channel: PayerChannel, charge: int) -> None:
        self._names += 1
        name = RequestId(self._names.to_bytes(16))
        payment = channel.authorize_strict(name, cap=charge, signer=PAYER)
        self.book.accept(
            payment, request_id=name, cap=charge, meta_hash=BODY, body_hash=BODY, now=self.clock.now(),
            view=self.view(channel),
        )  # fmt: skip
        self.book.settle(channel.id, name, charge, now=self.clock.now())
        channel.agree(name, charge)

    async def look(self, *, everything: bool = False) -> None:
        """One round of the role's own claiming."""
        if self.role == "proxy":
            self._claims = self._claims or Claims(
                self.book, ledger=self.chain, clock=self.clock, signer=PAYEE, seen=lambda view: None
            )
            await self._claims.collect(everything=everything)
            return
        await self.store.write([Write(table=BOOK, key=key, value=value) for key, value in self.book.take_rows()])
        till = Till(
            self.terms, self.domain, store=self.store, ledger=self.chain,
            gateway=GatewayKey.generate(1, Kem.X25519, SystemEntropy()), clock=self.clock,
        )  # fmt: skip
        await till.load()
        before = self.paid
        assert await till.claim(PAYEE, everything=everything) == self.paid - before
        self.book = till.book

    @property
    def paid(self) -> int:
        return int(self.chain.chain.balance(PAYEE.address))


@pytest.fixture(params=["proxy", "worker"])
def payee(request: pytest.FixtureRequest) -> Payee:
    return Payee(request.param)


async def test_a_debt_is_claimed_at_its_threshold(payee: Payee) -> None:
    """PAY-15."""
    channel = payee.open()
    payee.serve(channel, 499)
    await payee.look()
    assert payee.paid == 0
    payee.serve(channel, 1)
    await payee.look()
    assert payee.paid == 500


async def test_a_small_debt_is_claimed_when_it_is_old(payee: Payee) -> None:
    """PAY-15: its age counts from the first charge, not from the last."""
    channel = payee.open()
    payee.serve(channel, 10)
    await payee.clock.sleep(3_000)
    payee.serve(channel, 10)
    await payee.look()
    assert payee.paid == 0
    await payee.clock.sleep(600)
    await payee.look()
    assert payee.paid == 20


async def test_a_payer_who_starts_to_withdraw_is_claimed_from_at_once(payee: Payee) -> None:
    """PAY-15, PAY-6: one look is enough, whatever the debt; what it leaves is the payer's, to the unit."""
    channel = payee.open(1_000)
    payee.serve(channel, 10)
    await payee.look()
    payee.chain.chain.initiate_withdraw(PAYER.address, channel.id, 990)
    await payee.look()
    assert payee.paid == 10
    before = payee.chain.chain.balance(PAYER.address)
    await payee.clock.sleep(3_601)
    payee.chain.chain.finalize_withdraw(PAYER.address, channel.id)
    assert payee.chain.chain.balance(PAYER.address) - before == 990


async def test_a_payer_who_got_away_with_its_deposit_does_not_hold_up_the_others(payee: Payee) -> None:
    """PAY-15: what is left of a deposit is claimed, and the batch it is in is good."""
    gone, good = payee.open(600), payee.open()
    payee.serve(gone, 550)
    payee.serve(good, 700)
    payee.chain.chain.initiate_withdraw(PAYER.address, gone.id, 200)
    await payee.clock.sleep(3_601)
    payee.chain.chain.finalize_withdraw(PAYER.address, gone.id)
    for _ in range(2):
        await payee.look()
    assert payee.paid == 400 + 700


async def test_a_claim_the_chain_refuses_costs_only_itself(payee: Payee) -> None:
    """PAY-15: a batch is all or none; halving it finds the bad one."""
    channels = [payee.open() for _ in range(9)]
    for channel in channels:
        payee.serve(channel, 600)
    bad = payee.book.channel(channels[4].id)
    payee.book._channels[bad.id] = dataclasses.replace(bad, signature=bytes(65))
    payee.book._save(payee.book.channel(bad.id))
    await payee.look()
    assert payee.paid == 8 * 600


async def test_more_debts_than_one_batch_holds(payee: Payee) -> None:
    """PAY-15, LEDGER-1: at most 64 claims a call."""
    for _ in range(BATCH + 6):
        payee.serve(payee.open(), 600)
    await payee.look()
    assert payee.chain.batches == [BATCH, 6]
    assert payee.paid == (BATCH + 6) * 600


async def test_a_chain_that_was_away_is_asked_again(payee: Payee) -> None:
    """LEDGER-2: nothing is forgotten in between, nothing is claimed twice."""
    channel = payee.open()
    payee.serve(channel, 600)
    payee.chain.away = True
    if payee.role == "proxy":
        with pytest.raises(Unavailable):
            await payee.look()
    else:
        await payee.look()
    payee.chain.away = False
    for _ in range(3):
        await payee.look(everything=True)
    assert payee.paid == 600
    assert payee.chain.batches == [1]


async def test_a_claim_that_a_reorg_took_back_is_made_again(payee: Payee) -> None:
    """PAY-15, LEDGER-4: the chain's word counts, not our memory of it."""
    channel = payee.open()
    payee.serve(channel, 600)
    before = payee.view(channel)
    await payee.look()
    assert payee.paid == 600
    payee.chain.chain._channels[channel.id] = before
    payee.chain.chain._balances[PAYEE.address] = 0
    await payee.clock.sleep(WATCHED / 2)
    await payee.look()
    await payee.look()
    assert payee.paid == 600
    assert payee.book.account(channel.id).claimed == 600


def test_batches_offer_each_claim_until_it_is_refused_alone() -> None:
    """PAY-15: whichever are bad, exactly those are left."""
    one = Payee("proxy")
    claims = []
    for _ in range(13):
        channel = one.open()
        one.serve(channel, 5)
        claim = one.book.claim_now(channel.id)
        assert claim is not None
        claims.append(claim)
    bad = {claims[0], claims[6], claims[12]}
    batches, dropped = Batches(claims, size=5), set()
    good: list[Claim] = []
    while (batch := batches.take()) is not None:
        if bad & set(batch):
            if (alone := batches.refused(batch)) is not None:
                dropped.add(alone)
        else:
            good += batch
    assert dropped == bad
    assert sorted(map(claims.index, good)) == [n for n in range(13) if claims[n] not in bad]


async def test_an_empty_purse_does_not_keep_a_proxy_from_claiming() -> None:
    """PAY-15: its chores are done each on its own."""
    from bombyx.roles.proxy.runtime import Proxy

    proxy = Proxy.__new__(Proxy)
    done: list[str] = []

    async def no_money() -> None:
        raise PaymentError("nothing to deposit", rule="LEDGER-1")

    async def note(what: str) -> None:
        done.append(what)

    await proxy._chores((no_money, lambda: note("claimed"), no_money, lambda: note("reclaimed")))
    assert done == ["claimed", "reclaimed"]
