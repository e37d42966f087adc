# SPDX-License-Identifier: Apache-2.0
"""Strangers with the unmodified x402 package buy answers of our client, on a real EVM node. Sums agree to the unit."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from tests.onchain.shop import FUNDS, TILL, Shop, open_shop
from tests.unit.client.pair import MODEL, TEXT, chat
from x402.http.clients.httpx import x402HttpxClient
from x402.http.utils import decode_payment_required_header, decode_payment_response_header
from x402.mechanisms.evm.batch_settlement.client.channel import process_payment_response

from bombyx.protocol.pay.channel import sign_voucher
from bombyx.protocol.pay.x402 import MISMATCH, header
from bombyx.protocol.pay.x402_payment import read_payment
from bombyx.protocol.primitives import Digest, RequestId, Secret
from bombyx.protocol.wire.request import Shape, SignedVoucher
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.paid import NOTICE
from bombyx.roles.client.settings import PaidSettings

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT = "/v1/chat/completions"


async def test_a_first_payment_with_deposit_then_metered_requests_then_claim() -> None:
    """X402-1, X402-4 .. X402-7: no gas, no account; the charge is in the answer; conservation to the unit."""
    async with open_shop(PaidSettings(min_deposit=1, rate=1e4)) as shop:
        customer = await shop.customer(1)
        client, _ = shop.client(customer)
        charged, deposits = 0, set()
        async with x402HttpxClient(client, timeout=30) as http:
            for _ in range(36):
                answer = await http.post(shop.url + CHAT, content=chat())
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == TEXT
                settled = decode_payment_response_header(answer.headers["payment-response"])
                charged += int(settled.extra["chargedAmount"])
                deposits.add(settled.transaction)
        (channel,) = shop.till.book.channels
        assert shop.till.book.channel(channel).charged == charged > 0
        assert await shop.till.claim(everything=True) == 1
        view = await shop.seen(channel)
        assert view.total_claimed == charged
        assert await shop.ledger.balance(customer.address) == FUNDS - view.balance
        assert len(deposits - {""}) == 2, "the deposit, and a top-up when it ran out"


async def test_every_token_is_where_the_receipts_say() -> None:
    """X402-6, X402-11: two customers, a top-up, a claim of both; over all accounts nothing appears or is lost."""
    async with open_shop() as shop:
        charged = {}
        for number in (1, 2):
            customer = await shop.customer(number)
            client, _ = shop.client(customer)
            async with x402HttpxClient(client, timeout=30) as http:
                for _ in range(8 * number):
                    assert (await http.post(shop.url + CHAT, content=chat())).status_code == 200
        await shop.pair.client.settled()
        for channel in shop.till.book.channels:
            charged[channel] = int(shop.till.book.channel(channel).charged)
        assert await shop.till.claim(everything=True) == 2, "both in one batch"
        (spent,) = shop.pair.client.wallet.channels()
        deposited = (await shop.seen(spent.id)).balance
        assert await shop.ledger.balance(shop.receiver.address) == FUNDS - deposited + sum(charged.values())
        margin = sum(charged.values()) - int(spent.agreed)
        assert 24 <= margin <= 24 * 2 + int(spent.agreed) // 10, "a tenth, rounded up on each of 24 answers"
        book = shop.ledger.book
        held: list[int] = [await shop.ledger.balance(one) for one in (book.settlement, shop.receiver.address)]
        held += [await shop.ledger.balance((await shop.customer(n, funds=1)).address) - 1 for n in (1, 2)]
        assert sum(held) == 3 * FUNDS


async def test_a_stream_tells_its_charge_in_a_comment_and_the_next_request_goes_on_from_there() -> None:
    """X402-5, X402-7: an OpenAI stream with one comment more; a client that missed it is set right by the next 402."""
    async with open_shop() as shop:
        client, scheme = shop.client(await shop.customer(1))
        async with x402HttpxClient(client, timeout=30) as http:
            answer = await http.post(shop.url + CHAT, content=chat(stream=True))
            lines = [line for line in answer.text.split("\n") if line]
            assert lines[-1] == "data: [DONE]" and lines[-2].startswith(": PAYMENT-RESPONSE ")
            settled = decode_payment_response_header(lines[-2].removeprefix(": PAYMENT-RESPONSE "))
            (channel,) = shop.till.book.channels
            assert int(settled.extra["chargedAmount"]) == shop.till.book.channel(channel).charged > 0
            assert scheme._storage.get(str(channel)).charged_cumulative_amount == "0", "it saw no header"
            again = await http.post(shop.url + CHAT, content=chat())
            assert again.status_code == 200
            known = scheme._storage.get(str(channel))
            assert int(known.charged_cumulative_amount) == shop.till.book.channel(channel).charged


async def test_a_client_without_a_node_reads_the_comment_itself() -> None:
    """X402-7: what the comment holds is what the header would: the package's own function takes it."""
    async with open_shop() as shop:
        client, scheme = shop.client(await shop.customer(1), reads_chain=False)
        async with x402HttpxClient(client, timeout=30) as http:
            await http.post(shop.url + CHAT, content=chat())  # brings the deposit
            answer = await http.post(shop.url + CHAT, content=chat(stream=True))
            (channel,) = shop.till.book.channels
            told = next(line for line in answer.text.split("\n") if line.startswith(": PAYMENT-RESPONSE "))
            required = shop.till.asking.requirements(shop.till.price(await shop.pair.client.quote(CHAT, chat())))
            process_payment_response(
                scheme._storage,
                lambda name: told.removeprefix(": PAYMENT-RESPONSE ") if name == "PAYMENT-RESPONSE" else None,
                {"channel_id": str(channel), "request_amount": required["amount"]},
            )
            assert (await http.post(shop.url + CHAT, content=chat())).status_code == 200


