# SPDX-License-Identifier: Apache-2.0
"""What a worker does not do: every refusal, by whom it is caused and how it travels."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.unit.worker.rig import CHAT, CLOCK, ENTROPY, QUICK, Reply, Rig, chat, inner, running

from bombyx.adapters.engine_scripted import Script
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal import Request
from bombyx.protocol.seal.fields import NONCE_FIELD
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.records import LinkType, WorkerRequest
from bombyx.roles.worker import Limits, Price


def refused(reply: Reply, code: str, rule: str) -> None:
    assert reply.refusal is not None and not reply.frames and not reply.receipts
    assert (reply.refusal.code, reply.refusal.message.partition(":")[0]) == (code, rule), reply.refusal


async def owes_nothing(rig: Rig) -> None:
    """The worker holds no reservation, and the next honest request is served."""
    assert not rig.book.in_flight()
    reply = await rig.proxy.ask(chat()).done()
    assert reply.complete


# --- refused outside the seal: nothing was opened --------------------------------------------------------------------


async def test_an_unpaid_request_is_not_opened() -> None:
    """PAY-5: no payment, no work."""
    async with running() as rig:
        refused(await rig.proxy.ask(chat(), free=True).done(), "payment_required", "PAY-5")
        assert not rig.scripted.requests
        await owes_nothing(rig)


async def test_a_payment_below_the_cap_is_refused() -> None:
    """PAY-5: the cap must cover what Meta allows."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        refused(await rig.proxy.send_sealed(sealed, payment=rig.proxy.pay(sealed, sealed.wraps, cap=1)).done(),
                "payment_required", "PAY-5")  # fmt: skip
        await owes_nothing(rig)


async def test_a_payment_for_another_body_is_refused() -> None:
    """PAY-10: the MAC covers the bytes that came with it."""
    async with running() as rig:
        one, other = rig.proxy.seal(chat("one")), rig.proxy.seal(chat("other"))
        refused(await rig.proxy.send_sealed(one, payment=rig.proxy.pay(other, other.wraps)).done(),
                "payment_required", "PAY-10")  # fmt: skip


async def test_a_payment_on_an_unknown_channel_is_refused() -> None:
    """PAY-2: the chain must know the channel."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        payment = replace(rig.proxy.pay(sealed, sealed.wraps), channel=Digest(ENTROPY.bytes(32)))
        refused(await rig.proxy.send_sealed(sealed, payment=payment).done(), "payment_required", "PAY-2")


async def test_a_refused_payment_does_not_burn_the_envelope() -> None:
    """PAY-11: payment is looked at before the seal, so the same bytes may come again with a better one."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        assert (await rig.proxy.send_sealed(sealed, free=True).done()).refusal is not None
        assert (await rig.proxy.send_sealed(sealed).done()).complete


async def test_another_price_sheet_is_refused() -> None:
    """PAY-12: the client agreed to a price that is not ours."""
    async with running() as rig:
        reply = await rig.proxy.ask(chat(), price_sheets=(Digest(bytes(32)),)).done()
        refused(reply, "payment_required", "PAY-12")


async def test_a_key_that_is_not_held_asks_for_a_new_appraisal() -> None:
    """SEAL-10: `ohttp_key`, so that the client appraises again and comes back."""
    async with running() as rig, running() as other:
        other.proxy.hellos.append(rig.proxy.hellos[0])  # so the double seals to the wrong worker
        sealed = other.proxy.seal(chat())
        refused(await other.proxy.send_sealed(sealed).done(), "ohttp_key", "SEAL-10")


async def test_a_replayed_envelope_is_refused() -> None:
    """SEAL-6: once opened, never again; and a finished id is not served anew, whatever it is sealed in."""
    async with running(price=Price(input=0, cached_input=0, output=0)) as rig:
        sealed = rig.proxy.seal(chat())
        assert (await rig.proxy.send_sealed(sealed, free=True).done()).complete
        refused(await rig.proxy.send_sealed(sealed, free=True).done(), "replayed", "SEAL-6")
        anew = rig.proxy.seal(chat(), sealed.meta)
        refused(await rig.proxy.send_sealed(anew, free=True).done(), "replayed", "SEAL-6")
        assert len(rig.scripted.requests) == 1


