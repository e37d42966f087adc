# SPDX-License-Identifier: Apache-2.0
"""What passes through a proxy, and what happens when a worker or a client stops being well behaved (LINK, RCT, PAY)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import CLOCK, ProxyNet, key
from tests.unit.proxy.scripted import PRICE, BareClient, Call, ScriptedWorker, answer

from bombyx.ports import Write
from bombyx.protocol.pay.price import charge, with_commission
from bombyx.protocol.wire.receipt import Kind, Outcome
from bombyx.protocol.wire.records import LinkRefusal, LinkType, Record, ResponseHead
from bombyx.roles.proxy.holdings import RECEIPT

COST = charge(PRICE, 16, 0, 32)
HALF = charge(PRICE, 16, 0, 16)


def charged(net: ProxyNet, client: BareClient) -> int:
    return net.proxy._accounts.account(client.channel.id).charged


def _has_charged(net: ProxyNet, client: BareClient, amount: int) -> bool:
    return charged(net, client) == amount


def agreed(net: ProxyNet, worker: ScriptedWorker) -> int:
    """What the proxy agreed to pay this worker."""
    return sum(c.agreed for c in net.proxy._wallet._channels.values() if c.config.receiver == worker.operator.address)


async def _make_less_attractive(net: ProxyNet, worker: ScriptedWorker) -> None:
    """Busy, so that the other candidate is asked first."""
    worker.load(40, 0, 64)
    await _until(lambda: net.proxy.roster.workers[worker.operator.address].load.active == 40)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another role
            await asyncio.sleep(0.01)


async def test_an_answer_passes_byte_for_byte_and_both_hops_are_settled(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """LINK-3, PAY-8, PAY-17: DATA as sent, receipts once they are durable, END with the account; the commission is the
    difference."""
    worker = await hire()
    got = await client.ask(worker)
    assert (got.kinds[0], got.kinds[-2:]) == (Record.HEAD, [Record.RECEIPT, Record.END])
    assert Counter(got.kinds) == {Record.HEAD: 1, Record.DATA: 3, Record.RECEIPT: 2, Record.END: 1}
    assert ResponseHead.decode(got.payloads(Record.HEAD)[0]).candidate in worker.period.candidates
    settlement = got.settlement
    assert (settlement.worker_charge, settlement.charge) == (COST, with_commission(COST, 500))
    assert settlement.charged_total == charged(net, client) == settlement.charge
    assert agreed(net, worker) == COST
    assert net.proxy._accounts.account(client.channel.id).reserved == 0


async def test_a_client_sees_no_receipt_that_a_crash_could_make_the_proxy_forget(
    net: ProxyNet, client: BareClient, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAY-17: while the store is slow frames pass; the receipt waits for its row and leaves once that is written."""
    write, durable, order = net.store.write, asyncio.Event(), list[str]()

    async def slowly(rows: Sequence[Write]) -> None:
        if any(row.table == RECEIPT and row.value is not None for row in rows):
            await durable.wait()
            order.append("receipt written")
        await write(rows)

    async def checkpointed(call: Call) -> None:
        call.data()
        call.receipt(output_units=16)
        await asyncio.sleep(0.1)
        call.data()
        await asyncio.sleep(0.1)
        order.append("two frames sent")
        durable.set()
        await asyncio.sleep(0.1)
        call.data(final=True)
        call.finish()

    monkeypatch.setattr(net.store, "write", slowly)
    worker = await hire("worker a", checkpointed)
    got = await client.ask(worker)
    assert order == ["two frames sent", "receipt written"]
    data, receipt = Record.DATA, Record.RECEIPT
    assert got.kinds == [Record.HEAD, data, data, receipt, data, receipt, Record.END]


