# SPDX-License-Identifier: Apache-2.0
"""Strangers with the unmodified x402 package buy answers of our client, on a real EVM node. Sums agree to the unit."""

from __future__ import annotations

import json

import pytest
from tests.onchain.shop import FUNDS, open_shop
from tests.unit.client.pair import TEXT, chat
from x402.http.clients.httpx import x402HttpxClient
from x402.http.utils import decode_payment_response_header

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT = "/v1/chat/completions"


async def test_a_first_payment_with_deposit_then_twenty_requests_then_claim() -> None:
    """X402-1, X402-4 .. X402-7: no gas, no account; the charge is in the answer; conservation to the unit."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        client, _ = shop.client(customer)
        charged = 0
        async with x402HttpxClient(client, timeout=30) as http:
            for _ in range(21):
                answer = await http.post(shop.url + CHAT, content=chat())
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == TEXT
                settled = decode_payment_response_header(answer.headers["payment-response"])
                charged += int(settled.extra["chargedAmount"])
        (channel,) = shop.till.book.channels
        assert shop.till.book.channel(channel).charged == charged > 0
        assert await shop.till.claim(everything=True) == 1
        view = await shop.ledger.channel(channel)
        assert view.total_claimed == charged
        assert await shop.ledger.balance(customer.address) == FUNDS - view.balance
        print(json.dumps({"charged": charged, "balance": int(view.balance)}))