async def test_the_stock_openai_package_over_the_stock_x402_package() -> None:
    """X402-1: two packages from the registry, one line to join them, and neither knows of us."""
    async with open_shop() as shop:
        client, _ = shop.client(await shop.customer(1))
        async with x402HttpxClient(client, timeout=30) as http:
            stock = openai.AsyncOpenAI(base_url=shop.url + "/v1", api_key="none", http_client=http)
            messages: list[Any] = [{"role": "user", "content": "Where is Paris?"}]
            answer = await stock.chat.completions.create(model=MODEL, messages=messages, max_tokens=32)
            assert answer.choices[0].message.content == TEXT
            stream = await stock.chat.completions.create(model=MODEL, messages=messages, max_tokens=32, stream=True)
            assert "".join([part.choices[0].delta.content or "" async for part in stream]) == TEXT


@pytest.mark.parametrize(("taken", "linger", "whole"), [(1, 10.0, False), (6, 0.05, False), (6, 10.0, True)])
async def test_a_customer_who_leaves_pays_what_was_delivered(taken: int, linger: float, whole: bool) -> None:
    """X402-8: the next receipt after leaving is the bill; where none comes in time, the last one before it is."""
    settings = PaidSettings(min_deposit=1_000, rate=1e4, linger_seconds=linger)
    async with open_shop(settings, shape=Shape.CONSTANT, frame_size=64) as shop:
        client, _ = shop.client(await shop.customer(1))
        async with x402HttpxClient(client, timeout=30) as http:
            full = int(_charge_of(await http.post(shop.url + CHAT, content=chat())))
            shop.pair.proxy.pause = 0.1
            async with http.stream("POST", shop.url + CHAT, content=chat(stream=True)) as answer:
                pieces = answer.aiter_raw()
                for _ in range(taken):
                    await anext(pieces)
        (channel,) = shop.till.book.channels
        await _until(lambda: not shop.till.book.channel(channel).reserved)
        billed = shop.till.book.channel(channel).charged - full
        assert billed == full if whole else 0 < billed < full
        assert shop.pair.proxy.closed_early == (0 if whole else 1), "what nobody reads is not made"


