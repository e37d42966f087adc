# SPDX-License-Identifier: Apache-2.0
"""The auditable engine: answers that anyone with the model can re-run, in the form OpenAI clients read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from bombyx.adapters.engine_auditable import AuditableEngine
from bombyx.adapters.engine_embedded import EmbeddedOptions
from bombyx.adapters.gguf import GgufModel, find_packaged_model, read_gguf
from bombyx.adapters.llama_api import Item, LlamaContext, LlamaModel
from bombyx.adapters.llama_logits import top_candidates
from bombyx.adapters.llama_text import TextMaker
from bombyx.errors import EngineUnavailable
from bombyx.ports import AuditAsk, EngineChunk, EngineEnd, EngineHead, EngineRequest, EngineUsage
from bombyx.protocol.audit.sampler import choose, enough
from bombyx.protocol.audit.seed import application_root, choice_seed
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.audit import SeedSource
from bombyx.protocol.wire.tokens import Relation

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROOT = sha256(b"a root")
LONG = "The quick brown fox jumps over the lazy dog. " * 10


@pytest.fixture(scope="module")
def model() -> GgufModel:
    return read_gguf(find_packaged_model())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: GgufModel) -> AsyncIterator[AuditableEngine]:
    made = AuditableEngine(EmbeddedOptions(model=model.path, name="smollm2", parallel=3, context=320))
    yield made
    await made.close()


@dataclass(frozen=True)
class Answer:
    head: EngineHead
    data: bytes
    usage: EngineUsage

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (line[6:] for line in self.data.split(b"\n\n") if line.startswith(b"data: {"))
        return [json.loads(line) for line in lines]

    def text(self, choice: int = 0) -> str:
        found = self.events if self.head.content_type == "text/event-stream" else [json.loads(self.data)]
        parts = [one for event in found for one in event["choices"] if one["index"] == choice]
        said = [(one.get("delta") or one.get("message") or {}).get("content") or one.get("text") for one in parts]
        return "".join(part for part in said if part)


async def ask(
    engine: AuditableEngine,
    said: str = "Tell me about the sea.",
    *,
    path: str = CHAT,
    stream: bool = False,
    root: Digest | None = ROOT,
    salt: bytes = b"",
    max_output: int = 200,
    **body: Any,
) -> Answer:
    asked: dict[str, Any] = {"model": "smollm2", "max_tokens": 12, "stream": stream}
    asked |= {"messages": [{"role": "user", "content": said}]} if path == CHAT else {"prompt": said}
    request = EngineRequest(
        path=path,
        body=json.dumps(asked | body).encode(),
        stream=stream,
        cache_salt=salt or os.urandom(32),
        max_output=max_output,
        deadline_seconds=60.0,
        audit=None if root is None else AuditAsk(root=root),
    )
    head, data, usage = None, b"", None
    async for event in engine.run(request):
        if isinstance(event, EngineHead):
            head = event
        elif isinstance(event, EngineChunk):
            data += event.data
        elif isinstance(event, EngineEnd):
            usage = event.usage
    assert head is not None
    assert usage is not None
    return Answer(head, data, usage)


@pytest.fixture(scope="module")
def verifier(model: GgufModel) -> Iterator[LlamaContext]:
    weights = LlamaModel(model.path)
    context = LlamaContext(weights, context=320)
    yield context
    context.close()
    weights.close()


def replayed(verifier: LlamaContext, usage: EngineUsage, root: Digest, choice: int = 0) -> list[int]:
    """What a Verifier's logits, from one prefill over prompt and answer, choose at each position."""
    assert usage.audit is not None
    assert usage.ids is not None
    sampler, prompt, ids = usage.audit.sampler, usage.audit.prompt_ids, usage.ids[choice]
    verifier.clear()
    items = [Item(token, at, 0, at >= len(prompt) - 1) for at, token in enumerate([*prompt, *ids[:-1]])]
    rows = [top_candidates(row, enough(sampler, len(ids))) for _, row in verifier.decode(items)]
    seed, found = choice_seed(root, choice), []
    for position, row in enumerate(rows):
        counts = {token: ids[:position].count(token) for token in set(ids[:position])}
        found.append(choose(row, sampler, seed=seed, position=position, counts=counts))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0},
        {"temperature": 1.3, "top_p": 1.0, "top_k": 64},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    ],
)
async def test_an_answer_can_be_re_run(
    engine: AuditableEngine, verifier: LlamaContext, settings: dict[str, Any]
) -> None:
    """AUD-4: the seed and the model leave one right token at each position, but for rounding."""
    answer = await ask(engine, max_tokens=40, **settings)
    assert answer.usage.ids is not None
    assert answer.usage.audit is not None
    ids = list(answer.usage.ids[0])
    matches = sum(mine == theirs for mine, theirs in zip(replayed(verifier, answer.usage, ROOT), ids, strict=True))
    assert matches >= len(ids) - 4, "rounding changes 3 tokens of 100"
    if answer.usage.audit.sampler.temperature_e6:
        other = replayed(verifier, answer.usage, sha256(b"another root"))
        assert sum(mine == theirs for mine, theirs in zip(other, ids, strict=True)) < len(ids) - 4


