# SPDX-License-Identifier: Apache-2.0
"""A paid endpoint on real sockets before a real EVM node, and customers with the x402 package from the registry.

Behind the endpoint stand the scripted proxy and workers of the client's tests: real seals, quotes, receipts, payments.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from tests.onchain.devnet import ledger_on, seeded
from tests.unit.client.pair import CLOCK, ENTROPY, Pair, make_pair
from x402 import x402Client
from x402.mechanisms.evm.batch_settlement.client import scheme as client_scheme
from x402.mechanisms.evm.batch_settlement.client.config import (
    BatchSettlementDepositPolicy,
    BatchSettlementEvmSchemeOptions,
)
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC

from bombyx.adapters.evm import EvmLedger
from bombyx.adapters.evm.carrier import EvmCarrier
from bombyx.adapters.http_server import HttpServer
from bombyx.ports import ChannelView, Store
from bombyx.protocol.primitives import Digest, Secret
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.paid import NOTICE, PaidEndpoint
from bombyx.roles.client.settings import PaidSettings
from bombyx.roles.client.till import Till, asking_of

NETWORK = "eip155:31337"
TILL = SigningKey(Secret(b"\x71" * 32))
FUNDS = 10**9


@dataclass
class Shop:
    """What `open_shop` gives."""

    node_url: str
    ledger: EvmLedger
    pair: Pair
    till: Till
    url: str = ""
    server: HttpServer | None = None
    endpoint: PaidEndpoint | None = None

    @property
    def receiver(self) -> SigningKey:
        return self.pair.keys.owner

    async def customer(self, number: int, *, funds: int = FUNDS) -> SigningKey:
        """An account with tokens and without a wei for gas."""
        key = SigningKey(Secret(bytes([number]) * 32))
        await self.ledger.faucet(key.address, funds)
        return key

    async def seen(self, channel: Digest) -> ChannelView:
        """The channel on chain, which must be there."""
        view = await self.ledger.channel(channel)
        assert view is not None
        return view

    def client(self, key: SigningKey, *, reads_chain: bool = True) -> tuple[x402Client, Any]:
        """A stock x402 client, and its scheme (whose store a test may look into)."""
        account = Account.from_key(key.secret().reveal())
        signer = EthAccountSignerWithRPC(account, self.node_url) if reads_chain else EthAccountSigner(account)
        policy = BatchSettlementDepositPolicy(deposit_multiplier=3)
        made = client_scheme.BatchSettlementEvmScheme(signer, BatchSettlementEvmSchemeOptions(deposit_policy=policy))
        client = x402Client()
        client.set_spend_controls(False)
        client.register(NETWORK, made)
        return client, made

    async def restarted(self) -> None:
        """The till's next life over the same store; what was under way in the old one is as after a crash."""
        assert self.server is not None and self.till._watch is not None
        self.till._watch.cancel()
        await self.server.close(grace=0)
        await self.serve(self.pair.store, self.till.settings)

    async def serve(self, store: Store, settings: PaidSettings) -> None:
        info = await self.ledger.info()
        carrier = EvmCarrier(self.ledger)
        asking = await asking_of(settings, info, carrier, receiver=self.receiver.address, key=TILL, notice=NOTICE)
        self.till = Till(
            settings,
            asking,
            info,
            key=TILL,
            ledger=self.ledger,
            carrier=carrier,
            store=store,
            clock=CLOCK,
            longest_request=self.pair.settings.deadline_seconds,
        )
        await self.till.open(self.pair.client.paid_for)
        self.endpoint = PaidEndpoint(self.pair.client, self.till, clock=CLOCK, randomness=ENTROPY)
        self.server = HttpServer(self.endpoint.handle)
        await self.server.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.port}"


@asynccontextmanager
async def open_shop(settings: PaidSettings | None = None, **changes: Any) -> AsyncIterator[Shop]:
    """`changes` are the selling client's settings."""
    async with seeded() as (node, rpc, book):
        ledger = ledger_on(rpc, book)
        pair = await make_pair(workers=1, ledger=ledger, **changes)  # type: ignore[arg-type]
        shop = Shop(node.url, ledger, pair, None)  # type: ignore[arg-type]
        await shop.serve(pair.store, settings or PaidSettings(min_deposit=1_000, rate=10_000.0))
        try:
            yield shop
        finally:
            assert shop.server is not None and shop.endpoint is not None
            await shop.server.close(grace=1)
            await shop.endpoint.close(grace=1)
            await shop.till.close()
