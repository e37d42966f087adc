# SPDX-License-Identifier: Apache-2.0
"""The embedded llama.cpp itself: its ids, its cache, its end. Needs the model package; takes about fifteen seconds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bombyx.adapters.engine_embedded import EmbeddedEngine, EmbeddedOptions
from bombyx.adapters.gguf import GgufModel, find_packaged_model, read_gguf
from bombyx.errors import BombyxError, ConfigError, EngineUnavailable
from bombyx.ports import EngineChunk, EngineEnd, EngineRequest, EngineUsage
from bombyx.protocol.wire.tokens import Relation

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

CHAT = "/v1/chat/completions"
LETTERS = (
    "Repeat exactly: \U0001f99c\U0001f41d Gr\u00fc\u00dfe \u4f60\u597d\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442"
)
FACES = "Write emojis: \U0001f600\U0001f603\U0001f604\U0001f601\U0001f606\U0001f605\U0001f602\U0001f923"
LONG = "The quick brown fox jumps over the lazy dog. " * 10


@pytest.fixture(scope="module")
def model() -> GgufModel:
    try:
        return read_gguf(find_packaged_model())
    except ConfigError:
        pytest.skip("the embedded model is not installed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: GgufModel) -> AsyncIterator[EmbeddedEngine]:
    made = EmbeddedEngine(EmbeddedOptions(model=model.path, name="smollm2", parallel=2, context=1024))
    yield made
    await made.close()


async def ask(
    engine: EmbeddedEngine, said: str, *, stream: bool, salt: bytes = b"s", path: str = CHAT, **body: Any
) -> tuple[str, EngineUsage]:
    asked = {"messages": [{"role": "user", "content": said}], "temperature": 0, "stream": stream} | body
    request = EngineRequest(
        path=path,
        body=json.dumps(asked).encode(),
        stream=stream,
        cache_salt=salt,
        max_output=200,
        deadline_seconds=60.0,
    )
    text, usage = "", None
    async for event in engine.run(request):
        if isinstance(event, EngineChunk):
            data = event.data.removeprefix(b"data: ")
            for choice in json.loads(data)["choices"] if data.startswith(b"{") else ():
                text += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
        elif isinstance(event, EngineEnd):
            usage = event.usage
    assert usage is not None
    return text, usage


@pytest.mark.parametrize(("said", "limit"), [(LETTERS, 26), ("Explain the sea.", 34), (FACES, 8), (FACES, 200)])
async def test_a_stream_tells_the_same_ids_as_a_whole_answer(
    engine: EmbeddedEngine, model: GgufModel, said: str, limit: int
) -> None:
    """RCT-6: the ids llama.cpp withholds inside a character, and that of the end, are found again."""
    text, whole = await ask(engine, said, stream=False, max_tokens=limit)
    streamed_text, streamed = await ask(engine, said, stream=True, max_tokens=limit)
    assert streamed_text == text
    assert streamed.ids == whole.ids
    assert streamed.verified
    assert whole.verified
    assert whole.ids is not None
    assert model.tokens.relation(text, whole.ids[0], whole.finish[0]) is Relation.EQUAL


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_ends_inside_a_character(engine: EmbeddedEngine, model: GgufModel, stream: bool) -> None:
    """RCT-6: what a stream cannot show is not billed; a whole answer's ids show it."""
    text, usage = await ask(engine, LETTERS, stream=stream, max_tokens=2)
    assert text == ("" if stream else "\ufffd")
    assert usage.ids is not None
    assert len(usage.ids[0]) == usage.output == (0 if stream else 2)
    assert usage.verified is not stream
    assert model.tokens.matches(text, usage.ids[0], "length")


@pytest.mark.parametrize("stop", ["ing", "e sea", " the"])
async def test_a_stop_string_cuts_the_text_but_not_the_ids(engine: EmbeddedEngine, model: GgufModel, stop: str) -> None:
    """RCT-6"""
    text, usage = await ask(engine, "Explain the sea.", stream=False, max_tokens=60, stop=[stop])
    assert usage.ids is not None
    assert model.tokens.relation(text, usage.ids[0], "stop", [stop]) is Relation.CUT_AT_STOP
    streamed, usage = await ask(engine, "Explain the sea.", stream=True, max_tokens=60, stop=[stop])
    assert streamed == text
    assert usage.ids is not None
    assert model.tokens.matches(text, usage.ids[0], "stop", [stop])


