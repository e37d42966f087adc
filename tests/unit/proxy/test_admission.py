# SPDX-License-Identifier: Apache-2.0
"""Who may have a stream, and what those are told who may not (PROXY-1 .. PROXY-6, PAY-2 .. PAY-14)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import CLOCK, ProxyNet
from tests.unit.proxy.scripted import BareClient, Call, ScriptedWorker, answer

from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, ModelManifest
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.records import LinkType
from bombyx.roles.proxy.admission import Rates
from bombyx.roles.proxy.settings import Limits


async def refused(client: BareClient, worker: ScriptedWorker, **changes: Any) -> dict[str, Any]:
    got = await client.ask(worker, **changes)
    assert got.headers["Content-Type"] == "application/problem+json"
    return got.problem


async def test_strict_mode_takes_one_voucher_a_request(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PAY-14: stock x402, no session."""
    worker = await hire()
    for _ in range(3):
        assert (await client.ask(worker, strict=True)).status == 200


async def test_session_mode_signs_once_a_window(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PAY-9: requests in between carry a MAC alone."""
    worker = await hire()
    for number in range(5):
        sealed = client.seal([worker])
        payment = client.pay(sealed, [worker])
        assert (payment.voucher is None) is (number > 0)
        assert (await client.post(sealed.envelope(payment.encode()))).status == 200
        client.channel.confirm(payment)


async def test_a_request_without_money_behind_it_is_402(net: ProxyNet, hire: Hire) -> None:
    """PAY-2, PAY-4: an unknown channel, and a ceiling above the deposit."""
    worker = await hire()
    poor = await BareClient(net, "poor", deposit=0).start()
    poor.channel._backed = 10**9
    assert (await refused(poor, worker))["rule"] == "PAY-2"
    await net.ledger.deposit(poor.channel.config, type(poor.channel.agreed)(5), signer=poor.owner)
    problem = await refused(poor, worker)
    assert (problem["status"], problem["rule"], problem["fault"]) == (402, "PAY-4", "client")
    await poor.close()


async def test_a_top_up_is_seen_at_once(net: ProxyNet, hire: Hire) -> None:
    """PAY-4: a voucher above the deposit we remember makes us look again before we refuse."""
    worker = await hire()
    client = await BareClient(net, "grower", deposit=2_000).start()
    for _ in range(3):
        assert (await client.ask(worker)).status == 200
        await net.ledger.deposit(client.channel.config, type(client.channel.agreed)(200_000), signer=client.owner)
        view = await net.ledger.channel(client.channel.id)
        assert view is not None
        client.channel.observe(view)
    await client.close()


@pytest.mark.parametrize(
    ("part", "rule"),
    [("mac", "PAY-10"), ("cap", "PAY-5"), ("counter", "PAY-10"), ("voucher", "PAY-3"), ("grant", "PAY-11")],
)
async def test_a_tampered_payment_is_402(net: ProxyNet, client: BareClient, hire: Hire, part: str, rule: str) -> None:
    """PAY-3 .. PAY-11: every part of PAY is checked."""
    worker = await hire()
    sealed = client.seal([worker])
    payment = client.pay(sealed, [worker])
    assert payment.voucher is not None and payment.grant is not None
    changed = {
        "mac": {"mac": bytes(32)},
        "cap": {"cap": 1},
        "counter": {"counter": payment.counter + 1},
        "voucher": {"voucher": replace(payment.voucher, ceiling=payment.voucher.ceiling + 1)},
        "grant": {"grant": None},
    }[part]
    got = await client.post(sealed.envelope(replace(payment, **changed).encode()))  # type: ignore[arg-type]
    assert (got.status, got.problem["rule"]) == (402, rule)
    assert not worker.calls


async def test_a_request_id_is_served_once(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PAY-23: 409 while it runs and after it was settled."""
    ready = asyncio.Event()

    async def slow(call: Call) -> None:
        await ready.wait()
        await answer(call)

    worker = await hire("worker a", slow)
    sealed = client.seal([worker])

    def again() -> bytes:
        return sealed.envelope(client.pay(sealed, [worker]).encode())

    first = asyncio.ensure_future(client.post(again()))
    while not worker.calls:  # noqa: ASYNC110 - it happens in another role
        await asyncio.sleep(0.01)
    during = await client.post(again())
    ready.set()
    assert (await first).status == 200
    after = await client.post(again())
    for got in (during, after):
        assert (got.status, got.problem["code"]) == (409, "duplicate_request")
    assert len(worker.calls) == 1


async def test_a_replayed_envelope_is_refused(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PAY-10: byte for byte the same request is not paid for twice."""
    worker = await hire()
    sealed = client.seal([worker])
    envelope = sealed.envelope(client.pay(sealed, [worker]).encode())
    assert (await client.post(envelope)).status == 200
    assert (await client.post(envelope)).status in (402, 409)
    assert len(worker.calls) == 1


async def test_meta_that_does_not_fit_is_refused_with_its_reason(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PROXY-2, PROXY-3: other proxy, other prices, other commission, deadlines, unknown keys."""
    worker = await hire()
    now = CLOCK.now()
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"proxy": Address(bytes(20))}, 400, "bad_request"),
        ({"commission_bps": 100}, 409, "price_changed"),
        ({"price_sheets": (Digest(bytes(32)),)}, 409, "price_changed"),
        ({"deadline": now.plus(seconds=-1)}, 504, "deadline_exceeded"),
        ({"deadline": now.plus(seconds=1_000_000)}, 400, "bad_request"),
        ({"frame_size": 1}, 400, "bad_request"),
        ({"model": Digest(bytes(32))}, 503, "no_workers"),
        ({"v": 2}, 400, "bad_request"),
    ]
    for changes, status, code in cases:
        problem = await refused(client, worker, **changes)
        assert (problem["status"], problem["code"]) == (status, code), changes
    assert not worker.calls


