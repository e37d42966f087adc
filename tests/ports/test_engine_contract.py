# SPDX-License-Identifier: Apache-2.0
"""What every `ports.Engine` promises, asked of each: scripted, HTTP servers with and without ids, llama.cpp itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_asyncio
from tests.unit.engines.fake_server import FakeServer

from bombyx.adapters import engine_scripted
from bombyx.adapters.engine_auditable import AuditableEngine
from bombyx.adapters.engine_dialect import Dialect
from bombyx.adapters.engine_embedded import EmbeddedEngine, EmbeddedOptions
from bombyx.adapters.engine_openai import OpenAIEngine
from bombyx.adapters.engine_scripted import Script, ScriptedEngine
from bombyx.adapters.gguf import find_packaged_model, read_gguf
from bombyx.errors import BadRequest, ConfigError, DeadlineExceeded
from bombyx.ports import Engine, EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest, EngineUsage
from bombyx.protocol.wire.tokens import TokenTable

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SLOW = 0.02  # seconds per token of the engines that can be told


@dataclass(frozen=True)
class Subject:
    name: str
    engine: Engine
    table: TokenTable
    gives_ids: bool


@dataclass(frozen=True)
class Answer:
    head: EngineHead
    chunks: tuple[EngineChunk, ...]
    usage: EngineUsage

    @property
    def data(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)

    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects of a stream, or the one of a whole answer."""
        if not self.head.content_type.startswith("text/event-stream"):
            return [json.loads(self.data)]
        lines = [line[6:] for line in self.data.split(b"\n\n") if line.startswith(b"data: {")]
        return [json.loads(line) for line in lines]

    def text(self, choice: int = 0) -> str:
        parts = [c for o in self.objects() for c in o["choices"] if c["index"] == choice]
        said = [(c.get("delta") or c.get("message") or {}).get("content") or c.get("text") for c in parts]
        return "".join(part for part in said if part)


