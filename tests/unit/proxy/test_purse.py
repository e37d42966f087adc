# SPDX-License-Identifier: Apache-2.0
"""The proxy's own channels to workers: what is taken back from enclaves that are gone, and what cut answers hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from tests.unit.proxy.kit import ENTROPY, MONEY, key

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import PaymentError, Peer
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.primitives import Amount, Digest, Instant, RequestId
from bombyx.protocol.seal import GatewayKey, Kem
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.holdings import PAYER, Holdings
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.settings import ProxySettings
from bombyx.roles.proxy.wallet import Wallet, WorkerAccount

FLOAT = 10_000
ANY = Digest(b"\x11" * 32)


class HandClock(SystemClock):
    """Moves when the test says so."""

    ahead = 0.0

    def now(self) -> Instant:
        return super().now().plus(seconds=self.ahead)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Stubborn(MemoryLedger):
    """A chain that refuses one channel's withdrawals."""

    refused: Digest | None = None

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        if channel == self.refused:
            raise PaymentError("no", peer=Peer.CHAIN, rule="LEDGER-1")
        return await super().initiate_withdraw(channel, amount, signer=signer)


@dataclass
class Purse:
    """A proxy's wallet alone, with as many workers as are asked for."""

    clock: HandClock = field(default_factory=HandClock)
    store: MemoryStore = field(default_factory=MemoryStore)

    async def start(self) -> Purse:
        self.ledger = Stubborn(self.clock)
        await self.ledger.faucet(key("proxy").address, MONEY)
        await self.again()
        return self

    async def again(self) -> None:
        """A new life."""
        holdings = Holdings(shared=False)
        self.wallet = Wallet(
            ProxySettings(policy=AppraisalPolicy(), float_limit=FLOAT, voucher_window=10),
            key("proxy"),
            await self.ledger.info(),
            ledger=self.ledger,
            clock=self.clock,
            randomness=ENTROPY,
            scribe=Scribe(self.store, holdings),
            holdings=holdings,
        )
        self.wallet.load(await self.store.scan(PAYER))

    async def worker(self, name: str) -> WorkerAccount:
        return await self.wallet.account(
            Operator(
                address=key(name).address,
                role=OperatorRole.WORKER,
                endpoint="",
                receipt_address=key(name).address,
                pay_authorizer=key(name).address,
                pay_key_config=GatewayKey.generate(1, Kem.X25519, ENTROPY).config.encode(),
                price_sheet=ANY,
                models=(),
            )
        )

    async def balance(self) -> int:
        return int(await self.ledger.balance(key("proxy").address))


@pytest.fixture
async def purse() -> Purse:
    return await Purse().start()


async def test_money_in_channels_to_enclaves_that_are_gone_comes_back(purse: Purse) -> None:
    """PAY-16: announced after a while, fetched after the delay, less what the worker may still claim; the one that is
    linked is left alone, and one that the chain refuses keeps no other from its turn."""
    linked, refused, gone = [await purse.worker(name) for name in ("linked", "refused", "gone")]
    await purse.wallet.authorize(gone, RequestId(b"r" * 16), cap=500, meta_hash=ANY, body_hash=ANY)
    purse.ledger.refused = refused.channel.id
    in_use = {linked.channel.id}
    await purse.wallet.reclaim(in_use)
    purse.clock.ahead += 601
    await purse.wallet.reclaim(in_use)
    purse.clock.ahead += 3_601
    await purse.wallet.reclaim(in_use)
    kept = gone.channel.ceiling
    assert kept == 510
    assert await purse.balance() == MONEY - 3 * FLOAT + (FLOAT - kept)
    purse.ledger.refused = None
    await purse.wallet.reclaim(in_use)
    purse.clock.ahead += 3_601
    await purse.wallet.reclaim(in_use)
    assert await purse.balance() == MONEY - FLOAT - kept


async def test_a_worker_that_comes_back_keeps_its_channel(purse: Purse) -> None:
    """PAY-16: how long it was gone is counted anew."""
    account = await purse.worker("away")
    await purse.wallet.reclaim(set())
    purse.clock.ahead += 500
    await purse.wallet.reclaim({account.channel.id})
    purse.clock.ahead += 500
    await purse.wallet.reclaim(set())
    view = await purse.ledger.channel(account.channel.id)
    assert view is not None
    assert not view.withdrawing


async def test_what_cut_answers_hold_of_the_float_is_free_again(purse: Purse) -> None:
    """PAY-27: once neither side can still serve them, over a restart too; one that runs holds what it may cost."""
    account = await purse.worker("one")
    for name in (b"a", b"b"):
        await purse.wallet.authorize(account, RequestId(name * 16), cap=3_000, meta_hash=ANY, body_hash=ANY)
    purse.wallet.agree(account.channel, RequestId(b"a" * 16), 100, final=False)
    await purse.wallet.lapse()
    purse.clock.ahead += 599
    await purse.wallet.lapse()
    assert account.channel.open_amount == 5_900
    purse.clock.ahead += 2
    await purse.wallet.lapse()
    assert (account.channel.open_amount, account.channel.agreed) == (3_000, 100)
    await purse.again()
    back = purse.wallet.channel(account.channel.id)
    assert back is not None
    assert (back.open_amount, back.agreed, back.lapsed) == (3_000, 100, 2_900)
    await purse.wallet.lapse()
    purse.clock.ahead += 601
    await purse.wallet.lapse()
    assert back.open_amount == 0
    again = await purse.worker("one")
    assert purse.wallet.dispute(again)
    assert back.disputed == 5_900