async def test_streamed_or_whole_it_is_the_same_answer(engine: AuditableEngine, model: GgufModel) -> None:
    """RCT-6, AUD-4: the form changes no token; every id is told, and their bytes are the text."""
    whole = await ask(engine, "Write emojis and Grüße: \U0001f99c 你好", max_tokens=40)
    streamed = await ask(engine, "Write emojis and Grüße: \U0001f99c 你好", max_tokens=40, stream=True)
    assert streamed.usage.ids == whole.usage.ids
    assert streamed.text() == whole.text()
    assert whole.usage.verified
    assert streamed.usage.verified
    assert whole.usage.ids is not None
    assert model.tokens.matches(whole.text(), whole.usage.ids[0], whole.usage.finish[0])


async def test_choices_have_seeds_of_their_own(engine: AuditableEngine, verifier: LlamaContext) -> None:
    """AUD-1: more choices than the engine has room for at once, each with its own noise, each can be re-run."""
    answer = await ask(engine, n=5, max_tokens=20, temperature=1.5, top_k=64, top_p=1.0)
    assert answer.usage.ids is not None
    assert len(set(answer.usage.ids)) == 5
    assert len(json.loads(answer.data)["choices"]) == 5
    for choice in (0, 4):
        ids = answer.usage.ids[choice]
        found = replayed(verifier, answer.usage, ROOT, choice)
        assert sum(mine == theirs for mine, theirs in zip(found, ids, strict=True)) >= len(ids) - 4


async def test_an_applications_seed_gives_the_same_answer_again(
    engine: AuditableEngine, verifier: LlamaContext
) -> None:
    """AUD-1: and says so, for it counts for nobody."""
    one = await ask(engine, seed=1234, root=sha256(b"x"))
    two = await ask(engine, seed=1234, root=sha256(b"y"))
    assert one.usage.ids == two.usage.ids
    assert one.usage.audit is not None
    assert one.usage.audit.sampler.seed_source is SeedSource.APPLICATION
    assert one.usage.ids is not None
    assert replayed(verifier, one.usage, application_root(1234)) == list(one.usage.ids[0])


async def test_without_a_root_an_answer_is_given_and_not_called_auditable(engine: AuditableEngine) -> None:
    """AUD-5"""
    one, two = await ask(engine, root=None, temperature=1.5), await ask(engine, root=None, temperature=1.5)
    assert one.usage.audit is None
    assert one.usage.audit_why
    assert one.usage.ids != two.usage.ids


@pytest.mark.parametrize("stop", ["ing", "e sea", "."])
async def test_a_stop_string_cuts_the_text_but_not_the_ids(
    engine: AuditableEngine, model: GgufModel, stop: str
) -> None:
    """RCT-6, AUD-7: the last id completes the stop string; streamed or whole, the text ends before it."""
    said = "Explain the sea in many words, swimming and sailing."
    whole = await ask(engine, said, stop=[stop, "never said"], temperature=0, max_tokens=60)
    streamed = await ask(engine, said, stop=stop, temperature=0, max_tokens=60, stream=True)
    assert streamed.text() == whole.text()
    assert stop not in whole.text()
    assert whole.usage.finish == ("stop",)
    assert whole.usage.ids is not None
    assert model.tokens.relation(whole.text(), whole.usage.ids[0], "stop", [stop]) is Relation.CUT_AT_STOP


async def test_the_token_that_ends_an_answer_is_its_last_id(engine: AuditableEngine, model: GgufModel) -> None:
    """AUD-4, AUD-7: chosen by the seed as any other, and billed."""
    answer = await ask(engine, "Say yes.", temperature=0, max_tokens=150)
    assert answer.usage.finish == ("stop",)
    assert answer.usage.ids is not None
    assert answer.usage.ids[0][-1] == model.end_of_text
    assert model.tokens.relation(answer.text(), answer.usage.ids[0], "stop") is Relation.EQUAL


async def test_the_answers_are_openais(engine: AuditableEngine) -> None:
    """The stock client's own models read every form, with log probabilities and usage."""
    whole = ChatCompletion.model_validate_json((await ask(engine, logprobs=True, top_logprobs=3)).data, strict=True)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    for entry in logprobs.content:
        assert [one.logprob for one in entry.top_logprobs] == sorted(
            (o.logprob for o in entry.top_logprobs), reverse=True
        )
        assert len(entry.top_logprobs) == 3
        assert bytes(entry.bytes or ()).decode("utf-8", "replace") == entry.token
        assert entry.logprob <= 0
    assert whole.usage is not None
    assert (whole.usage.completion_tokens, whole.model, whole.object) == (12, "smollm2", "chat.completion")

    streamed = await ask(engine, stream=True, logprobs=True, stream_options={"include_usage": True})
    chunks = [ChatCompletionChunk.model_validate(event) for event in streamed.events]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == streamed.usage.input + 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1

    text = Completion.model_validate_json((await ask(engine, "The sea is", path=COMPLETIONS, logprobs=2)).data)
    listed = text.choices[0].logprobs
    assert listed is not None
    assert listed.tokens is not None
    assert "".join(listed.tokens) == text.choices[0].text
    assert listed.text_offset is not None
    assert listed.text_offset[1] == len(listed.tokens[0])
    streamed = await ask(engine, "The sea is", path=COMPLETIONS, stream=True)
    assert [event["object"] for event in streamed.events] == ["text_completion"] * 12