async def test_a_replayed_voucher_buys_nothing() -> None:
    """X402-5: the voucher of a served request, sent again with the same request, is answered by where we stand."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        async with httpx.AsyncClient(timeout=30) as http:
            paid = await _pay_by_hand(shop, customer, http)
            again = await http.post(shop.url + CHAT, content=chat(), headers=paid.request.headers)
            assert again.status_code == 402
            told = decode_payment_required_header(again.headers["payment-required"])
            assert told.error == MISMATCH
            assert told.accepts[0].extra["channelState"]["chargedCumulativeAmount"] == _charge_of(paid)
            assert len(shop.pair.workers[0].opened) == 1, "one answer was made"


async def test_smaller_foreign_and_forged_vouchers_buy_nothing() -> None:
    """X402-4, X402-5: each is refused with the scheme's word for it, and not one byte goes to the network."""
    async with open_shop() as shop:
        customer, thief = await shop.customer(1), await shop.customer(2)
        async with httpx.AsyncClient(timeout=30) as http:
            first = _payload(await _pay_by_hand(shop, customer, http))
            domain, channel = shop.till.book.domain, shop.till.book.channels[0]
            ceiling = int(first["payload"]["voucher"]["maxClaimableAmount"])
            forged = sign_voucher(channel, ceiling * 2, domain, thief)
            smaller = sign_voucher(channel, 1, domain, customer)
            foreign = sign_voucher(Digest(b"\x09" * 32), ceiling * 2, domain, customer)
            seen = {}
            for name, voucher in {"forged": forged, "smaller": smaller, "foreign": foreign}.items():
                value = _with_voucher(first, voucher)
                answer = await http.post(shop.url + CHAT, content=chat(), headers={"payment-signature": header(value)})
                assert answer.status_code == 402
                seen[name] = decode_payment_required_header(answer.headers["payment-required"])
            assert {name: told.error for name, told in seen.items()} == {
                "forged": "invalid_batch_settlement_evm_voucher_signature",
                "smaller": MISMATCH,
                "foreign": "invalid_batch_settlement_evm_voucher_signature",
            }
            assert "channelState" not in seen["forged"].accepts[0].extra, "strangers learn nothing of a channel"
            assert len(shop.pair.workers[0].opened) == 1


async def test_a_channel_that_pays_somebody_else_is_refused_before_the_chain_is_asked() -> None:
    """X402-4: what costs nothing to refuse is refused first."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        async with httpx.AsyncClient(timeout=30) as http:
            value = await _voucher_for(shop, customer, http)
            value["payload"]["channelConfig"]["receiver"] = str(customer.address)
            asked = shop.ledger.rpc.calls  # type: ignore[attr-defined]
            answer = await http.post(shop.url + CHAT, content=chat(), headers={"payment-signature": header(value)})
            assert answer.status_code == 402
            assert shop.ledger.rpc.calls == asked  # type: ignore[attr-defined]


async def test_deposits_that_would_waste_gas_are_not_carried() -> None:
    """X402-4: too small, out of date, signed by another, or without the money for it: no transaction is sent."""
    async with open_shop(PaidSettings(min_deposit=50_000, rate=1e4)) as shop:
        customer, poor = await shop.customer(1), SigningKey(Secret(b"\x05" * 32))
        sent = await shop.ledger.rpc.call("eth_getTransactionCount", str(TILL.address), "latest")
        async with httpx.AsyncClient(timeout=30) as http:
            good = await _voucher_for(shop, customer, http)
            bad = [copy.deepcopy(good) for _ in range(3)]
            bad[0]["payload"]["deposit"]["amount"] = "49999"
            bad[1]["payload"]["deposit"]["authorization"]["erc3009Authorization"]["validBefore"] = "1"
            bad[2]["payload"]["deposit"]["authorization"]["erc3009Authorization"]["signature"] = "0x" + "11" * 65
            bad.append(await _voucher_for(shop, poor, http))
            for value in bad:
                answer = await http.post(shop.url + CHAT, content=chat(), headers={"payment-signature": header(value)})
                assert answer.status_code == 402, answer.text
        assert await shop.ledger.rpc.call("eth_getTransactionCount", str(TILL.address), "latest") == sent
        assert shop.till.book.channels == ()


async def test_an_answer_that_fails_costs_nothing_and_its_deposit_is_not_lost() -> None:
    """X402-6: no worker answers; the charge told is 0, and the next request is paid from the same deposit."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        client, scheme = shop.client(customer, reads_chain=False)
        shop.pair.proxy.refusals = [(503, {"code": "no_workers"})]
        async with x402HttpxClient(client, timeout=30) as http:
            failed = await http.post(shop.url + CHAT, content=chat())
            assert failed.status_code == 503 and _charge_of(failed) == "0"
            (channel,) = shop.till.book.channels
            deposited = (await shop.seen(channel)).balance
            assert int(scheme._storage.get(str(channel)).balance) == deposited > 0
            assert (await http.post(shop.url + CHAT, content=chat())).status_code == 200
            assert (await shop.seen(channel)).balance == deposited


