# SPDX-License-Identifier: Apache-2.0
"""Model servers that break: each way ends in the error that says whose fault it is, and never in half an answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from tests.unit.engines.fake_server import FakeServer

from bombyx.adapters.engine_dialect import Dialect
from bombyx.adapters.engine_openai import OpenAIEngine
from bombyx.compose.external import external
from bombyx.config import WorkerConfig
from bombyx.errors import BadRequest, ConfigError, DeadlineExceeded, EngineUnavailable
from bombyx.ports import EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest

CHAT = "/v1/chat/completions"


def asking(*, stream: bool, deadline: float = 20.0, path: str = CHAT, **body: Any) -> EngineRequest:
    said = {"messages": [{"role": "user", "content": "hi"}]} | body | ({"stream": True} if stream else {})
    return EngineRequest(
        path=path,
        body=json.dumps(said).encode(),
        stream=stream,
        cache_salt=b"salt of this conversation",
        max_output=100,
        deadline_seconds=deadline,
    )


async def collect(events: AsyncGenerator[EngineEvent, None]) -> list[EngineEvent]:
    return [event async for event in events]


async def run(server: FakeServer, request: EngineRequest, *, idle: float = 5.0) -> list[EngineEvent]:
    engine = OpenAIEngine(server.url, dialect=Dialect.VLLM, idle_timeout=idle)
    try:
        return await collect(engine.run(request))
    finally:
        await engine.close()


@pytest.mark.parametrize("wrong", ["crash", "garbage", "error", "huge", "torn", "no end", "strange choice"])
async def test_a_broken_stream_is_the_engines_fault(wrong: str) -> None:
    async with FakeServer(wrong=wrong) as server:
        with pytest.raises(EngineUnavailable) as caught:
            await run(server, asking(stream=True))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["garbage", "huge"])
async def test_a_broken_body_is_the_engines_fault(wrong: str) -> None:
    async with FakeServer(wrong=wrong) as server:
        with pytest.raises(EngineUnavailable):
            await run(server, asking(stream=False))


async def test_an_engine_that_only_pings_hangs() -> None:
    async with FakeServer(wrong="hang") as server:
        with pytest.raises(EngineUnavailable, match="hung"):
            await run(server, asking(stream=True), idle=0.4)


async def test_the_deadline_counts_even_while_tokens_come() -> None:
    async with FakeServer(pause=0.05) as server:
        with pytest.raises(DeadlineExceeded):
            await run(server, asking(stream=True, deadline=0.3), idle=5.0)


@pytest.mark.parametrize("status", [500, 502, 503, 401, 403, 429])
async def test_an_engine_that_refuses_for_its_own_reasons_is_unavailable(status: int) -> None:
    async with FakeServer(status=status) as server:
        with pytest.raises(EngineUnavailable):
            await run(server, asking(stream=False))


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_refusal_of_the_request_is_passed_on(status: int) -> None:
    async with FakeServer(status=status) as server:
        head, chunk, end = await run(server, asking(stream=True))
    assert isinstance(head, EngineHead)
    assert isinstance(chunk, EngineChunk)
    assert isinstance(end, EngineEnd)
    assert (head.status, json.loads(chunk.data)["error"]["code"], end.usage.output) == (status, status, 0)


async def test_no_server_at_all_is_unavailable() -> None:
    async with FakeServer() as server:
        url = server.url
    engine = OpenAIEngine(url)
    with pytest.raises(EngineUnavailable):
        await collect(engine.run(asking(stream=False)))
    with pytest.raises(EngineUnavailable):
        await engine.models()
    await engine.close()


async def test_a_count_that_does_not_fit_the_ids_is_said() -> None:
    """RCT-6: billed is what the ids show."""
    async with FakeServer(wrong="count") as server:
        *_, end = await run(server, asking(stream=True, max_tokens=6))
    assert isinstance(end, EngineEnd)
    assert not end.usage.verified
    assert end.usage.output == 6
    assert "11" in end.usage.note


async def test_closing_a_run_reaches_the_server() -> None:
    async with FakeServer(pause=0.05) as server:
        engine = OpenAIEngine(server.url)
        async with aclosing(engine.run(asking(stream=True))) as events:
            async for event in events:
                if isinstance(event, EngineChunk):
                    break
        async with asyncio.timeout(2):
            await server.idle.wait()
        await engine.close()


async def test_unknown_fields_pass_through_both_ways() -> None:
    fields: dict[str, Any] = {
        "tools": [{"type": "function"}],
        "seed": 7,
        "x_new": {"a": [1, None]},
        "response_format": {"type": "text"},
    }
    async with FakeServer(extra={"x_answer": "kept"}) as server:
        head, chunk, end = await run(server, asking(stream=False, **fields))
        [seen] = server.seen
    assert {name: seen[name] for name in fields} == fields
    assert isinstance(chunk, EngineChunk)
    assert json.loads(chunk.data)["x_answer"] == "kept"


async def test_ids_the_application_asked_for_stay() -> None:
    async with FakeServer() as server:
        _, chunk, _ = await run(server, asking(stream=False, return_token_ids=True))
    assert isinstance(chunk, EngineChunk)
    assert json.loads(chunk.data)["choices"][0]["token_ids"]


async def test_the_conversation_isolates_the_engines_cache() -> None:
    """SEAL-3: the application cannot name another conversation's cache."""
    async with FakeServer() as server:
        await run(server, asking(stream=False, cache_salt="mine", kv_transfer_params={"remote": 1}))
        [seen] = server.seen
    assert seen["cache_salt"] == "c2FsdCBvZiB0aGlzIGNvbnZlcnNhdGlvbg=="
    assert "kv_transfer_params" not in seen


