# SPDX-License-Identifier: Apache-2.0
"""The till by itself, on the in-memory chain: what is claimed and when, what is durable, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from tests.unit.client.pair import CLOCK, ENTROPY

from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import Overloaded, PaymentError, Unavailable
from bombyx.ports import Claim, DepositTerms, Write
from bombyx.protocol.pay.channel import sign_voucher
from bombyx.protocol.pay.x402_payment import Deposit, Presented
from bombyx.protocol.primitives import Address, Amount, Digest, RequestId, Secret
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.settings import PaidSettings
from bombyx.roles.client.till import Till, asking_of

KEY, OWNER = SigningKey(Secret(b"\x71" * 32)), SigningKey(Secret(b"\x72" * 32))
NO_CARRIER = "payers of these tests go to the chain themselves"


class Carrier:
    async def terms(self) -> DepositTerms:
        return DepositTerms(collector=Address(b"\x01" * 20), token_name="USD Coin", token_version="2")

    async def carry(self, config: ChannelConfig, deposit: Deposit, *, signer: SigningKey) -> Digest:
        raise AssertionError(NO_CARRIER)


class Ledger(MemoryLedger):
    """Refuses to pay `refused`."""

    refused: Address | None = None

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        if any(one.config.payer == self.refused for one in claims):
            raise PaymentError("the chain refuses", rule="LEDGER-1")
        return await super().claim(claims, signer=signer)


class Store(MemoryStore):
    """Fails while it is `full`."""

    full = False

    async def write(self, rows: Sequence[Write]) -> None:
        if self.full:
            raise Unavailable("the disk is full", rule="PAY-17")
        await super().write(rows)


@dataclass
class Payer:
    """A stranger with a channel of 10 000, who counts for himself."""

    till: Till
    key: SigningKey
    config: ChannelConfig
    charged: int = 0

    def offer(self, amount: int, **changes: Any) -> Presented:
        channel = self.config.channel_id(self.till.book.domain)
        ceiling = changes.get("ceiling", self.charged + amount)
        voucher = sign_voucher(channel, ceiling, self.till.book.domain, changes.get("signer", self.key))
        return Presented(config=self.config, voucher=voucher, amount=Amount(amount), deposit=None)

    async def buy(self, amount: int, cost: int) -> int:
        """One request whose answer costs the seller `cost`."""
        sale = await self.till.take(self.offer(amount), RequestId(ENTROPY.bytes(16)), price=amount)
        charge = await self.till.settle(sale, cost)
        self.charged += charge
        return charge


@dataclass
class World:
    ledger: Ledger
    store: Store
    till: Till
    settings: PaidSettings

    async def payer(self, number: int) -> Payer:
        key = SigningKey(Secret(bytes([number]) * 32))
        info = await self.ledger.info()
        config = ChannelConfig(
            payer=key.address,
            payer_authorizer=key.address,
            receiver=OWNER.address,
            receiver_authorizer=KEY.address,
            token=info.token,
            withdraw_delay=86_400,
            salt=Digest.zero(),
        )
        await self.ledger.faucet(key.address, 10_000)
        await self.ledger.deposit(config, Amount(10_000), signer=key)
        return Payer(self.till, key, config)

    async def restarted(self) -> Till:
        self.till = await open_till(self.ledger, self.store, self.settings)
        return self.till


async def open_till(ledger: Ledger, store: Store, settings: PaidSettings) -> Till:
    info, carrier = await ledger.info(), Carrier()
    asking = await asking_of(settings, info, carrier, receiver=OWNER.address, key=KEY, notice="")
    till = Till(
        settings,
        asking,
        info,
        key=KEY,
        ledger=ledger,
        carrier=carrier,
        store=store,
        clock=CLOCK,
        longest_request=120,
    )
    await till.open(_kept)
    return till


async def _kept(request_id: RequestId) -> int:
    """What kept receipts say: requests whose id begins with a 1 cost 50."""
    return 50 if request_id[0] == 1 else 0


async def make_world(**changes: Any) -> World:
    settings = PaidSettings(**{"claim_threshold": 1_000, **changes})
    ledger, store = Ledger(CLOCK), Store()
    return World(ledger, store, await open_till(ledger, store, settings), settings)


async def test_the_charge_has_the_margin_and_never_passes_what_was_offered() -> None:
    """X402-6: rounded up once; a dearer answer than quoted is the seller's loss."""
    payer = await (await make_world(margin_bps=1_000)).payer(1)
    assert await payer.buy(100, 57) == 63
    assert await payer.buy(100, 99) == 100
    assert await payer.buy(100, 0) == 0


