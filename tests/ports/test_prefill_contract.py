# SPDX-License-Identifier: Apache-2.0
"""What every `ports.Prefill` promises, asked of each: llama.cpp, and vLLM's HTTP interface over the same model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from tests.unit.audit.fake_vllm import FakeVllm

from bombyx.adapters.gguf import find_packaged_model
from bombyx.adapters.prefill_llama import LlamaPrefill
from bombyx.adapters.prefill_vllm import VllmPrefill
from bombyx.errors import BadRequest, EngineUnavailable
from bombyx.ports import Prefill
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.verdict import judge
from bombyx.protocol.wire.audit import ALGORITHM, SamplerBlock, SeedSource

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Name three colours."}]}).encode()
CONTEXT = 256
TOP = 55


@dataclass(frozen=True)
class Subject:
    name: str
    prefill: Prefill


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["llama.cpp", "vllm"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    llama = LlamaPrefill(find_packaged_model(), context=CONTEXT)
    if request.param == "llama.cpp":
        yield Subject("llama.cpp", llama)
    else:
        async with FakeVllm(llama, context=CONTEXT) as server:
            prefill = VllmPrefill(server.url, model="m")
            yield Subject("vllm", prefill)
            await prefill.close()
    await llama.close()


async def greedy(prefill: Prefill, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """What the model itself would say, asked for one id at a time."""
    ids: tuple[int, ...] = ()
    for _ in range(count):
        (*_, row) = await prefill.score(prompt, (*ids, 0), top=2)
        ids = (*ids, row.candidates[0][0])
    return ids


async def test_a_chat_is_rendered_by_the_models_own_template(subject: Subject) -> None:
    """AUD-8: the prompt's ids follow from the request alone, and end where the assistant begins."""
    first, again = [await subject.prefill.render(CHAT, BODY) for _ in range(2)]
    assert first == again
    assert len(first) > 10


async def test_one_row_for_each_output_id(subject: Subject) -> None:
    """JDG-1: in order, with as many candidates as asked for, by falling logit, and the emitted id's own logit."""
    prompt = await subject.prefill.render(CHAT, BODY)
    rows = await subject.prefill.score(prompt, (100, 200, 300), top=TOP)
    assert len(rows) == 3
    for row, token in zip(rows, (100, 200, 300), strict=True):
        assert len(row.candidates) >= TOP
        assert list(row.candidates) == sorted(row.candidates, key=lambda one: (-one[1], one[0]))
        among = dict(row.candidates).get(token)
        assert among is None or among == row.chosen
        assert row.chosen_rank >= TOP if among is None else row.candidates[row.chosen_rank][0] == token


async def test_the_models_own_words_have_no_margin_and_others_do(subject: Subject) -> None:
    """JDG-1: what the model says itself is the row's first candidate; a foreign token is far behind."""
    prompt = await subject.prefill.render(CHAT, BODY)
    ids = await greedy(subject.prefill, prompt, 6)
    sampler = SamplerBlock(
        algorithm=ALGORITHM, temperature_e6=0, top_p_e6=1_000_000, top_k=50, presence_e6=0, frequency_e6=0,
        max_output=6, seed_source=SeedSource.GREEDY, stop=(),
    )  # fmt: skip
    good = await subject.prefill.score(prompt, ids, top=TOP)
    assert judge(good, ids, sampler=sampler, seed=0, calibration=DEFAULT).max_margin < 0.5
    wrong = (*ids[:3], 31_000, *ids[4:])
    rows = await subject.prefill.score(prompt, wrong, top=TOP)
    assert judge(rows, wrong, sampler=sampler, seed=0, calibration=DEFAULT).failed


async def test_long_answers_take_more_than_one_pass(subject: Subject) -> None:
    """JDG-1: every position has its row, wherever a batch ends."""
    prompt = await subject.prefill.render(CHAT, BODY)
    ids = tuple(100 + n for n in range(CONTEXT - len(prompt)))
    assert len(await subject.prefill.score(prompt, ids, top=4)) == len(ids)


async def test_nothing_to_score_is_no_row(subject: Subject) -> None:
    """JDG-1: an empty answer has no positions."""
    assert await subject.prefill.score((1, 2, 3), (), top=4) == ()


@pytest.mark.parametrize(
    ("prompt", "output", "top"),
    [((), (5,), 4), ((1,) * CONTEXT, (5,), 4), ((1,), (10_000_000,), 4), ((1, -3), (5,), 4), ((1,), (5,), 0)],
    ids=["no prompt", "longer than the context", "an id beyond the vocabulary", "a negative id", "no candidates"],
)
async def test_what_cannot_be_scored_is_refused(
    subject: Subject, prompt: tuple[int, ...], output: tuple[int, ...], top: int
) -> None:
    """JDG-1: hostile ids reach no model; the blame is the package's."""
    with pytest.raises(BadRequest):
        await subject.prefill.score(prompt, output, top=top)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"messages": []}', b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "f"}]}',
     b'{"messages": [{"role": "user", "content": "x"}], "unheard_of": 1}'],
)  # fmt: skip
async def test_a_request_that_cannot_be_rerun_is_refused(subject: Subject, body: bytes) -> None:
    """AUD-3: what is not understood is never left out."""
    with pytest.raises(BadRequest, match="AUD-3"):
        await subject.prefill.render(CHAT, body)


async def test_the_loop_is_never_blocked(subject: Subject) -> None:
    """JDG-1: other work goes on while the model computes."""
    ticks, done = 0, asyncio.Event()

    async def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    await subject.prefill.score(tuple(range(100, 300)), tuple(range(50)), top=TOP)
    done.set()
    await counting
    assert ticks > 5


async def test_passes_asked_for_at_once_do_not_mix(subject: Subject) -> None:
    """JDG-1: each caller gets its own rows."""
    first, second = (1, 500, 600), (1, 700, 800)
    alone = [await subject.prefill.score(prompt, (50, 60), top=8) for prompt in (first, second)]
    together = await asyncio.gather(*(subject.prefill.score(prompt, (50, 60), top=8) for prompt in (first, second)))
    assert list(together) == alone


async def test_a_closed_prefill_says_so() -> None:
    """JDG-1: closing twice is fine; afterwards nothing is computed."""
    prefill = LlamaPrefill(find_packaged_model(), context=64)
    await prefill.close()
    await prefill.close()
    with pytest.raises(EngineUnavailable):
        await prefill.score((1,), (2,), top=1)