async def test_a_settled_request_is_not_charged_again() -> None:
    """PAY-23: the book knows it before the seal does."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        assert (await rig.proxy.send_sealed(sealed).done()).complete
        refused(await rig.proxy.send_sealed(sealed).done(), "payment_required", "PAY-23")


async def test_a_request_under_way_is_not_started_twice() -> None:
    """SEAL-6: one id, one answer at a time."""
    async with running(Script(words=40, seconds_per_token=0.01)) as rig:
        first = rig.proxy.seal(chat())
        flow = rig.proxy.send_sealed(first)
        await flow.first_frame.wait()
        refused(await rig.proxy.send_sealed(rig.proxy.seal(chat(), first.meta)).done(), "replayed", "SEAL-6")
        assert (await flow.done()).complete


async def test_a_body_changed_on_the_way_is_refused() -> None:
    """SEAL-4: the wrap names the body, so a proxy cannot touch it even if it pays for it."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        body = sealed.body[:-1] + bytes([sealed.body[-1] ^ 1])
        forged = replace(sealed, body=body)
        refused(await rig.proxy.send_sealed(forged).done(), "seal_error", "SEAL-4")
        await owes_nothing(rig)


async def test_caps_changed_on_the_way_are_refused() -> None:
    """SEAL-2: Meta is bound by the wrap."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        meta = replace(sealed.meta, max_output=sealed.meta.max_output + 16)
        forged = replace(sealed, meta=meta, meta_bytes=meta.encode())
        refused(await rig.proxy.send_sealed(forged).done(), "seal_error", "SEAL-2")


async def test_a_request_for_another_proxy_is_refused() -> None:
    """SEAL-5: the proxy is the one this link was opened with."""
    async with running() as rig:
        refused(await rig.proxy.ask(chat(), proxy=Address(bytes(20))).done(), "seal_error", "SEAL-5")


async def test_a_late_request_is_refused() -> None:
    """WRK-6: nothing is opened after its deadline."""
    async with running() as rig:
        late = CLOCK.now().plus(seconds=-1)
        refused(await rig.proxy.ask(chat(), deadline=late).done(), "deadline_exceeded", "WRK-6")


async def test_an_unknown_model_is_refused() -> None:
    """WRK-2: models are named by their digest."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat(), rig.proxy.meta())
        meta = replace(sealed.meta, model=Digest(bytes(32)))
        forged = replace(sealed, meta=meta, meta_bytes=meta.encode())
        flow = rig.proxy.send_sealed(sealed, change=lambda request: replace(request, meta=forged.meta_bytes))
        reply = await flow.done()
        assert reply.refusal is not None and reply.refusal.code == "unknown_model"


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 40, b"\xd9\x69\x9b\xa0"])
async def test_garbage_is_refused_and_the_link_stands(garbage: bytes) -> None:
    """LINK-6: a request that is not one is its sender's fault; other requests do not notice."""
    async with running() as rig:
        flow = rig.proxy.send_sealed(rig.proxy.seal(chat()), change=lambda request: _Raw(garbage))  # type: ignore[arg-type,return-value]
        reply = await flow.done()
        assert reply.refusal is not None and reply.refusal.code == "malformed_message"
        await owes_nothing(rig)


class _Raw:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def encode(self) -> bytes:
        return self.data


async def test_more_than_capacity_waits_and_more_than_the_queue_is_told_when_to_come_back() -> None:
    """LINK-5: refused before anything is opened or paid."""
    async with running(Script(words=30, seconds_per_token=0.01), limits=Limits(capacity=1, queue=1)) as rig:
        flows = [rig.proxy.ask(chat(str(number))) for number in range(3)]
        replies = await asyncio.gather(*(flow.done() for flow in flows))
        assert [reply.complete for reply in replies] == [True, True, False]
        refusal = replies[2].refusal
        assert refusal is not None and refusal.code == "overloaded" and refusal.retry_after_ms > 0
        assert max(load.active for load in rig.proxy.loads) == 1
        assert max(load.active + load.queued for load in rig.proxy.loads) == 2