async def test_unknown_keys_are_an_ohttp_key_problem_and_departed_workers_are_not(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """SEAL-10: "appraise again" is said only when that would help."""
    stranger = ScriptedWorker(net, "never linked")
    await stranger.prepare()
    problem = await refused(client, stranger)
    assert (problem["status"], problem["code"]) == (401, "ohttp_key")
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#ohttp-key"
    worker = await hire("worker b")
    await worker.stop()
    await asyncio.sleep(0.05)
    assert (await refused(client, worker))["code"] == "no_workers"


async def test_a_rotation_fails_no_request(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """ATT-1: requests sealed to the old keys are served through the overlap, new offers show the new ones."""
    worker = await hire()
    old = client.seal([worker])
    payment = client.pay(old, [worker])
    before = worker.period
    await worker.rotate()
    worker.hello()
    await asyncio.wait_for(worker.welcomes.get(), 5)
    assert (await client.ask(worker)).status == 200
    offers = (await client.directory()).offers
    assert [offer.candidates for offer in offers] == [worker.period.candidates]
    worker.keyring._periods.append(before)  # the script opens with the newest period in its list
    assert (await client.post(old.envelope(payment.encode()))).status == 200


@pytest.fixture
async def narrow(net: ProxyNet) -> ProxyNet:
    """A proxy with small limits."""
    await net.stop()
    net.change(limits=Limits(max_body=50_000, open_per_channel=2, open_total=3, rate_per_channel=4.0))
    await net.start()
    return net


async def test_limits_are_said_at_once_with_a_time_to_come_back(
    narrow: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """PROXY-4: open requests per channel, requests per second, requests in all, size."""
    ready = asyncio.Event()

    async def slow(call: Call) -> None:
        await ready.wait()
        await answer(call)

    worker = await hire("worker a", slow)
    running = [asyncio.ensure_future(client.ask(worker)) for _ in range(2)]
    while len(worker.calls) < 2:  # noqa: ASYNC110 - it happens in another role
        await asyncio.sleep(0.01)
    sealed = client.seal([worker])
    third = await client.post(sealed.envelope(client.pay(sealed, [worker]).encode()))
    assert (third.status, third.problem["code"]) == (429, "overloaded")
    assert int(third.headers["Retry-After"]) >= 1
    other = await BareClient(narrow, "another").start()
    running.append(asyncio.ensure_future(other.ask(worker)))
    while len(worker.calls) < 3:  # noqa: ASYNC110 - it happens in another role
        await asyncio.sleep(0.01)
    full = await other.post(sealed.envelope(b"not even read"))
    assert (full.status, full.problem["rule"]) == (503, "PROXY-4")
    ready.set()
    assert [got.status for got in await asyncio.gather(*running)] == [200, 200, 200]
    large = await client.post(b"x" * 60_000)
    assert (large.status, large.problem["fault"]) == (413, "client")
    await other.close()


async def test_more_requests_per_second_than_allowed_are_429(narrow: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PROXY-4: a burst of two seconds' worth, then the rate."""
    worker = await hire()
    statuses = [(await client.ask(worker)).status for _ in range(12)]
    assert statuses[:8] == [200] * 8
    assert statuses[-1] == 429


def test_a_bucket_fills_at_its_rate() -> None:
    """PROXY-4: and tells how long to wait."""
    rates, channel = Rates(2.0, 10), Digest(bytes(32))
    for _ in range(4):
        assert rates.wait(channel, 0.0) == 0.0
        rates.take(channel, 0.0)
    assert rates.wait(channel, 0.0) == pytest.approx(0.5)
    assert rates.wait(channel, 0.5) == 0.0
    for number in range(20):
        rates.take(sha256(bytes([number])), 1.0)
    assert len(rates._buckets) == 10


async def test_pages_tell_what_a_client_needs(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """MKT-9: directory, blobs by digest, info, channel, network, health, metrics."""
    worker = await hire()
    await client.ask(worker)
    (offer,) = (await client.directory()).offers
    assert offer.operator == worker.operator.address
    for digest, read in (
        (offer.bundle, EvidenceBundle),
        (offer.price_sheet, PriceSheet),
        (offer.models[0], ModelManifest),
    ):
        status, blob = await client.get(f"/v1/blob/{digest.hex()}")
        assert status == 200
        assert read.decode(blob).digest() == digest
    info = json.loads((await client.get("/v1/info"))[1])
    assert info["address"] == str(net.key.address)
    channel = json.loads((await client.get(f"/v1/channel/{client.channel.id.hex()}"))[1])
    assert channel["charged"] == client.channel.agreed
    network = json.loads((await client.get("/network"))[1])
    assert network["models"] == {"scripted": 1}
    assert network["trust_classes"] == ["simulated"]
    assert network["registered"] == {"proxies": 1, "workers": 1, "validators": 0}
    assert {"clients", "channels", "value_locked"} <= set(network)
    assert json.loads((await client.get("/healthz"))[1]) == {"ok": True, "open": 0}
    metrics = (await client.get("/metrics"))[1].decode()
    assert 'bombyx_proxy_requests_total{outcome="complete"} 1.0' in metrics
    for path in ("/v1/blob/00", f"/v1/blob/{bytes(32).hex()}", f"/v1/channel/{bytes(32).hex()}", "/v1/view/x", "/etc"):
        assert (await client.get(path))[0] == 404


async def test_methods_and_types_are_checked(net: ProxyNet, client: BareClient) -> None:
    """PROXY-1: POST /v1/blind takes sealed requests, the pages GET."""
    assert (await client.get("/v1/blind"))[0] == 405
    assert (await client.post(b"{}", content_type="application/json")).status == 415


async def test_a_drain_lets_answers_end_and_takes_nothing_new(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PROXY-6: workers are told, health turns, what runs is finished."""
    ready = asyncio.Event()

    async def slow(call: Call) -> None:
        await ready.wait()
        await answer(call)

    worker = await hire("worker a", slow)
    running = asyncio.ensure_future(client.ask(worker))
    while not worker.calls:  # noqa: ASYNC110 - it happens in another role
        await asyncio.sleep(0.01)
    draining = asyncio.ensure_future(net.proxy.drain())
    await asyncio.sleep(0.05)
    assert (await client.get("/healthz"))[0] == 503
    assert (await refused(client, worker))["status"] == 503
    ready.set()
    await draining
    assert (await running).status == 200
    assert bytes([LinkType.DRAIN]) in b"".join(worker.received)


@settings(max_examples=30)
@given(st.binary(max_size=300), st.integers(0, 2), st.data())
def test_no_envelope_hurts_the_proxy(noise: bytes, kind: int, data: st.DataObject) -> None:
    """PROXY-1: foreign bytes get a 4xx that blames the client, and nothing stays reserved."""

    async def work() -> None:
        net = ProxyNet()
        await net.start()
        client = await BareClient(net).start()
        worker = await ScriptedWorker(net, "worker a").start()
        sealed = client.seal([worker])
        good = sealed.envelope(client.pay(sealed, [worker]).encode())
        position = data.draw(st.integers(0, len(good) - 1))
        body = {0: noise, 1: good[:position], 2: good[:position] + noise + good[position + len(noise) :]}[kind]
        got = await client.post(body)
        if body != good and got.status == 200:
            assert worker.calls == [] or sealed.request_hash(sealed.meta.candidates[0]) == worker.calls[0].request_hash
        assert got.status == 200 or 400 <= got.status < 500 or got.status in (503, 504)
        assert not net.proxy._accounts.book.in_flight()
        await client.close()
        await worker.stop()
        await net.stop()

    asyncio.run(work())