async def test_a_stream_with_tools_tells_the_ids_of_its_words(engine: EmbeddedEngine, model: GgufModel) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    text, usage = await ask(engine, "What is the sea?", stream=True, max_tokens=12, tools=tools)
    assert usage.ids is not None
    assert model.tokens.matches(text, usage.ids[0], usage.finish[0])
    assert usage.verified


@pytest.mark.parametrize("stream", [True, False])
async def test_text_the_engine_rewrote_is_never_called_verified(
    engine: EmbeddedEngine, model: GgufModel, stream: bool
) -> None:
    """RCT-6: asked for JSON, llama.cpp cuts spaces and fences around it; a client would take that for fraud."""
    for seed in range(4):
        text, usage = await ask(
            engine,
            "Hi",
            stream=stream,
            max_tokens=40,
            temperature=1.2,
            seed=seed,
            response_format={"type": "json_object"},
        )
        assert usage.ids is not None
        fits = model.tokens.matches(text, usage.ids[0], usage.finish[0])
        assert fits or not usage.verified


async def test_every_id_stands_for_the_bytes_llama_cpp_shows(engine: EmbeddedEngine, model: GgufModel) -> None:
    """RCT-6: the table read from the file, against the engine, for the whole vocabulary."""
    request = EngineRequest(
        path="/v1/completions",
        body=json.dumps({"prompt": "a", "max_tokens": 1, "logprobs": model.tokens.size}).encode(),
        stream=False,
        cache_salt=b"",
        max_output=1,
        deadline_seconds=60.0,
    )
    [body] = [event.data async for event in engine.run(request) if isinstance(event, EngineChunk)]
    [entry] = json.loads(body)["choices"][0]["logprobs"]["content"]
    shown = {token["id"]: bytes(token["bytes"]) for token in entry["top_logprobs"]}
    assert shown == {token: model.tokens.piece(token) for token in range(model.tokens.size)}


async def test_one_conversation_never_warms_another(engine: EmbeddedEngine) -> None:
    """SEAL-3: a prompt is read from the cache only where the same conversation put it there."""
    cached = []
    for salt in (b"a", b"a", b"b", b"a", b"b"):
        _, usage = await ask(engine, LONG, stream=False, salt=salt, max_tokens=2)
        cached.append(usage.cached_input > 0)
    assert cached == [False, True, False, True, True]
    _, several = await ask(engine, LONG, stream=False, salt=b"a", max_tokens=2, n=2)
    _, after = await ask(engine, LONG, stream=False, salt=b"a", max_tokens=2)
    assert after.cached_input == 0, "an answer with several choices leaves nothing warm behind"


async def test_a_killed_server_fails_its_run_and_is_started_again(engine: EmbeddedEngine) -> None:
    await engine.start()
    starts, pid = engine.starts, engine.pid
    assert pid is not None
    running = asyncio.create_task(ask(engine, "Tell a story.", stream=True, max_tokens=200, ignore_eos=True))
    await asyncio.sleep(0.4)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await running
    _, usage = await ask(engine, "Hi.", stream=False, max_tokens=3)
    assert usage.output == 3
    assert engine.starts == starts + 1


async def test_a_file_that_is_no_model_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    engine = EmbeddedEngine(EmbeddedOptions(model=path, name="none"))
    with pytest.raises(BombyxError):
        await engine.start()
    await engine.close()


async def test_a_killed_worker_leaves_no_server_behind(model: GgufModel) -> None:
    """The server watches its parent's pipe: even SIGKILL of the parent ends it."""
    script = (
        "import asyncio, sys, pathlib\n"
        "from bombyx.adapters.engine_embedded import EmbeddedEngine, EmbeddedOptions\n"
        "async def main():\n"
        "    engine = EmbeddedEngine(EmbeddedOptions(model=pathlib.Path(sys.argv[1]), name='x', context=512))\n"
        "    await engine.start(); print(engine.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(model.path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    server = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(5):
        while _alive(server):  # noqa: ASYNC110  # another process: there is no event to wait for
            await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # in a container nobody may be there to reap it