async def test_one_conversation_never_warms_another(engine: AuditableEngine) -> None:
    """SEAL-3: a prompt is read from the cache only where the same conversation put it there."""
    cached = []
    for salt in (b"a", b"a", b"b", b"a", b"b"):
        answer = await ask(engine, LONG, salt=salt, max_tokens=2)
        cached.append(answer.usage.cached_input > 0)
        assert json.loads(answer.data)["usage"]["prompt_tokens_details"]["cached_tokens"] == answer.usage.cached_input
    assert cached == [False, True, False, True, True]


@pytest.mark.slow
async def test_many_at_once_hear_only_themselves(engine: AuditableEngine) -> None:
    """AUD-4: a neighbour's words change no token but by rounding, and nobody waits for ever."""
    said = ["Count to ten.", "Name three fish.", "What is rain?", "Hello!", "Why is the sky blue?"]
    alone = [await ask(engine, one, temperature=0) for one in said]
    together = await asyncio.gather(*(ask(engine, one, temperature=0, stream=True) for one in said))
    same = sum(a.usage.ids == b.usage.ids for a, b in zip(alone, together, strict=True))
    assert same >= 3, "a step of several sequences rounds differently from a step of one"
    assert all(answer.usage.verified for answer in together)


@pytest.mark.parametrize(
    "uncovered",
    [
        {"min_p": 0.05},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
    ],
)
async def test_what_is_not_covered_is_served_and_says_why(engine: AuditableEngine, uncovered: dict[str, Any]) -> None:
    """AUD-3: llama.cpp's own server answers; nobody is told that this could be re-run."""
    answer = await ask(engine, max_tokens=3, **uncovered)
    assert answer.head.status == 200
    assert answer.usage.output == 3
    assert answer.usage.audit is None
    assert next(iter(uncovered)) in answer.usage.audit_why


@pytest.mark.slow
async def test_a_prompt_longer_than_the_context_is_refused(engine: AuditableEngine) -> None:
    """WRK-4: with the code applications know."""
    answer = await ask(engine, LONG * 10)
    assert answer.head.status == 400
    assert json.loads(answer.data)["error"]["code"] == "context_length_exceeded"
    almost = await ask(engine, [100] * 308, path=COMPLETIONS, max_tokens=50)  # type: ignore[arg-type]
    assert (almost.usage.output, almost.usage.finish) == (12, ("length",))
    assert almost.usage.audit is not None
    assert almost.usage.audit.sampler.max_output == 12


async def test_a_killed_child_fails_its_runs_and_is_started_again(engine: AuditableEngine) -> None:
    """WRK-5"""
    await engine.start()
    starts, pid = engine.starts, engine.pid
    assert pid is not None
    running = [asyncio.create_task(ask(engine, "Tell a long story.", max_tokens=200, stream=True)) for _ in range(2)]
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, EngineUnavailable)
    assert (await ask(engine)).usage.output == 12
    assert engine.starts == starts + 1


@pytest.mark.slow
async def test_a_stopped_child_is_a_hang(model: GgufModel) -> None:
    """WRK-5: silence for too long ends the run; the next one has a new child."""
    made = AuditableEngine(EmbeddedOptions(model=model.path, name="smollm2", parallel=1, context=256, idle_timeout=3.0))
    try:
        await made.start()
        assert made.pid is not None
        os.kill(made.pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable, match="hung"):
            await ask(made)
        assert (await ask(made, max_tokens=2)).usage.output == 2
        assert made.starts == 2
    finally:
        await made.close()


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        ([b"a\xc3", b"\xa9b"], (), "aéb"),
        ([b"a\xc3"], (), "a"),  # a started character is dropped
        ([b"a\xff", b"b\xc3"], (), "a\ufffdb\ufffd"),  # unless bytes were replaced before
        ([b"one STO", b"P two"], ("STOP",), "one "),
        ([b"one ST", b"UP"], ("STOP",), "one STUP"),
        ([b"one ST"], ("STOP",), "one ST"),  # only the beginning of a stop string
        ([b"ab", b"ab", b"c"], ("abc",), "ab"),
        ([b"xyz"], ("z", "y"), "x"),
        ([b"\xe4\xbd", b"\xa0", b"\xe5"], ("你",), ""),
    ],
)
async def test_text_is_whole_characters_and_nothing_of_a_stop_string(
    pieces: list[bytes], stop: tuple[str, ...], shown: str
) -> None:
    """RCT-6: as the relation between text and ids has it."""
    maker, text = TextMaker(stop), ""
    for piece in pieces:
        more, stopped = maker.add(piece)
        text += more
        if stopped:
            break
    else:
        text += maker.end()
    assert text == shown
