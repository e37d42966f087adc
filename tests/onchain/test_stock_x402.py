# SPDX-License-Identifier: Apache-2.0
"""The x402 package as it comes from the registry: client, server middleware and facilitator, on our contracts.

Nothing of bombyx takes part but the contracts, which lie at the addresses that package has built in.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from eth_account import Account
from fastapi import FastAPI, Request, Response
from tests.onchain.conftest import AUTHORIZER, PAYER, RECEIVER, SESSION, STRANGER
from tests.onchain.devnet import ledger_on, seeded
from x402 import x402Client, x402Facilitator, x402ResourceServer
from x402.http.clients.httpx import x402HttpxClient
from x402.http.middleware.fastapi import PaymentMiddlewareASGI, set_settlement_overrides
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm import EthAccountSigner, FacilitatorWeb3Signer
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.batch_settlement.client import scheme as client_scheme
from x402.mechanisms.evm.batch_settlement.client.config import (
    BatchSettlementDepositPolicy,
    BatchSettlementEvmSchemeOptions,
)
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.server import (
    BatchSettlementChannelManager,
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
    ChannelManagerConfig,
)

from bombyx.adapters.evm import EvmLedger
from bombyx.protocol.primitives import Address, Digest

NETWORK = "eip155:31337"
CAP, PRICE, REQUESTS = 1_000, 307, 12
FUNDS = 10**9
RELAYER = STRANGER  # pays gas; nobody else needs any


def _account(key: Any) -> Any:
    return Account.from_key(key.secret().reveal())


class _Facilitator:
    """The facilitator in this process, in the shape the channel manager asks for."""

    def __init__(self, inner: x402Facilitator) -> None:
        self._inner = inner

    async def settle(self, payload: Any, requirements: Any) -> Any:
        return await self._inner.settle(payload, requirements)

    async def verify(self, payload: Any, requirements: Any) -> Any:
        return await self._inner.verify(payload, requirements)

    def get_supported(self) -> Any:
        return self._inner.get_supported()


def _shop(scheme: Any, facilitator: x402Facilitator, token: Address) -> FastAPI:
    """A metered endpoint: at most CAP a request, PRICE in the end."""
    server = x402ResourceServer(facilitator)
    server.register(NETWORK, scheme)
    app = FastAPI()

    async def answer(request: Request, response: Response) -> dict[str, Any]:
        await request.json()
        set_settlement_overrides(response, {"amount": str(PRICE)})
        return {"object": "chat.completion", "choices": []}

    answer.__annotations__ = {"request": Request, "response": Response, "return": dict}
    app.post("/v1/chat/completions")(answer)
    price = {"amount": str(CAP), "asset": str(token), "extra": {"name": "USD Coin", "version": "2"}}
    option = PaymentOption(scheme="batch-settlement", pay_to=str(RECEIVER.address), network=NETWORK, price=price)
    routes = {"POST /v1/chat/completions": RouteConfig(accepts=[option], description="answers")}
    app.add_middleware(PaymentMiddlewareASGI, routes=routes, server=server)
    return app


@contextlib.contextmanager
def _served(app: FastAPI) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.02)
    try:
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.should_exit = True
        thread.join(10)


@asynccontextmanager
async def _world() -> AsyncIterator[tuple[str, EvmLedger]]:
    async with seeded() as (node, rpc, book):
        ledger = ledger_on(rpc, book)
        await ledger.faucet(PAYER.address, FUNDS)
        await rpc.call("anvil_setBalance", str(RELAYER.address), hex(10**20))
        yield node.url, ledger


def _client(url: str) -> x402Client:
    client = x402Client()
    client.set_spend_controls(False)
    options = BatchSettlementEvmSchemeOptions(
        deposit_policy=BatchSettlementDepositPolicy(deposit_multiplier=5),
        voucher_signer=EthAccountSigner(_account(SESSION)),
        payer_authorizer=str(SESSION.address),
        rpc_url=url,
    )
    client.register(NETWORK, client_scheme.BatchSettlementEvmScheme(EthAccountSigner(_account(PAYER)), options))
    return client


@pytest.mark.filterwarnings("ignore")
async def test_stock_client_server_and_facilitator() -> None:
    """PAY-14: deposit without gas, metered requests by voucher, top-up when it runs out, claim, settle, refund."""
    async with _world() as (url, ledger):
        facilitator = x402Facilitator()
        signer = FacilitatorWeb3Signer("0x" + RELAYER.secret().reveal().hex(), url)
        facilitator.register([NETWORK], BatchSettlementEvmFacilitator(signer))
        authorizer = LocalAuthorizerSigner(_account(AUTHORIZER))
        config = BatchSettlementEvmSchemeServerConfig(receiver_authorizer_signer=authorizer)
        scheme = BatchSettlementEvmScheme(str(RECEIVER.address), config)
        with _served(_shop(scheme, facilitator, ledger.book.token)) as shop:
            async with x402HttpxClient(_client(url)) as http:
                for _ in range(REQUESTS):
                    answer = await http.post(shop, json={"model": "m", "messages": []}, timeout=30)
                    assert answer.status_code == 200, answer.text
        settings = ChannelManagerConfig(
            scheme=scheme,
            facilitator=_Facilitator(facilitator),
            receiver=str(RECEIVER.address),
            token=str(ledger.book.token),
            network=NETWORK,
        )
        (channel,) = [Digest.parse(one.channel_id) for one in scheme.get_storage().list()]
        before = await ledger.channel(channel)
        assert before is not None and before.balance > 5 * CAP, "it was topped up"
        await asyncio.wait_for(BatchSettlementChannelManager(settings).claim_and_settle(), 60)
        after = await ledger.channel(channel)
        assert after is not None and after.total_claimed == REQUESTS * PRICE
        assert await ledger.balance(RECEIVER.address) == REQUESTS * PRICE
        assert await ledger.balance(PAYER.address) == FUNDS - after.balance