async def test_no_byte_of_the_payer_reaches_the_worker(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """SEAL-1: PAY is stripped: neither channel, payer, voucher, grant nor MAC is on the link."""
    worker = await hire()
    sealed = client.seal([worker])
    payment = client.pay(sealed, [worker])
    await client.post(sealed.envelope(payment.encode()))
    assert payment.voucher is not None and payment.grant is not None
    link = b"".join(worker.received)
    for secret in (
        client.channel.id,
        client.owner.address,
        payment.mac,
        payment.voucher.signature,
        payment.grant.sealed_key,
        payment.grant.key_hash,
    ):
        assert secret not in link
    assert sealed.body in link


async def test_a_refusal_moves_on_to_the_next_candidate(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """LINK-4: before the first frame a failure costs the client nothing but time."""

    async def refuse(call: Call) -> None:
        refusal = LinkRefusal(code="engine_unavailable", message="no engine", retry_after_ms=0)
        call.send(LinkType.REFUSE, refusal.encode())

    bad, good = await hire("worker a", refuse), await hire("worker b")
    await _make_less_attractive(net, good)
    for _ in range(6):
        got = await client.ask(bad, good)
        assert got.status == 200
        assert ResponseHead.decode(got.payloads(Record.HEAD)[0]).candidate in good.period.candidates
    assert agreed(net, bad) == 0
    assert 1 <= len(bad.calls) <= 4, "a worker that keeps failing is ejected"


async def test_a_worker_that_dies_before_the_first_frame_is_replaced(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """LINK-4: its link breaks; the next candidate answers."""

    async def die(call: Call) -> None:
        call.worker.link.cut()

    bad, good = await hire("worker a", die), await hire("worker b")
    await _make_less_attractive(net, good)
    sealed = client.seal([bad, good])
    got = await client.post(sealed.envelope(client.pay(sealed, [bad, good]).encode()))
    assert got.status == 200
    assert (len(bad.calls), len(good.calls)) == (1, 1)


async def test_who_was_full_when_the_request_came_may_take_it_over_when_it_is_idle_again(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """MKT-5, LINK-4: after a failure the rest is weighed anew, by the load of that moment."""

    async def die_later(call: Call) -> None:
        good.load(0, 0, 4)
        await _until(lambda: not net.proxy.roster.workers[good.operator.address].load.active)
        call.worker.link.cut()

    bad, good = await hire("worker a", die_later), await hire("worker b", capacity=4)
    good.load(4, 2, 4)
    await _until(lambda: net.proxy.roster.workers[good.operator.address].load.closed)
    assert (await client.ask(bad, good)).status == 200
    assert (len(bad.calls), len(good.calls)) == (1, 1)


async def test_a_hung_worker_is_left_after_a_while(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """LINK-4: silence before the first frame is a failure too; the worker is told to stop."""

    async def hang(call: Call) -> None:
        await asyncio.sleep(60)

    object.__setattr__(net.proxy.settings.timings, "first_frame", 0.2)
    bad, good = await hire("worker a", hang), await hire("worker b")
    await _make_less_attractive(net, good)
    for _ in range(2):
        assert (await client.ask(bad, good)).status == 200
    assert bad.calls
    assert all(call.cancelled.is_set() for call in bad.calls)


async def test_when_nobody_starts_the_client_is_told_and_nothing_is_charged(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """LINK-4: 503 with Retry-After; the same request may come again."""

    async def refuse(call: Call) -> None:
        refusal = LinkRefusal(code="overloaded", message="busy", retry_after_ms=3000)
        call.send(LinkType.REFUSE, refusal.encode())

    worker = await hire("worker a", refuse)
    sealed = client.seal([worker])
    got = await client.post(sealed.envelope(client.pay(sealed, [worker]).encode()))
    assert (got.status, got.headers["Retry-After"]) == (503, "3")
    assert charged(net, client) == 0
    worker.script = answer
    again = await client.post(sealed.envelope(client.pay(sealed, [worker]).encode()))
    assert again.status == 200


async def test_a_worker_that_dies_mid_stream_is_paid_to_its_last_checkpoint(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """RCT-3: the truncation shows (no final frame, a HINT), both hops are settled at the same receipt; no failover."""

    async def die(call: Call) -> None:
        call.data()
        call.receipt(output_units=16)
        call.data()
        await call.worker.link.drain()
        await asyncio.sleep(0.05)
        call.worker.link.cut()

    bad, good = await hire("worker a", die), await hire("worker b")
    got = await client.ask(bad)
    assert sorted(got.kinds[:4]) == [Record.HEAD, Record.DATA, Record.DATA, Record.RECEIPT]
    assert got.kinds[4:] == [Record.HINT, Record.END]
    assert got.hint["code"] == "stream_truncated"
    assert got.settlement.worker_charge == HALF
    assert agreed(net, bad) == HALF
    assert not good.calls


LIES: dict[str, dict[str, Any]] = {
    "signed_by_another_key": {"signer": key("somebody")},
    "more_units_than_the_cap": {"output_units": 2048, "charge": charge(PRICE, 16, 0, 2048)},
    "charge_above_the_price": {"charge": COST + 1},
    "for_another_request": {"request_id": b"another request!"},
    "another_model": {"model": key("a model").secret().reveal()},
    "more_frames_than_delivered": {"frames": 9},
    "other_frames_than_delivered": {"response_hash": key("frames").secret().reveal()},
    "not_linked_to_its_predecessor": {"previous": key("previous").secret().reveal()},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_false_receipt_is_paid_no_further_than_the_last_good_one(
    net: ProxyNet, client: BareClient, hire: Hire, lie: str
) -> None:
    """RCT-1 .. RCT-7: the stream stops, both hops settle at the last good checkpoint, the worker's standing falls."""

    async def lie_about_it(call: Call) -> None:
        call.data()
        call.receipt(output_units=16)
        call.data(final=True)
        changes = {
            name: type(getattr(call.last.receipt, name))(value) if name != "signer" and call.last else value
            for name, value in LIES[lie].items()
        }
        call.finish(**changes)

    worker = await hire("worker a", lie_about_it)
    got = await client.ask(worker)
    assert got.hint["code"] in ("receipt_mismatch", "equivocation")
    assert got.hint["fault"] == "worker"
    assert got.settlement.worker_charge == HALF
    assert agreed(net, worker) == HALF
    stats = net.proxy.roster.workers[worker.operator.address].stats
    assert stats.failures_in_row == 1


async def test_an_end_without_a_final_receipt_is_a_cut(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """RCT-8: no receipt, no payment."""

    async def unsigned(call: Call) -> None:
        call.data(final=True)
        call.send(LinkType.END)

    worker = await hire("worker a", unsigned)
    got = await client.ask(worker)
    assert got.kinds[-2:] == [Record.HINT, Record.END]
    assert got.settlement.charge == 0
    assert agreed(net, worker) == 0


async def test_two_finals_are_an_equivocation_and_the_first_stands(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """RCT-10: the second final is proof against the worker."""

    async def twice(call: Call) -> None:
        call.data(final=True)
        call.receipt(Kind.FINAL, Outcome.COMPLETE)
        call.receipt(Kind.FINAL, Outcome.COMPLETE, output_units=16)
        call.send(LinkType.END)

    worker = await hire("worker a", twice)
    got = await client.ask(worker)
    assert got.hint["code"] == "equivocation"
    assert got.settlement.worker_charge == COST


async def test_a_client_that_goes_cancels_the_worker_within_50_ms(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """LINK-4: and is charged what was delivered and receipted, once."""
    delays: list[float] = []
    left_at = 0.0

    async def slow(call: Call) -> None:
        call.data()
        call.receipt(output_units=16)
        await call.cancelled.wait()
        delays.append(asyncio.get_running_loop().time() - left_at)
        call.finish(Outcome.CANCELLED, output_units=16)

    worker = await hire("worker a", slow)
    for round_ in range(1, 4):
        sealed = client.seal([worker])
        payment = client.pay(sealed, [worker])
        async with client.opened(sealed.envelope(payment.encode())) as response:
            await response.content.readany()
            left_at = asyncio.get_running_loop().time()
            response.close()
        client.channel.confirm(payment)
        await _until(partial(_has_charged, net, client, round_ * with_commission(HALF, 500)))
    assert max(delays) < 0.05
    assert agreed(net, worker) == 3 * HALF


async def test_a_client_that_goes_before_the_first_frame_pays_nothing(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """LINK-4: the worker is cancelled, the reservation released, nobody else is tried."""

    async def slow(call: Call) -> None:
        await call.cancelled.wait()
        call.finish(Outcome.CANCELLED, output_units=0, input_units=0, charge=0)

    first, second = await hire("worker a", slow), await hire("worker b", slow)
    sealed = client.seal([first, second])
    posting = asyncio.ensure_future(client.post(sealed.envelope(client.pay(sealed, [first, second]).encode())))
    await _until(lambda: first.calls or second.calls)
    posting.cancel()
    await asyncio.gather(posting, return_exceptions=True)
    await _until(lambda: not net.proxy._accounts.account(client.channel.id).in_flight)
    assert charged(net, client) == 0
    assert len(first.calls) + len(second.calls) == 1


async def test_a_deadline_stops_the_answer_and_says_so(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """LINK-4: the worker is cancelled; what it delivered till then is receipted, forwarded and charged."""

    async def endless(call: Call) -> None:
        while not call.cancelled.is_set():
            call.data()
            await asyncio.sleep(0.02)
        call.finish(Outcome.CANCELLED)

    worker = await hire("worker a", endless)
    got = await client.ask(worker, deadline=CLOCK.now().plus(seconds=0.5))
    assert got.settlement.worker_charge == COST
    assert len(got.payloads(Record.DATA)) == worker.calls[0].sealer.chain.frames


async def test_a_slow_client_stops_its_worker_and_nobody_else(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """LINK-5: credit runs out, memory stays bounded, another stream of the same link is not delayed."""
    frame = b"x" * 8000

    async def script(call: Call) -> None:
        if call.meta.max_output != 1024:  # the large one
            for _ in range(1500):
                while call.credit < 9000 and not call.cancelled.is_set():  # noqa: ASYNC110 - a script, not a server
                    await asyncio.sleep(0.005)
                if call.cancelled.is_set():
                    break
                call.data(frame)
                if len(call.worker.calls) == 1:
                    await asyncio.sleep(0)
        call.data(b"the end", final=True)
        call.finish()

    worker = await hire("worker a", script)
    sealed = client.seal([worker], max_output=2048)
    payment = client.pay(sealed, [worker])
    async with client.opened(sealed.envelope(payment.encode())) as response:
        await asyncio.sleep(0.5)
        stalled = worker.calls[0].sealer.chain.frames
        assert stalled < 1500, "the kernel's buffers and the credit bound what a worker sends ahead"
        started = asyncio.get_running_loop().time()
        assert (await client.ask(worker)).status == 200
        assert asyncio.get_running_loop().time() - started < 0.3
        buffered = max(c.transport.get_write_buffer_size() for c in net.server.connections)
        assert buffered < 2 * net.proxy.settings.stream_window + 262_144
        assert len(await response.read()) > 1500 * 8000
    assert worker.calls[0].sealer.chain.frames == 1501


async def test_data_beyond_the_credit_is_the_workers_fault(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """LINK-5: a worker cannot fill the proxy's memory."""

    async def flood(call: Call) -> None:
        for _ in range(100):
            call.data(b"x" * 100_000)

    worker = await hire("worker a", flood)
    got = await client.ask(worker)
    assert got.hint["rule"] == "LINK-5"
    assert got.settlement.charge == 0


async def test_a_worker_that_forgot_our_session_gets_a_fresh_one(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """PAY-11: a restarted enclave refuses with the rule's name; the proxy opens a session and tries once more."""

    async def forgetful(call: Call) -> None:
        payment = call.request.payment
        if len(call.worker.calls) in (1, 2) or (payment is not None and payment.grant is not None):
            await answer(call)
        else:
            refusal = LinkRefusal(code="payment_required", message="PAY-11: no session is open", retry_after_ms=0)
            call.send(LinkType.REFUSE, refusal.encode())

    worker = await hire("worker a", forgetful)
    for _ in range(3):
        assert (await client.ask(worker)).status == 200
    assert len(worker.calls) == 4


async def test_the_view_of_a_request_shows_sizes_and_ciphertext_only(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """PROXY-7: what the proxy saw."""
    worker = await hire()
    sealed = client.seal([worker], body=b"a prompt that nobody may read")
    await client.post(sealed.envelope(client.pay(sealed, [worker]).encode()))
    status, raw = await client.get(f"/v1/view/{sealed.meta.request_id.hex()}")
    view = json.loads(raw)
    assert status == 200
    assert view["sent"]["ciphertext_start"] == sealed.body[:32].hex()
    assert view["answer"]["frames"] == 3
    assert view["answer"]["outcome"] == "complete"
    assert view["booked"]["worker_charge"] == COST
    seen = b"".join(data for _, _, data in net.saw)
    assert b"a prompt that nobody" not in seen
    assert b"the end" not in seen
