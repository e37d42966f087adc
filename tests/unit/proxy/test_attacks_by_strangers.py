# SPDX-License-Identifier: Apache-2.0
"""Somebody who knows a channel's id and no key of it, and a worker whose refusals are written for a log."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import ENTROPY, ProxyNet
from tests.unit.proxy.scripted import BareClient, Call

from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.records import LinkRefusal, LinkType
from bombyx.protocol.wire.request import Meta, Payment
from bombyx.protocol.wire.varint import write_varint
from bombyx.roles.proxy.settings import Limits


async def test_a_stranger_does_not_use_up_a_channels_rate(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PROXY-4: channel ids stand on the chain; requests that name one without its keys cost it nothing."""
    assert net.settings is not None
    await net.stop()
    net.change(limits=replace(net.settings.limits, rate_per_channel=2.0))
    await net.start()
    worker = await hire()
    assert (await client.ask(worker)).status == 200
    stranger = await BareClient(net, "stranger").start()
    for _ in range(20):
        sealed = stranger.seal([worker])
        payment = replace(stranger.pay(sealed, [worker]), channel=client.channel.id, voucher=None, grant=None)
        refused = await stranger.post(sealed.envelope(payment.encode()))
        assert refused.status == 402, refused.problem
    assert (await client.ask(worker)).status == 200
    await stranger.close()


async def test_a_payment_for_one_request_does_not_pay_for_another(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """PAY-10: a MAC speaks for one Meta and one body; swapped under another it is no payment, whoever swaps."""
    worker = await hire()
    paid, other = client.seal([worker]), client.seal([worker], body=b"other words")
    payment = client.pay(paid, [worker])
    answer = await client.post(other.envelope(payment.encode()))
    assert answer.status == 402, answer.problem
    mixed = _with_meta(paid.envelope(payment.encode()), payment, paid.meta, replace(paid.meta, max_output=16))
    answer = await client.post(mixed)
    assert answer.status == 402, answer.problem
    assert not worker.calls
    assert net.proxy._accounts.account(client.channel.id).charged == 0


@pytest.mark.parametrize(
    ("attack", "changes"),
    [
        ("nobody", {"candidates": (), "price_sheets": ()}),
        ("the_same_twice", "twice"),
        ("more_than_eight", "nine"),
        ("fewer_sheets_than_candidates", {"price_sheets": ()}),
        ("caps_beyond_any_number", {"max_output": 2**63}),
        ("frames_no_worker_serves", {"frame_size": 16_401}),
        ("a_deadline_of_next_year", {"deadline": 2**52}),
    ],
)
async def test_a_crooked_meta_reserves_nothing(
    net: ProxyNet, client: BareClient, hire: Hire, attack: str, changes: Any
) -> None:
    """SEAL-1, PROXY-2: refused by layout alone, before payment is looked at."""
    worker = await hire()
    sealed = client.seal([worker])
    payment = client.pay(sealed, [worker])
    if changes == "twice":
        changes = {"candidates": sealed.meta.candidates * 2, "price_sheets": sealed.meta.price_sheets * 2}
    elif changes == "nine":
        made = tuple(Digest(bytes([n]) * 32) for n in range(9))
        changes = {"candidates": made, "price_sheets": made}
    meta = replace(sealed.meta, **changes)
    answer = await client.post(_with_meta(sealed.envelope(payment.encode()), payment, sealed.meta, meta))
    assert answer.status == 400, (attack, answer.problem)
    assert net.proxy._accounts.open_of(client.channel.id) == 0 and not worker.calls


def _with_meta(envelope: bytes, payment: Payment, old: Meta, new: Meta) -> bytes:
    head = write_varint(len(payment.encode())) + payment.encode()
    before = write_varint(len(old.encode())) + old.encode()
    assert envelope.startswith(head + before)
    return head + write_varint(len(new.encode())) + new.encode() + envelope[len(head + before) :]


async def test_a_refusal_written_for_the_log_stays_out_of_it(
    net: ProxyNet, client: BareClient, hire: Hire, caplog: pytest.LogCaptureFixture
) -> None:
    """LINK-4, PROXY-7: a worker's code is a short word or unreadable; nobody forges lines of a log or of a problem."""
    forged = "x\n2026-01-01 INFO bombyx.proxy: request paid\x1b[2J<script>"

    async def refuse(call: Call) -> None:
        refusal = LinkRefusal(code=forged[:1000], message=forged, retry_after_ms=0)
        call.send(LinkType.REFUSE, refusal.encode())

    worker = await hire(script=refuse)
    with caplog.at_level(logging.DEBUG):
        answer = await client.ask(worker)
    assert answer.status == 503 and "unreadable" in str(answer.problem)
    assert "request paid" not in str(answer.problem) and "request paid" not in caplog.text
    status, view = await client.get("/metrics")
    assert status == 200 and b"request paid" not in view


async def test_a_flood_of_unknown_channels_is_bounded(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PROXY-4: counters and views are kept for a bounded number of channels, and strangers leave none behind."""
    worker = await hire()
    assert Limits().channels == 100_000
    for _ in range(30):
        sealed = client.seal([worker])
        payment = replace(client.pay(sealed, [worker]), channel=Digest(ENTROPY.bytes(32)))
        client.channel.release(sealed.meta.request_id)
        assert (await client.post(sealed.envelope(payment.encode()))).status in (402, 429)
    assert not net.proxy._accounts._views and not net.proxy._front._admission._rates._buckets  # type: ignore[union-attr]


async def test_receipts_of_answers_that_never_began_do_not_pile_up(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """PAY-17: a worker that signs finals for nothing leaves nothing in the proxy's store; nor do good answers."""

    async def nothing(call: Call) -> None:
        call.finish(Outcome.FAILED, output_units=0, input_units=0)

    bad, good = await hire("worker a", nothing), await hire("worker b")
    assert (await client.ask(bad)).status == 503
    assert (await client.ask(good)).status == 200
    await net.proxy._scribe.write("proxy_receipt")
    assert await net.store.scan("proxy_receipt") == []