@pytest_asyncio.fixture(
    params=["scripted", "vllm", "plain", "llama.cpp", "auditable"], scope="module", loop_scope="module"
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    words = engine_scripted.TOKENS
    if request.param == "scripted":
        yield Subject("scripted", ScriptedEngine(Script(seconds_per_token=SLOW)), words, True)
    elif request.param in ("llama.cpp", "auditable"):
        try:
            path = find_packaged_model()
        except ConfigError:
            pytest.skip("the embedded model is not installed")
        options = EmbeddedOptions(model=path, name="smollm2", parallel=2, context=1024)
        engine = EmbeddedEngine(options) if request.param == "llama.cpp" else AuditableEngine(options)
        yield Subject(request.param, engine, read_gguf(path).tokens, True)
        await engine.close()
        assert engine.pid is None
    else:
        dialect = Dialect(request.param)
        async with FakeServer(with_ids=dialect is Dialect.VLLM, pause=SLOW) as server:
            http = OpenAIEngine(server.url, dialect=dialect)
            yield Subject(request.param, http, words, dialect is Dialect.VLLM)
            await http.close()


def asking(
    path: str = CHAT, *, stream: bool, max_output: int = 64, deadline: float = 60.0, **body: Any
) -> EngineRequest:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me about the sea."}]}
    if path == COMPLETIONS:
        said = {"prompt": "The sea is"}
    said |= {"max_tokens": 10, "temperature": 0} | body
    if stream:
        said["stream"] = True
    data = json.dumps(said).encode()
    return EngineRequest(
        path=path, body=data, stream=stream, cache_salt=b"s" * 32, max_output=max_output, deadline_seconds=deadline
    )


def running(subject: Subject, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
    return cast(AsyncGenerator[EngineEvent, None], subject.engine.run(request))


async def ask(subject: Subject, request: EngineRequest) -> Answer:
    events = [event async for event in running(subject, request)]
    head, *chunks, end = events
    assert isinstance(head, EngineHead)
    assert isinstance(end, EngineEnd)
    assert all(isinstance(chunk, EngineChunk) for chunk in chunks), "one head, then chunks, then one end"
    return Answer(head, cast(tuple[EngineChunk, ...], tuple(chunks)), end.usage)


async def test_it_names_its_models(subject: Subject) -> None:
    assert len(await subject.engine.models()) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_an_answer_says_its_text_its_ids_and_its_usage(subject: Subject, path: str, stream: bool) -> None:
    """RCT-6: the text is that of the ids, and as many are billed as there are."""
    answer = await ask(subject, asking(path, stream=stream))
    assert answer.head.status == 200
    assert answer.usage.input > 0
    assert answer.usage.output == 10
    assert answer.usage.finish == ("length",)
    assert answer.usage.verified is subject.gives_ids, answer.usage.note
    if subject.gives_ids:
        assert answer.usage.ids is not None
        assert subject.table.matches(answer.text(), answer.usage.ids[0], "length")
    else:
        assert answer.usage.ids is None
        assert "unverified" in answer.usage.note


@pytest.mark.parametrize("stream", [True, False])
async def test_the_chunks_ids_are_the_ids_of_the_end(subject: Subject, stream: bool) -> None:
    answer = await ask(subject, asking(stream=stream, n=2, max_tokens=6))
    told: dict[int, list[int]] = {}
    for chunk in answer.chunks:
        for choice, ids in chunk.ids:
            told.setdefault(choice, []).extend(ids)
    if answer.usage.ids is not None:
        assert [tuple(told[choice]) for choice in range(2)] == list(answer.usage.ids)
    assert len(answer.usage.finish) == 2


async def test_a_stream_is_whole_events_and_ends(subject: Subject) -> None:
    answer = await ask(subject, asking(stream=True))
    assert answer.head.content_type == "text/event-stream"
    assert all(chunk.data.endswith(b"\n\n") for chunk in answer.chunks if chunk.data)
    assert answer.data.endswith(b"data: [DONE]\n\n")
    assert answer.data.count(b"[DONE]") == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_nothing_is_left_of_what_was_added_to_the_request(subject: Subject, path: str, stream: bool) -> None:
    answer = await ask(subject, asking(path, stream=stream))
    for value in answer.objects():
        assert not {"__verbose", "prompt_token_ids"} & value.keys()
        assert value["choices"], "the usage event was not asked for"
        assert not stream or value.get("usage") is None
        for choice in value["choices"]:
            assert choice.get("logprobs") is None
            assert "token_ids" not in choice
    spoken = [value for value in answer.objects() if not value["choices"][0]["finish_reason"]]
    assert not any("timings" in value for value in spoken)


async def test_input_is_told_before_the_end_where_it_is_known(subject: Subject) -> None:
    """RCT-2: checkpoints bill input too."""
    answer = await ask(subject, asking(stream=True))
    told = [chunk.input for chunk in answer.chunks if chunk.input is not None]
    assert set(told) <= {answer.usage.input}
    if subject.name in ("scripted", "llama.cpp", "auditable"):
        assert len(told) >= 10


async def test_usage_that_was_asked_for_arrives(subject: Subject) -> None:
    answer = await ask(subject, asking(stream=True, stream_options={"include_usage": True}))
    usage = answer.objects()[-1]["usage"]
    assert usage["completion_tokens"] == answer.usage.output
    assert usage["prompt_tokens"] == answer.usage.input


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "limits", [{}, {"max_tokens": None}, {"max_tokens": -1}, {"max_tokens": 900}, {"max_completion_tokens": 900}]
)
async def test_no_request_gets_more_output_than_is_paid_for(
    subject: Subject, stream: bool, limits: dict[str, Any]
) -> None:
    """RCT-6: `max_output` is the most there is, whatever the request says."""
    answer = await ask(subject, asking(stream=stream, max_output=4, n_predict=50, **limits))
    assert 0 < answer.usage.output <= 4


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_application_did_wrong_it_is_told(subject: Subject, stream: bool) -> None:
    answer = await ask(subject, asking(stream=stream, messages="not a list"))
    assert answer.head.status == 400
    assert "error" in json.loads(answer.data)
    assert answer.usage.output == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_the_applications_fault(subject: Subject, body: bytes) -> None:
    request = EngineRequest(
        path=CHAT, body=body, stream=False, cache_salt=bytes(32), max_output=4, deadline_seconds=5.0
    )
    with pytest.raises(BadRequest):
        await ask(subject, request)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_deadline_ends_an_answer(subject: Subject, stream: bool) -> None:
    request = asking(stream=stream, max_tokens=400, max_output=400, deadline=0.05, ignore_eos=True)
    with pytest.raises(DeadlineExceeded):
        await ask(subject, request)


async def test_closing_a_run_frees_the_engine(subject: Subject) -> None:
    """Two runs are cut short after their first words; the engine, which has two slots, serves others at once."""
    for _ in range(2):
        request = asking(stream=True, max_tokens=900, max_output=900, ignore_eos=True)
        async with aclosing(running(subject, request)) as events:
            async for event in events:
                if isinstance(event, EngineChunk) and event.ids:
                    break
    async with asyncio.timeout(5):  # the two would have taken ten seconds each
        answers = await asyncio.gather(*(ask(subject, asking(stream=True, max_tokens=3)) for _ in range(2)))
    assert all(answer.usage.output == 3 for answer in answers)


async def test_more_runs_than_the_engine_can_do_at_once_all_end(subject: Subject) -> None:
    answers = await asyncio.gather(*(ask(subject, asking(stream=bool(at % 2), max_tokens=4)) for at in range(6)))
    assert [answer.usage.output for answer in answers] == [4] * 6