async def test_one_request_a_channel_at_a_time() -> None:
    """X402-5: a second one is told to come again, before anything is spent on it."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        async with httpx.AsyncClient(timeout=30) as http:
            await _pay_by_hand(shop, customer, http)
            charged = shop.till.book.channel(shop.till.book.channels[0]).charged
            shop.pair.proxy.pause = 0.3
            value = await _voucher_for(shop, customer, http, base=charged, deposit=False)
            headers = {"payment-signature": header(value)}
            both = [http.post(shop.url + CHAT, content=chat(), headers=headers) for _ in range(2)]
            found = sorted((await asyncio.gather(*both)), key=lambda answer: answer.status_code)
            assert [answer.status_code for answer in found] == [200, 429]
            assert found[1].headers["retry-after"] == "1"


async def test_a_till_that_crashed_counts_on_from_its_rows() -> None:
    """X402-11: what was under way is charged by its kept receipt or for nothing; the next life claims."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        async with httpx.AsyncClient(timeout=30) as http:
            await _pay_by_hand(shop, customer, http)
            book = shop.till.book
            (channel,) = book.channels
            charged = int(book.channel(channel).charged)
            value = await _voucher_for(shop, customer, http, base=charged, deposit=False)
            lost = read_payment(header(value), shop.till.asking)
            price = shop.till.price(await shop.pair.client.quote(CHAT, chat()))
            await shop.till.take(lost, RequestId(b"\x0c" * 16), price=price)  # and then it dies
            await shop.restarted()
            assert shop.till.book is not book and shop.till.book.in_flight() == ()
            assert shop.till.book.channel(channel).charged == charged
            answer = await http.post(shop.url + CHAT, content=chat(), headers={"payment-signature": header(value)})
            assert answer.status_code == 200, "the same voucher, as nothing was charged for it"
            assert await shop.till.claim(everything=True) == 1


async def test_the_hop_says_that_it_reads_everything() -> None:
    """X402-9: in the 402, for programs and people, and at /verification."""
    async with open_shop() as shop, httpx.AsyncClient() as http:
        refused = await http.post(shop.url + CHAT, content=chat())
        told = decode_payment_required_header(refused.headers["payment-required"])
        assert refused.status_code == 402 and told.accepts[0].extra["notice"] == NOTICE
        assert NOTICE in told.resource.description and refused.json()["plaintext_here"] is True
        value = (await http.get(shop.url + "/verification")).json()
        assert value["plaintext_here"] is True and value["hop"] == NOTICE
        seen = await http.get(shop.url + "/verification", headers={"accept": "text/html"})
        assert "in clear" in seen.text


