# SPDX-License-Identifier: Apache-2.0
"""Money in a frozen channel comes home by itself, whatever happens meanwhile (PAY-16, PAY-21)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from tests.unit.client.pair import ENTROPY

from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import Unavailable
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.primitives import Amount, Digest, Instant, RequestId, sha256
from bombyx.protocol.seal import GatewayKey, Kem
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.settings import ClientKeys, ClientSettings
from bombyx.roles.client.wallet import Wallet
from bombyx.roles.client.withdrawals import Withdrawals
from bombyx.roles.worker.keys import new_signing_key

FUNDS, DEPOSIT, DELAY = 100_000_000, 10_000_000, 86_400


class HandClock:
    """Moves when the test says so."""

    def __init__(self) -> None:
        self.at = Instant(1_800_000_000_000)

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000

    async def sleep(self, seconds: float) -> None:
        self.at = self.at.plus(seconds=seconds)


class AwayLedger(MemoryLedger):
    """A chain that does not answer while `away`."""

    away = False

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        if self.away:
            raise Unavailable("the chain is away")
        return await super().initiate_withdraw(channel, amount, signer=signer)


@dataclass
class Purse:
    """A payer with a channel to one proxy; `life` is one run of its process."""

    clock: HandClock = field(default_factory=HandClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    keys: ClientKeys = field(
        default_factory=lambda: ClientKeys(owner=new_signing_key(ENTROPY), session=new_signing_key(ENTROPY))
    )

    def __post_init__(self) -> None:
        self.ledger = AwayLedger(self.clock)
        proxy = new_signing_key(ENTROPY).address
        self.proxy = Operator(
            address=proxy,
            role=OperatorRole.PROXY,
            endpoint="",
            receipt_address=proxy,
            pay_authorizer=proxy,
            pay_key_config=GatewayKey.generate(1, Kem.X25519, ENTROPY).config.encode(),
            price_sheet=Digest.zero(),
            models=(),
        )

    async def life(self) -> tuple[Wallet, Withdrawals]:
        wallet = Wallet(
            ClientSettings(withdraw_delay=DELAY),
            self.keys,
            clock=self.clock,
            randomness=ENTROPY,
            store=self.store,
            ledger=self.ledger,
        )
        await wallet.load()
        return wallet, Withdrawals(wallet, ledger=self.ledger, clock=self.clock, owner=self.keys.owner, every=60.0)

    async def pays(self, wallet: Wallet) -> None:
        await self.ledger.faucet(self.keys.owner.address, FUNDS)
        none = sha256(b"")
        await wallet.pay(self.proxy, RequestId(ENTROPY.bytes(16)), cap=1_000, meta_hash=none, body_hash=none)

    async def has(self) -> int:
        return int(await self.ledger.balance(self.keys.owner.address))


@pytest.fixture
def purse() -> Purse:
    return Purse()


async def test_money_of_a_frozen_channel_comes_home(purse: Purse) -> None:
    """PAY-16, PAY-21: announced at once, fetched when the delay has passed, by whichever process runs then."""
    wallet, withdrawals = await purse.life()
    await purse.pays(wallet)
    await wallet.freeze(purse.proxy.address, "it booked more than it served")
    assert await withdrawals.look() == 0 and await purse.has() == FUNDS - DEPOSIT
    await purse.clock.sleep(DELAY - 1)
    assert await withdrawals.look() == 0
    _, later = await purse.life()
    await purse.clock.sleep(2)
    assert await later.look() == 1 and await purse.has() == FUNDS
    assert await later.look() == 0, "fetched once"


async def test_a_chain_that_was_away_costs_time_only(purse: Purse) -> None:
    """PAY-16: a freeze that could not be announced is announced later."""
    wallet, withdrawals = await purse.life()
    await purse.pays(wallet)
    purse.ledger.away = True
    with pytest.raises(Unavailable):
        await wallet.freeze(purse.proxy.address, "it booked more than it served")
    assert await withdrawals.look() == 0
    purse.ledger.away = False
    await withdrawals.look()
    await purse.clock.sleep(DELAY + 1)
    assert await withdrawals.look() == 1 and await purse.has() == FUNDS


async def test_a_sound_channel_is_left_alone_and_one_withdrawn_by_hand_is_fetched(purse: Purse) -> None:
    """PAY-16: the owner's own announcement is finished as well; nothing is announced without a reason."""
    wallet, withdrawals = await purse.life()
    await purse.pays(wallet)
    await withdrawals.look()
    (channel,) = wallet.channels()
    view = await purse.ledger.channel(channel.id)
    assert view is not None and not view.withdrawing
    await purse.ledger.initiate_withdraw(channel.id, Amount(4_000_000), signer=purse.keys.owner)
    await purse.clock.sleep(DELAY + 1)
    assert await withdrawals.look() == 1 and await purse.has() == FUNDS - DEPOSIT + 4_000_000