async def test_embeddings_have_input_and_no_output() -> None:
    async with FakeServer() as server:
        _, _, end = await run(server, asking(stream=False, path="/v1/embeddings", input="sea"))
    assert isinstance(end, EngineEnd)
    assert (end.usage.input, end.usage.output, end.usage.verified) == (3, 0, True)


@pytest.mark.parametrize(
    "body",
    [{"n": 0}, {"n": 129}, {"n": 101}, {"max_tokens": "many"}, {"max_tokens": True}, {"n": 1.5}],
)
async def test_a_request_nobody_could_serve_is_refused_before_it_is_sent(body: dict[str, Any]) -> None:
    async with FakeServer() as server:
        with pytest.raises(BadRequest):
            await run(server, asking(stream=False, **body))
        assert not server.seen


async def test_a_stream_asked_for_as_a_whole_is_refused() -> None:
    request = asking(stream=True)
    engine = OpenAIEngine("http://127.0.0.1:1")
    with pytest.raises(BadRequest):
        await collect(engine.run(dataclasses.replace(request, stream=False)))


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "https://api.example.com", "http://127.0.0.1.evil.example"])
def test_an_engine_elsewhere_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(ConfigError):
        OpenAIEngine(url)


def test_an_engine_elsewhere_must_be_called_unsafe() -> None:
    OpenAIEngine("http://engine:8000", unsafe_allow_remote=True)


@pytest.mark.parametrize(
    ("owner", "dialect"),
    [
        ("vllm", Dialect.VLLM),
        ("llamacpp", Dialect.LLAMA_CPP),
        ("sglang", Dialect.SGLANG),
        ("library", Dialect.PLAIN),  # Ollama
        (None, Dialect.PLAIN),
        (7, Dialect.PLAIN),
    ],
)
async def test_an_engine_is_spoken_to_as_what_it_says_it_is(owner: object, dialect: Dialect) -> None:
    """WRK-4: ids are asked for where the engine gives them, without anybody naming it."""
    async with FakeServer(owner=owner) as server:
        engine = OpenAIEngine(server.url)
        assert await engine.detect() is dialect
        assert await engine.models() == ("fake",)
        await engine.close()


async def test_a_worker_finds_the_dialect_of_its_engine_out() -> None:
    """WRK-4: `bombyx worker --engine URL`; what is told wins over what is found."""
    async with FakeServer(owner="vllm") as server:
        for dialect, engine in (("auto", "external (vllm)"), ("plain", "external (plain)")):
            model = await external(WorkerConfig(engine=server.url, dialect=dialect))
            assert model.manifest.engine == engine
            await model.engine.close()
