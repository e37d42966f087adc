# SPDX-License-Identifier: Apache-2.0
"""`bombyx sell` as processes: chain, proxy, a worker with the real model, and a stranger with two stock packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from eth_account import Account
from tests.scenarios.procs import MODEL, network_of_processes
from x402 import x402Client
from x402.http.clients.httpx import x402HttpxClient
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.batch_settlement.client import scheme as client_scheme
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC

from bombyx.adapters.evm import AddressBook, EvmLedger, Rpc
from bombyx.adapters.processes import stop_children
from bombyx.protocol.primitives import Address

STRANGER = "0x" + "5e" * 32
FUNDS = 100_000_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
async def test_a_stranger_buys_answers_of_the_network(tmp_path: Path) -> None:
    """X402-1 .. X402-11: whole and streamed, on a real chain; at SIGTERM what is owed is claimed, to the unit."""
    async with network_of_processes(tmp_path, chain="evm") as net:
        network = net._descriptor("sell", net.client_sees)
        where = ("--network", str(network), "--state", str(net.state("sell")), "--port", "0")
        sell = await net.start("sell", "sell", *where)
        chain = net.children["devnet"].ready
        book = AddressBook.from_dict(chain["contracts"])
        ledger = EvmLedger(Rpc([chain["url"]], chain_id=book.chain_id), book)
        try:
            account = Account.from_key(STRANGER)
            await ledger.faucet(Address.parse(account.address), FUNDS)
            charged = await _buy(str(sell.ready["url"]), str(chain["url"]), account)
            receiver = Address.parse(sell.ready["receiver"])
            before = await ledger.balance(receiver)
            await stop_children([sell], grace=30)
            assert sell.process.returncode == 0
            assert await ledger.balance(receiver) == before + charged
        finally:
            await ledger.close()


async def _buy(url: str, node: str, account: Any) -> int:
    """Two answers and a stream; what they cost."""
    client = x402Client()
    client.set_spend_controls(False)
    scheme = client_scheme.BatchSettlementEvmScheme(EthAccountSignerWithRPC(account, node))
    client.register("eip155:31337", scheme)
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 16, "temperature": 0}
    asked["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
    async with x402HttpxClient(client, timeout=120) as http:
        stock = openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http)
        first = await stock.chat.completions.with_raw_response.create(**asked)
        text = first.parse().choices[0].message.content
        stream = await stock.chat.completions.create(**asked, stream=True)
        parts = [part.choices[0].delta.content or "" async for part in stream if part.choices]
        assert text and "".join(parts), "answers of the real model"
        last = await stock.chat.completions.with_raw_response.create(**asked)
    told = decode_payment_response_header(last.headers["payment-response"]).extra
    assert told is not None
    return int(told["channelState"]["chargedCumulativeAmount"])