async def test_small_debts_wait_and_large_ones_are_claimed_together() -> None:
    """X402-11: by threshold, in one batch; what was claimed is not claimed again."""
    world = await make_world(margin_bps=0)
    payers = [await world.payer(n) for n in (1, 2, 3)]
    for payer, cost in zip(payers, (999, 1_000, 2_000), strict=True):
        await payer.buy(2_000, cost)
    assert await world.till.claim() == 2
    assert await world.ledger.balance(OWNER.address) == 3_000
    assert await world.till.claim() == 0
    assert await world.till.claim(everything=True) == 1
    assert await world.ledger.balance(OWNER.address) == 3_999


async def test_one_refused_voucher_does_not_keep_the_others_back() -> None:
    """X402-11: the batch fails whole on chain; then each goes by itself."""
    world = await make_world(margin_bps=0)
    for n in (1, 2, 3):
        await (await world.payer(n)).buy(1_500, 1_500)
    world.ledger.refused = SigningKey(Secret(b"\x02" * 32)).address
    assert await world.till.claim() == 2
    assert await world.ledger.balance(OWNER.address) == 3_000
    world.ledger.refused = None
    assert await world.till.claim() == 1


async def test_a_payer_who_withdraws_is_claimed_at_once() -> None:
    """X402-11: however little it is; and new requests are still covered by what stays."""
    world = await make_world(margin_bps=0)
    payer = await world.payer(1)
    await payer.buy(100, 7)
    channel = payer.config.channel_id(world.till.book.domain)
    await world.ledger.initiate_withdraw(channel, Amount(9_000), signer=payer.key)
    assert await world.till.claim() == 1
    with pytest.raises(PaymentError, match="PAY-4"):
        await world.till.take(payer.offer(1_500), RequestId(b"\x09" * 16), price=1)


async def test_nothing_is_sold_that_is_not_written() -> None:
    """X402-5: a store that fails sells nothing, holds nothing back, and loses nothing of what it was to write."""
    world = await make_world(margin_bps=0)
    payer = await world.payer(1)
    await payer.buy(100, 10)
    world.store.full = True
    with pytest.raises(Unavailable):
        await payer.buy(100, 10)
    world.store.full = False
    assert await payer.buy(100, 10) == 10
    till = await world.restarted()
    assert till.book.channel(payer.config.channel_id(till.book.domain)).charged == 20


async def test_after_a_crash_kept_receipts_are_charged_and_nothing_else() -> None:
    """X402-11: one request had its receipt, the other had none."""
    world = await make_world(margin_bps=0)
    first, second = await world.payer(1), await world.payer(2)
    await world.till.take(first.offer(100), RequestId(b"\x01" * 16), price=100)
    await world.till.take(second.offer(100), RequestId(b"\x02" * 16), price=100)
    till = await world.restarted()
    charged = [till.book.channel(one.config.channel_id(till.book.domain)).charged for one in (first, second)]
    assert charged == [50, 0] and till.book.in_flight() == ()


async def test_less_than_the_price_and_another_base_are_refused() -> None:
    """X402-2, X402-5: and only the second is told where the channel stands."""
    world = await make_world()
    payer = await world.payer(1)
    with pytest.raises(PaymentError, match="PAY-5"):
        await world.till.take(payer.offer(99), RequestId(b"\x01" * 16), price=100)
    with pytest.raises(PaymentError, match="PAY-14"):
        await world.till.take(payer.offer(100, ceiling=101), RequestId(b"\x01" * 16), price=100)
    standing = await world.till.standing(payer.offer(100, ceiling=101))
    assert standing is not None and standing.charged == 0
    assert await world.till.standing(payer.offer(100, signer=OWNER)) is None


async def test_answers_under_way_are_bounded() -> None:
    """X402-10: one more is told to come again."""
    world = await make_world(max_open=1)
    first, second = await world.payer(1), await world.payer(2)
    sale = await world.till.take(first.offer(100), RequestId(b"\x01" * 16), price=100)
    with pytest.raises(Overloaded, match="X402-10"):
        await world.till.take(second.offer(100), RequestId(b"\x02" * 16), price=100)
    with pytest.raises(Overloaded, match="X402-5"):
        await world.till.take(first.offer(100), RequestId(b"\x03" * 16), price=100)
    await world.till.settle(sale, 1)
    assert await second.buy(100, 10) == 11
