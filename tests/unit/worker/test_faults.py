# SPDX-License-Identifier: Apache-2.0
"""Engines that crash, hang, speak nonsense or too much; clients that leave or do not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import pytest
from tests.unit.worker.rig import CLOCK, Rig, chat, running

from bombyx.adapters.engine_scripted import Fault, Script
from bombyx.errors import EngineUnavailable
from bombyx.ports import EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest, EngineUsage
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.request import Shape
from bombyx.roles.worker import Limits


async def still_serves(rig: Rig) -> None:
    rig.scripted.script = Script()
    assert (await rig.proxy.ask(chat()).done()).complete


# --- engine faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.GARBAGE, Fault.HANG])
async def test_a_fault_before_the_first_word_is_a_sealed_502_for_nothing(fault: Fault, stream: bool) -> None:
    """WRK-5: the application reads an OpenAI-shaped error; nobody pays."""
    async with running(Script(fault=fault, fault_after=0, idle_timeout=0.05)) as rig:
        reply = await rig.proxy.ask(chat(stream=stream), shape=Shape.CONSTANT).done()
        assert reply.status == 502 and reply.complete and reply.json["error"]["code"] == "engine_unavailable"
        assert reply.final.outcome is Outcome.FAILED and reply.final.charge == 0
        await still_serves(rig)


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.GARBAGE, Fault.HANG])
async def test_a_fault_in_the_middle_bills_what_was_delivered(fault: Fault) -> None:
    """WRK-5, RCT-9: the stream ends with an error event and a final frame, and the bill stops there."""
    script = Script(words=60, fault=fault, fault_after=20, idle_timeout=0.05, seconds_per_token=0.002)
    async with running(script) as rig:
        reply = await rig.proxy.ask(chat()).done()
        assert reply.complete and reply.status == 200 and reply.events[-1]["error"]["code"] == "engine_unavailable"
        assert b"[DONE]" not in reply.body
        assert reply.final.outcome is Outcome.FAILED and reply.final.output_units == 32
        assert reply.usage is not None and reply.usage.output == 20
        await still_serves(rig)


async def test_a_fault_in_the_middle_of_a_whole_answer_costs_nothing() -> None:
    """RCT-9: nothing was delivered, so nothing is billed."""
    async with running(Script(words=60, fault=Fault.CRASH, fault_after=20)) as rig:
        reply = await rig.proxy.ask(chat(stream=False)).done()
        assert reply.status == 502 and reply.final.charge == 0 and reply.final.outcome is Outcome.FAILED


class OddEngine:
    """An engine that breaks its port's promises as a test says."""

    def __init__(self, events: Callable[[EngineRequest], list[EngineEvent]], *, alive: bool = True) -> None:
        self.events = events
        self.alive = alive

    async def models(self) -> tuple[str, ...]:
        if not self.alive:
            raise EngineUnavailable("gone")
        return ("scripted",)

    async def run(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        for event in self.events(request):
            yield event
            await asyncio.sleep(0)

    async def close(self) -> None:
        return None


HEAD = EngineHead(status=200, content_type="text/event-stream")


def _usage(output: int, ids: tuple[tuple[int, ...], ...] | None) -> EngineUsage:
    return EngineUsage(input=10, cached_input=0, output=output, ids=ids, finish=("stop",), verified=True, note="")


def _words(count: int) -> list[EngineEvent]:
    return [EngineChunk(data=b"data: {}\n\n", ids=((0, (300,)),), input=10) for _ in range(count)]


@pytest.mark.parametrize(
    "events",
    [
        [],
        [EngineEnd(usage=_usage(0, ()))],
        [EngineHead(status=500, content_type="text/plain"), EngineChunk(data=b"oops")],
        [EngineHead(status=302, content_type="text/plain")],
        [EngineHead(status=200, content_type="application/json"), EngineChunk(data=b"{}")],
        [EngineHead(status=200, content_type="application/json"), HEAD],
    ],
)
async def test_an_engine_that_breaks_its_promises_is_a_502(events: list[EngineEvent]) -> None:
    """WRK-5: garbage in any order is an engine's fault, sealed, free of charge."""
    async with running(engine=OddEngine(lambda _: events)) as rig:
        reply = await rig.proxy.ask(chat()).done()
        assert reply.status == 502 and reply.final.charge == 0 and reply.final.outcome is Outcome.FAILED


async def test_an_engine_that_talks_past_the_cap_is_stopped_there() -> None:
    """WRK-4: nothing above what was paid for leaves, and nothing above it is billed."""
    engine = OddEngine(lambda _: [HEAD, *_words(100), EngineEnd(usage=_usage(100, ((300,) * 100,)))])
    async with running(engine=engine) as rig:
        reply = await rig.proxy.ask(chat(), max_output=32).done()
        assert reply.complete and reply.final.outcome is Outcome.FAILED
        assert reply.final.output_units == 32 and reply.body.count(b"data: {}") == 32


async def test_an_engine_that_overcounts_is_billed_by_its_ids() -> None:
    """RCT-6: the count and the ids differ, so the ids are billed and the usage is not called verified."""
    engine = OddEngine(lambda _: [HEAD, *_words(5), EngineEnd(usage=_usage(50, ((300,) * 5,)))])
    async with running(engine=engine) as rig:
        reply = await rig.proxy.ask(chat()).done()
        assert reply.final.output_units == 16 and reply.usage is not None
        assert reply.usage.output == 5 and not reply.usage.verified


async def test_a_bug_in_the_worker_is_a_sealed_500_that_tells_nothing() -> None:
    """WRK-5: an exception nobody foresaw may hold content; only that it happened is told."""

    def broken(_: EngineRequest) -> list[EngineEvent]:
        raise RuntimeError("the prompt was: secret")

    async with running(engine=OddEngine(broken)) as rig:
        reply = await rig.proxy.ask(chat()).done()
        assert reply.status == 500 and b"secret" not in reply.body and reply.final.charge == 0


async def test_a_dead_engine_is_refused_at_once_until_it_is_back() -> None:
    """WRK-5: after one failure new requests are refused outside the seal, so that a proxy takes another worker."""
    engine = OddEngine(lambda _: [], alive=False)
    async with running(engine=engine) as rig:
        assert (await rig.proxy.ask(chat()).done()).status == 502
        await asyncio.sleep(0.02)
        refusal = (await rig.proxy.ask(chat()).done()).refusal
        assert refusal is not None and refusal.code == "engine_unavailable"
        engine.alive = True
        await asyncio.sleep(0.15)
        engine.events = lambda _: [HEAD, *_words(2), EngineEnd(usage=_usage(2, ((300, 300),)))]
        assert (await rig.proxy.ask(chat()).done()).status == 200


async def test_the_deadline_ends_a_slow_engine() -> None:
    """WRK-6: by the monotonic clock; what was delivered is billed, the rest is cut with a sealed error."""
    async with running(Script(words=1000, seconds_per_token=0.01)) as rig:
        before = time.monotonic()
        reply = await rig.proxy.ask(chat(), deadline=CLOCK.now().plus(seconds=0.4), max_output=2048).done()
        assert time.monotonic() - before < 1.0
        assert reply.events[-1]["error"]["code"] == "deadline_exceeded" and reply.final.outcome is Outcome.FAILED
        assert rig.scripted.running == 0


# --- clients that leave or do not read -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [Shape.CONSTANT, Shape.OFF])
async def test_a_cancel_stops_the_engine_within_50_ms(shape: Shape) -> None:
    """LINK-4: with a final receipt for the frames handed to the link, and no more."""
    took = []
    async with running(Script(words=2000, seconds_per_token=0.005)) as rig:
        for number in range(3):  # the quickest counts: a busy machine's pauses are not the worker's
            flow = rig.proxy.ask(chat(), shape=shape, max_output=4096)
            await flow.first_frame.wait()
            await asyncio.sleep(0.2)
            flow.cancel()
            before = time.monotonic()
            reply = await flow.done()
            took.append(time.monotonic() - before)
            assert rig.scripted.running == 0 and rig.scripted.cancelled == number + 1
            final = reply.final
            assert final.outcome is Outcome.CANCELLED and final.frames == len(reply.frames) and not reply.complete
            assert 0 < final.output_units <= 16 * 8 and final.charge > 0
    assert min(took) < 0.05


async def test_a_cancel_before_the_first_frame_costs_nothing() -> None:
    """LINK-4, RCT-9: nothing was delivered."""
    async with running(Script(words=20, seconds_per_token=0.2)) as rig:
        flow = rig.proxy.ask(chat())
        await asyncio.sleep(0.05)
        flow.cancel()
        reply = await flow.done()
        assert reply.final.outcome is Outcome.CANCELLED and reply.final.frames == 0 and reply.final.charge == 0


async def test_a_cancel_in_the_queue_frees_the_place() -> None:
    """LINK-4: whoever waits can leave."""
    async with running(Script(words=50, seconds_per_token=0.01), limits=Limits(capacity=1, queue=4)) as rig:
        first, second = rig.proxy.ask(chat("1")), rig.proxy.ask(chat("2"))
        await first.first_frame.wait()
        second.cancel()
        assert (await second.done(0.2)).final.charge == 0
        assert (await first.done()).complete and len(rig.scripted.requests) == 1


async def test_a_client_that_does_not_read_costs_no_memory() -> None:
    """LINK-3: without credit nothing leaves, the engine is paused, and other streams go on."""

    async def endless(request: EngineRequest) -> AsyncIterator[EngineEvent]:
        yield HEAD
        for _ in range(1 << 20):
            produced.append(1)
            yield EngineChunk(data=b"data: " + b"x" * 1000 + b"\n\n", input=10)
            await asyncio.sleep(0)

    produced: list[int] = []
    engine = OddEngine(lambda _: [])
    engine.run = endless  # type: ignore[assignment,method-assign]
    async with running(engine=engine, limits=Limits(backlog=64 << 10)) as rig:
        flow = rig.proxy.ask(chat(), slow=True)
        await flow.first_frame.wait()
        await asyncio.sleep(0.3)
        made = len(produced)
        assert sum(map(len, flow.reply.frames)) <= rig.proxy.window
        assert made * 1000 < rig.proxy.window + (64 << 10) + 10_000
        flow.cancel()
        assert (await flow.done()).final.outcome is Outcome.CANCELLED


async def test_a_slow_client_gets_everything_when_it_reads_again() -> None:
    """LINK-3: credit is granted late, the answer is whole."""
    async with running(Script(words=400)) as rig:
        rig.proxy.window = 1 << 15
        flow = rig.proxy.ask(chat(), slow=True, shape=Shape.BUCKET, frame_size=256, max_output=512)
        await flow.first_frame.wait()
        await asyncio.sleep(0.1)
        flow.slow = False
        flow.grant(1 << 20)
        reply = await flow.done()
        assert reply.complete and len(reply.events) == 402