async def test_strangers_see_their_own_receipt_and_nobody_elses_business() -> None:
    """X402-10: a receipt by its whole id; no list, no channels, no budget."""
    async with open_shop() as shop:
        customer = await shop.customer(1)
        async with httpx.AsyncClient(timeout=30) as http:
            paid = await _pay_by_hand(shop, customer, http)
            name = paid.headers["x-bombyx-request-id"]
            assert (await http.get(f"{shop.url}/v1/receipts/{name}")).json()["request_id"] == name
            assert (await http.get(f"{shop.url}/v1/receipts/{name}/proof")).status_code == 200
            for path in (
                "/v1/receipts",
                f"/v1/receipts/{name[:8]}",
                "/v1/receipts/last",
                f"/v1/receipts/{name}/verify",
            ):
                assert (await http.get(shop.url + path)).status_code == 404, path
            value = (await http.get(shop.url + "/verification")).json()
            assert not {"channels", "receipts", "candidates"} & set(value)
            shop.pair.client.wallet._settings = replace(shop.pair.client.settings, budget=1)
            shop.pair.client.wallet._channels.clear()
            charged = shop.till.book.channel(shop.till.book.channels[0]).charged
            value = await _voucher_for(shop, customer, http, base=charged, deposit=False)
            broke = await http.post(shop.url + CHAT, content=chat(), headers={"payment-signature": header(value)})
            assert broke.status_code == 503 and "budget" not in broke.text and _charge_of(broke) == "0"


async def test_probing_without_paying_is_cheap_and_paced() -> None:
    """X402-10: prices are told from memory; one address gets no more than its share."""
    async with open_shop(PaidSettings(min_deposit=1, rate=20.0)) as shop, httpx.AsyncClient() as http:
        await http.post(shop.url + CHAT, content=chat())
        asked, fetched = shop.ledger.rpc.calls, len(shop.pair.proxy.gets)  # type: ignore[attr-defined]
        found = [(await http.post(shop.url + CHAT, content=chat())).status_code for _ in range(60)]
        assert set(found) == {402, 429}
        assert shop.ledger.rpc.calls == asked  # type: ignore[attr-defined]
        assert len(shop.pair.proxy.gets) - fetched <= found.count(402), "a directory, at most"
        assert shop.pair.workers[0].opened == []


# --- by hand ---


def _charge_of(answer: httpx.Response) -> str:
    return str(decode_payment_response_header(answer.headers["payment-response"]).extra["chargedAmount"])


def _payload(answer: httpx.Response) -> dict[str, Any]:
    return dict(json.loads(base64.b64decode(answer.request.headers["payment-signature"])))


def _with_voucher(value: dict[str, Any], voucher: SignedVoucher) -> dict[str, Any]:
    changed = copy.deepcopy(value)
    changed["payload"] = {
        "type": "voucher",
        "channelConfig": changed["payload"]["channelConfig"],
        "voucher": {
            "channelId": str(voucher.channel),
            "maxClaimableAmount": str(voucher.ceiling),
            "signature": "0x" + voucher.signature.hex(),
        },
    }
    return changed


async def _voucher_for(
    shop: Shop, key: SigningKey, http: httpx.AsyncClient, *, base: int = 0, deposit: bool = True
) -> dict[str, Any]:
    """The payload the package makes for the next request, from the base given."""
    refused = await http.post(shop.url + CHAT, content=chat())
    required = decode_payment_required_header(refused.headers["payment-required"])
    client, _ = shop.client(key, reads_chain=False)
    payload = (await client.create_payment_payload(required)).model_dump(by_alias=True, exclude_none=True)
    if deposit:
        return dict(payload)
    channel = Digest.parse(payload["payload"]["voucher"]["channelId"])
    ceiling = int(base) + int(required.accepts[0].amount)
    return _with_voucher(payload, sign_voucher(channel, ceiling, shop.till.book.domain, key))


async def _pay_by_hand(shop: Shop, key: SigningKey, http: httpx.AsyncClient) -> httpx.Response:
    """One paid answer, its deposit included."""
    value = await _voucher_for(shop, key, http)
    answer = await http.post(shop.url + CHAT, content=chat(), headers={"payment-signature": header(value)})
    assert answer.status_code == 200, answer.text
    return answer


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not true():  # noqa: ASYNC110 - what it waits for is a number in another object
            await asyncio.sleep(0.02)
