# SPDX-License-Identifier: Apache-2.0
"""Honest answers: what an application gets, what is checked, what is kept and paid."""

from __future__ import annotations

import json

from tests.unit.client.pair import BPS, MODEL, TEXT, Pair, chat, make_pair

from bombyx.protocol.wire.request import Shape


async def test_an_answer_comes_back_checked_and_paid(pair: Pair) -> None:
    """CLI-5: the end of an unstreamed answer is the end of its checks."""
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    body = json.loads(await response.read())
    assert response.status == 200, body
    assert body["choices"][0]["message"]["content"] == TEXT
    assert response.headers["x-bombyx-trust-class"] == "simulated"
    receipt = await response.receipt()
    assert receipt is not None
    assert (receipt["outcome"], receipt["text"], receipt["output_units"]) == ("complete", "equal", 16)
    assert receipt["charge"] == 16 and receipt["paid"] == -(-16 * (10_000 + BPS) // 10_000)
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.agreed == receipt["paid"] and not channel.in_flight


async def test_a_stream_ends_after_its_checks(pair: Pair) -> None:
    """CLI-5: `[DONE]` passes at once, the body ends when the receipt is checked."""
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    body = await response.read()
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == TEXT
    assert body.rstrip().endswith(b"data: [DONE]")
    receipt = await response.receipt()
    assert receipt is not None and receipt["receipts"] == 2


async def test_constant_shape_is_read_unchanged() -> None:
    """SEAL-8: filler between events is nothing to an SSE parser, and nothing to the text check."""
    pair = await make_pair(shape=Shape.CONSTANT)
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    body = await response.read()
    receipt = await response.receipt()
    assert b"[DONE]" in body and receipt is not None and receipt["text"] == "equal"


async def test_the_body_reaches_the_worker_byte_for_byte(pair: Pair) -> None:
    """CLI-3: nothing of the application's body is rewritten; its headers stay here."""
    from bombyx.protocol.seal.bhttp import decode_request

    body = b'{ "model":"tiny",  "max_tokens":7, "messages":[{"role":"user","content":"x"}], "odd": 1e3 }'
    await pair.client.request("POST", "/v1/chat/completions", {"authorization": "Bearer secret"}, body)
    opened = next(worker.opened[0] for worker in pair.workers if worker.opened)
    inner = decode_request(opened.bhttp)
    assert inner.content == body
    assert {name for name, _ in inner.headers} == {
        b"content-type",
        b"bombyx-nonce",
        b"bombyx-cache-salt",
        b"bombyx-claimant",
    }


async def test_a_conversation_keeps_its_salt_and_shares_it_with_no_other(pair: Pair) -> None:
    """CLI-3: fresh per conversation and process."""
    from bombyx.protocol.seal.bhttp import decode_request

    first = [{"role": "user", "content": "one"}]
    later = [*first, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "two"}]
    other = [{"role": "user", "content": "three"}]
    for messages in (first, later, other):
        await pair.client.request("POST", "/v1/chat/completions", {}, chat(messages=messages))
    await pair.restarted()
    await pair.client.request("POST", "/v1/chat/completions", {}, chat(messages=first))
    opened = [request for worker in pair.workers for request in worker.opened]
    order = {seen.meta.request_id: place for place, seen in enumerate(pair.proxy.seen)}
    opened.sort(key=lambda request: order[request.meta.request_id])
    salts = [dict(decode_request(request.bhttp).headers)[b"bombyx-cache-salt"] for request in opened]
    assert salts[0] == salts[1] and len(set(salts)) == 3


async def test_models_are_answered_here(pair: Pair) -> None:
    """CLI-1: names come from manifests fetched by digest."""
    response = await pair.client.request("GET", "/v1/models")
    listed = json.loads(await response.read())["data"]
    assert [(card["id"], card["bombyx"]["workers"]) for card in listed] == [(MODEL, 3)]
    assert (await pair.client.request("GET", f"/v1/models/{MODEL}")).status == 200
    assert (await pair.client.request("GET", "/v1/models/none")).status == 404
    assert not pair.proxy.seen


async def test_a_refusal_of_the_engine_passes_and_costs_nothing(pair: Pair) -> None:
    """RCT-9: a sealed 400 is the worker's answer to the application."""
    for worker in pair.workers:
        worker.script.status, worker.script.body = 400, b'{"error":{"message":"no"}}'
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert (response.status, await response.read()) == (400, b'{"error":{"message":"no"}}')
    receipt = await response.receipt()
    assert receipt is not None and (receipt["charge"], receipt["paid"]) == (0, 0)


async def test_an_engine_without_ids_is_marked(pair: Pair) -> None:
    """RCT-6: usage that the enclave could not verify says so."""
    for worker in pair.workers:
        worker.script.verified = False
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    receipt = await response.receipt()
    assert receipt is not None and receipt["text"].startswith("unchecked: usage unverified")


async def test_vouchers_are_signed_once_a_window(pair: Pair) -> None:
    """PAY-9: grant and voucher travel once; later requests carry a MAC."""
    for _ in range(3):
        assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    payments = [seen.payment for seen in pair.proxy.seen]
    assert [p.counter for p in payments] == [1, 2, 3]
    assert payments[0].grant is not None and payments[0].voucher is not None
    assert all(p.grant is None and p.voucher is None for p in payments[1:])
