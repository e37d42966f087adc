# SPDX-License-Identifier: Apache-2.0
"""The scripted engine follows its script: other tests stand on that."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from bombyx.adapters.engine_scripted import TOKENS, Fault, Script, ScriptedEngine
from bombyx.errors import EngineUnavailable
from bombyx.ports import EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest


def asking(*, stream: bool = True) -> EngineRequest:
    body = {"messages": [], "stream": stream}
    return EngineRequest(
        path="/v1/chat/completions",
        body=json.dumps(body).encode(),
        stream=stream,
        cache_salt=bytes(32),
        max_output=100,
        deadline_seconds=10.0,
    )


async def collect(engine: ScriptedEngine, request: EngineRequest) -> list[EngineEvent]:
    return [event async for event in engine.run(request)]


async def test_the_same_request_gets_the_same_answer() -> None:
    assert await collect(ScriptedEngine(), asking()) == await collect(ScriptedEngine(), asking())


@pytest.mark.parametrize("stream", [True, False])
async def test_it_says_what_the_script_says(stream: bool) -> None:
    """RCT-6: in letters outside ASCII too, which take several ids each."""
    engine = ScriptedEngine(Script(reply=lambda asked: "the silk moth \U0001f41b gr\u00fc\u00dft"))
    *_, end = await collect(engine, asking(stream=stream))
    assert isinstance(end, EngineEnd)
    assert end.usage.ids is not None
    assert TOKENS.matches("the silk moth \U0001f41b gr\u00fc\u00dft", end.usage.ids[0], "stop")


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.GARBAGE, Fault.HANG])
async def test_a_fault_comes_after_its_tokens(fault: Fault) -> None:
    engine = ScriptedEngine(Script(fault=fault, fault_after=2, idle_timeout=0.01))
    events = engine.run(asking())
    before = [await anext(events) for _ in range(3)]
    assert [type(event) for event in before] == [EngineHead, EngineChunk, EngineChunk]
    with pytest.raises(EngineUnavailable):
        await anext(events)
    assert (engine.running, engine.cancelled) == (0, 0)


async def test_an_engine_without_ids_says_so() -> None:
    *_, end = await collect(ScriptedEngine(Script(ids=False)), asking())
    assert isinstance(end, EngineEnd)
    assert (end.usage.ids, end.usage.verified, end.usage.output) == (None, False, 25)


async def test_a_wrong_count_is_not_verified() -> None:
    *_, end = await collect(ScriptedEngine(Script(count_error=2)), asking())
    assert isinstance(end, EngineEnd)
    assert (end.usage.verified, end.usage.output) == (False, 25)


async def test_a_closed_run_is_counted() -> None:
    engine = ScriptedEngine()
    async with aclosing(engine.run(asking())) as events:
        await anext(events)
    assert (engine.running, engine.cancelled) == (0, 1)