async def test_an_upload_beyond_the_bound_is_refused_before_it_is_kept() -> None:
    """LINK-3: memory for unfinished requests has one bound."""
    async with running(limits=Limits(uploads=2048)) as rig:
        reply = await rig.proxy.ask(chat("x" * 8000)).done()
        assert reply.refusal is not None and reply.refusal.code == "overloaded"
        assert rig.worker._uploads.held == 0


async def test_an_upload_that_stops_in_its_middle_is_dropped() -> None:
    """LINK-3: whoever holds memory must keep sending."""
    async with running(timings=replace(QUICK, upload_stall=0.1)) as rig:
        flow = rig.proxy.send_sealed(rig.proxy.seal(chat()), half=True)
        reply = await flow.done(2)
        assert reply.refusal is not None and rig.worker._uploads.held == 0
        await owes_nothing(rig)


# --- refused inside the seal: only the client can read why -----------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (inner("/v1/audio/speech", {}), 404, "not_found"),
        (inner("/v1/chat/completions?x=1", {}), 404, "not_found"),
        (inner(CHAT, {}, method="GET"), 405, "method_not_allowed"),
        (inner("/v1/models", b"", method="POST"), 405, "method_not_allowed"),
        (inner(CHAT, b"{"), 400, "invalid_json"),
        (inner(CHAT, b"[]"), 400, "invalid_json"),
        (chat(model="another"), 400, "wrong_model"),
        (inner(CHAT, {"model": "scripted", "stream": "yes"}), 400, "invalid_parameter"),
        (chat().__class__(method=b"POST", path=CHAT.encode(), content=chat().content), 400, "bad_request"),
        (inner(CHAT, {"model": "scripted"}, headers=((NONCE_FIELD, b"00"),)), 400, "bad_request"),
    ],
)
async def test_what_may_not_run_is_refused_inside_the_seal(request_: Request, status: int, code: str) -> None:
    """WRK-1, WRK-2, WRK-3: OpenAI-shaped, with its status, for nothing; the proxy sees only that it was refused."""
    async with running() as rig:
        reply = await rig.proxy.ask(request_).done()
        assert reply.complete and reply.status == status and reply.json["error"]["code"] == code
        assert reply.final.outcome is Outcome.REFUSED and reply.final.charge == 0
        assert not rig.scripted.requests


async def test_an_engine_4xx_passes_through_and_costs_nothing() -> None:
    """WRK-5: the application's fault, in the engine's words."""
    async with running() as rig:
        reply = await rig.proxy.ask(inner(CHAT, {"model": "scripted"})).done()
        assert reply.status == 400 and reply.final.outcome is Outcome.REFUSED and reply.final.charge == 0


async def test_more_input_than_was_paid_for_is_refused_inside_the_seal() -> None:
    """WRK-4: the engine's own count of the input is held against Meta's cap before a word leaves."""
    for stream in (True, False):
        async with running(price=Price(input=1_000_000, cached_input=1, output=1_000_000)) as rig:
            reply = await rig.proxy.ask(chat("word " * 200, stream=stream), max_input=32).done()
            assert reply.status == 400 and reply.json["error"]["code"] == "context_length_exceeded"
            assert reply.final.outcome is Outcome.REFUSED and reply.final.charge == 0


async def test_an_answer_to_a_free_model_needs_no_payment() -> None:
    """PAY-5: a price of nothing asks for nothing."""
    async with running(price=Price(input=0, cached_input=0, output=0), funded=False) as rig:
        await asyncio.wait_for(rig.worker.ready.wait(), 5)
        reply = await rig.proxy.ask(chat(), free=True).done()
        assert reply.complete and reply.final.charge == 0 and reply.final.output_units > 0


def test_a_request_message_is_bounded() -> None:
    """LINK-3."""
    assert WorkerRequest.MAX_SIZE <= 40 << 20


@pytest.mark.parametrize("payload", [b"", bytes(31), bytes(32), bytes(32 * 65)])
async def test_a_proxy_is_given_no_blob_that_was_not_offered(payload: bytes) -> None:
    """LINK-7: a WANT names what the HELLO offered, or the link ends and is dialled again."""
    async with running() as rig:
        before = rig.proxy.challenge
        rig.proxy.greeted.clear()
        rig.proxy.send(LinkType.WANT, 0, payload)
        await asyncio.wait_for(rig.proxy.greeted.wait(), 5)
        assert rig.proxy.challenge != before
