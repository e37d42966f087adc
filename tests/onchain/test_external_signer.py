# SPDX-License-Identifier: Apache-2.0
"""WAL-6: the owner key in another process: it signs what it is shown, and what it signs is checked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from eth_account import Account
from eth_account.messages import encode_typed_data
from tests.onchain.conftest import PAYER, SESSION, STRANGER
from tests.onchain.devnet import QUICK, seeded
from tests.onchain.test_evm_ledger import config_for

from bombyx.adapters.evm.external import ExternallyOwned
from bombyx.adapters.rpc_signer import RpcSigner
from bombyx.errors import ConfigError, MalformedMessage, Unavailable
from bombyx.protocol.primitives import Address, Amount
from bombyx.protocol.wire.signing import SigningKey


@asynccontextmanager
async def signer(key: SigningKey, *, method: str, refuse: bool = False) -> AsyncIterator[str]:
    """A wallet as others write them: it hashes the typed data itself (eth-account), with a key of its own."""

    async def handle(request: web.Request) -> web.Response:
        call = await request.json()
        if call["method"] != method:
            return web.json_response({"id": 1, "error": {"code": -32601, "message": "no such method"}})
        if refuse:
            return web.json_response({"id": 1, "error": {"code": 4001, "message": "the user said no"}})
        data: Any = call["params"][1]
        shown = json.loads(data) if isinstance(data, str) else data
        signed = Account.sign_message(encode_typed_data(full_message=shown), key.secret().reveal())
        return web.json_response({"id": 1, "result": "0x" + bytes(signed.signature).hex()})

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("method", ["account_signTypedData", "eth_signTypedData_v4"])
async def test_a_deposit_is_signed_elsewhere_and_sent_by_the_session_key(method: str) -> None:
    """WAL-6: the owner's key never comes here; its tokens do, by one authorization its holder could read."""
    async with seeded() as (_, rpc, book), signer(PAYER, method=method) as url:
        ledger = ExternallyOwned(rpc, book, RpcSigner(url, PAYER.address), patience=QUICK)
        await ledger.faucet(PAYER.address, 1_000)
        config = config_for(book)
        for amount in (400, 100):
            await ledger.deposit(config, Amount(amount), signer=SESSION)
        assert await ledger.balance(PAYER.address) == 500
        channel = config.channel_id(ledger._domain)
        await ledger.initiate_withdraw(channel, Amount(500), signer=SESSION)
        view = await ledger.channel(channel)
        assert view is not None and (view.balance, view.withdraw_amount) == (500, 500)


async def test_a_signer_that_signs_with_another_key_or_says_no_moves_nothing() -> None:
    """WAL-6: what it gives is checked here before gas is spent on it."""
    async with seeded() as (_, rpc, book):
        for key, refuse, expected in ((STRANGER, False, MalformedMessage), (PAYER, True, Unavailable)):
            async with signer(key, method="account_signTypedData", refuse=refuse) as url:
                ledger = ExternallyOwned(rpc, book, RpcSigner(url, PAYER.address), patience=QUICK)
                with pytest.raises(expected):
                    await ledger.deposit(config_for(book), Amount(1), signer=SESSION)


def test_a_signer_across_the_network_needs_tls() -> None:
    """WAL-6: what is to be signed is shown to its holder as it is."""
    with pytest.raises(ConfigError):
        RpcSigner("http://192.0.2.1/", Address.zero())
