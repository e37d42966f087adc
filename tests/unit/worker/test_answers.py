# SPDX-License-Identifier: Apache-2.0
"""A worker answers over its link: the whole way, with a receipt that checks at every step."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.worker.rig import COMPLETIONS, EMBEDDINGS, chat, inner, running

from bombyx.adapters.engine_scripted import Script
from bombyx.protocol.pay.price import charge, units
from bombyx.protocol.pay.usage import open_usage
from bombyx.protocol.wire.receipt import Kind, Outcome
from bombyx.protocol.wire.request import Shape


async def test_a_streamed_chat_is_answered_receipted_and_paid() -> None:
    """RCT-4, RCT-6: what is billed is what the opened ids count, rounded to the grain."""
    async with running(Script(words=30)) as rig:
        reply = await rig.proxy.ask(chat()).done()
        assert reply.status == 200 and reply.complete and reply.ended
        assert reply.body.endswith(b"data: [DONE]\n\n") and reply.text
        final, usage = reply.final, reply.usage
        assert final.kind is Kind.FINAL and final.outcome is Outcome.COMPLETE and usage is not None
        assert usage.verified and sum(len(choice.ids) for choice in usage.choices) == usage.output == 31
        assert final.output_units == units(31, 16) == 32
        assert final.charge == charge(rig.price, final.input_units, final.cached_units, 32) > 0


async def test_the_first_receipt_travels_with_the_first_frame() -> None:
    """RCT-7: checkpoint 0 bills the input, later ones what had left by then, and seq counts up by one."""
    async with running(Script(words=200, seconds_per_token=0.001)) as rig:
        reply = await rig.proxy.ask(chat()).done()
        first = reply.receipts[0].receipt
        assert first.kind is Kind.CHECKPOINT and first.frames == 1 and first.input_units > 0
        assert [one.receipt.frames for one in reply.receipts[1:-1]] == list(range(64, len(reply.frames), 64))
        assert [one.receipt.seq for one in reply.receipts] == list(range(1, len(reply.receipts) + 1))


@pytest.mark.parametrize("shape", [Shape.CONSTANT, Shape.BUCKET, Shape.OFF])
async def test_every_shape_carries_the_same_bytes(shape: Shape) -> None:
    """SEAL-8: the shape changes frames, not the answer."""
    async with running(Script(words=5)) as rig:
        reply = await rig.proxy.ask(chat(), shape=shape).done()
        assert reply.complete and len(reply.events) == 7 and reply.body.count(b"[DONE]") == 1


async def test_constant_frames_are_equal_and_never_early() -> None:
    """SEAL-8: one frame of one size each 40 ms, whatever the engine's rhythm."""
    async with running(Script(words=20, seconds_per_token=0.02)) as rig:
        reply = await rig.proxy.ask(chat(), shape=Shape.CONSTANT).done()
        sizes = {len(frame) for frame in reply.frames[1:]}
        gaps = [later - reply.times[0] for later in reply.times]
        assert len(sizes) == 1 and len(reply.frames) >= 8
        assert all(gap >= number * 0.040 - 0.020 for number, gap in enumerate(gaps))


async def test_a_whole_answer_is_one_padded_body() -> None:
    """SEAL-8: what is not streamed leaves at once, and is billed like the rest."""
    async with running(Script(words=12)) as rig:
        reply = await rig.proxy.ask(chat(stream=False), shape=Shape.CONSTANT).done()
        assert reply.json["choices"][0]["message"]["content"] and reply.final.outcome is Outcome.COMPLETE
        assert reply.final.output_units == 16 and reply.usage is not None and reply.usage.output == 13


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, {"prompt": "once"}), (EMBEDDINGS, {"input": "a word"})])
async def test_the_other_paths_answer(path: str, body: dict[str, str]) -> None:
    """WRK-1: completions and embeddings, billed by the same meter."""
    async with running() as rig:
        reply = await rig.proxy.ask(inner(path, {"model": "scripted", **body})).done()
        assert reply.status == 200 and reply.final.outcome is Outcome.COMPLETE and reply.final.charge > 0


async def test_the_models_are_listed_free_of_charge() -> None:
    """WRK-1: looking at the models reaches no engine and costs nothing."""
    async with running() as rig:
        flow = rig.proxy.ask(inner("/v1/models", b"", method="GET", headers=()), max_input=0, max_output=0, free=True)
        reply = await flow.done()
        assert [model["id"] for model in reply.json["data"]] == ["scripted"]
        assert reply.final.charge == 0 and not rig.scripted.requests


async def test_the_usage_opening_is_what_the_receipt_commits_to() -> None:
    """RCT-6: under the salt of the chosen wrap, and under no other."""
    async with running() as rig:
        sealed = rig.proxy.seal(chat())
        reply = await rig.proxy.send_sealed(sealed).done()
        salt, usage = sealed.keys[0].salt, reply.usage
        assert usage is not None
        assert open_usage(reply.final, salt=salt, opening=usage.encode(), grain=16) == usage


async def test_an_engine_without_ids_is_marked_unverified() -> None:
    """RCT-6: its count is billed and the client is told that nobody checked it."""
    async with running(Script(words=20, ids=False)) as rig:
        reply = await rig.proxy.ask(chat()).done()
        usage = reply.usage
        assert usage is not None and not usage.verified and usage.note.startswith("usage unverified")
        assert usage.choices == () and reply.final.output_units == units(usage.output, 16) > 0


async def test_the_engine_gets_the_salt_the_cap_and_the_untouched_body() -> None:
    """WRK-3, WRK-4: nothing of the request is changed on its way to the engine port."""
    async with running() as rig:
        request = chat(temperature=0.5, tools=[{"type": "function", "function": {"name": "f"}}])
        await rig.proxy.ask(request, max_output=64).done()
        (got,) = rig.scripted.requests
        assert got.body == request.content and got.cache_salt == b"\xab" * 32 and got.max_output == 64
        assert 0 < got.deadline_seconds <= 30


async def test_many_streams_share_one_link() -> None:
    """LINK-3: answers interleave; the receipts' count has no gap and no double."""
    async with running(Script(words=40, seconds_per_token=0.002)) as rig:
        flows = [rig.proxy.ask(chat(str(number))) for number in range(8)]
        replies = await asyncio.gather(*(flow.done() for flow in flows))
        assert all(reply.complete for reply in replies)
        seqs = sorted(one.receipt.seq for reply in replies for one in reply.receipts)
        assert seqs == list(range(1, len(seqs) + 1))


async def test_the_evidence_convinces_a_client() -> None:
    """ATT-2, ATT-6: the bundle of the hello passes every step of the appraisal, as `simulated`."""
    async with running() as rig:
        result = rig.appraise()
        assert result.trust_class == "simulated" and result.keyset == rig.worker.keyset
        assert result.keyset.operator == rig.operator.address
