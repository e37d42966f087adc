# SPDX-License-Identifier: Apache-2.0
"""vLLM's rows: what a server that is not as documented, or hostile, can do to a Verifier. It can make it say so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit.fake_vllm import FakeVllm

from bombyx.adapters.prefill_vllm import VllmPrefill, _ids, _rows
from bombyx.errors import BombyxError, ConfigError, DeadlineExceeded, EngineUnavailable
from bombyx.protocol.audit.margin import Row

PROMPT, OUTPUT, TOP = (1, 2), (3, 4), 3
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


class Rows:
    """A model of ten tokens that likes the id after the last one best."""

    async def render(self, path: str, body: bytes) -> tuple[int, ...]:
        return PROMPT

    async def score(self, prompt_ids: Any, output_ids: Any, *, top: int) -> tuple[Row, ...]:
        rows, last = [], prompt_ids[-1]
        for token in output_ids:
            ranked = sorted(((one, -float((one - last - 1) % 10)) for one in range(10)), key=lambda e: (-e[1], e[0]))
            place = [one for one, _ in ranked].index(token)
            rows.append(Row(candidates=tuple(ranked[:top]), chosen=ranked[place][1], chosen_rank=place))
            last = token
        return tuple(rows)

    async def close(self) -> None:
        return None


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeVllm]:
    async with FakeVllm(Rows(), context=64) as running:
        yield running


async def test_the_request_is_the_documented_one(server: FakeVllm) -> None:
    """JDG-1: raw logits of every position of prompt and answer, one token generated and thrown away."""
    prefill = VllmPrefill(server.url, model="m")
    rows = await prefill.score(PROMPT, (3, 9), top=TOP)
    await prefill.close()
    assert server.asked == [
        {"model": "m", "prompt": [1, 2, 3, 9], "max_tokens": 1, "temperature": 0, "prompt_logprobs": TOP}
    ]
    assert rows[0] == Row(candidates=((3, -0.0), (4, -1.0), (5, -2.0)), chosen=-0.0, chosen_rank=0)
    assert rows[1].chosen == -5.0  # beside the candidates, with its own rank
    assert rows[1].chosen_rank == 5


def _without_own(answer: Any) -> Any:
    answer["choices"][0]["prompt_logprobs"][2] = {"7": {"logprob": 0.0, "rank": 1, "decoded_token": "x"}}
    return answer


def _infinite(answer: Any) -> Any:
    answer["choices"][0]["prompt_logprobs"][2]["3"]["logprob"] = float("nan")
    return answer


def _one_short(answer: Any) -> Any:
    answer["choices"][0]["prompt_logprobs"].pop()
    return answer


def _too_many(answer: Any) -> Any:
    row = answer["choices"][0]["prompt_logprobs"][3]
    row |= {str(n): {"logprob": -50.0, "rank": n, "decoded_token": ""} for n in range(100, 200)}
    return answer


@pytest.mark.parametrize(
    "spoil", [_without_own, _infinite, _one_short, _too_many, lambda _: [], lambda _: {"choices": []}]
)
async def test_attack_rows_that_do_not_fit_what_was_asked(server: FakeVllm, spoil: Callable[[Any], Any]) -> None:
    """JDG-1: nothing is judged on them; it is the engine's fault and says so."""
    server.spoil = spoil
    prefill = VllmPrefill(server.url, model="m")
    with pytest.raises(EngineUnavailable):
        await prefill.score(PROMPT, OUTPUT, top=TOP)
    await prefill.close()


async def test_attack_an_answer_without_end_is_cut_off(server: FakeVllm) -> None:
    """JDG-1: an answer's bytes are bounded by what was asked for."""
    server.spoil = lambda answer: answer | {"padding": "x" * (1 << 21)}
    prefill = VllmPrefill(server.url, model="m")
    with pytest.raises(EngineUnavailable, match="larger"):
        await prefill.score(PROMPT, OUTPUT, top=TOP)
    await prefill.close()


@pytest.mark.parametrize("status", [401, 500, 503])
async def test_a_server_that_fails_is_unavailable(server: FakeVllm, status: int) -> None:
    """JDG-1: nobody is blamed for a Verifier's own engine."""
    server.status = status
    prefill = VllmPrefill(server.url, model="m")
    with pytest.raises(EngineUnavailable):
        await prefill.score(PROMPT, OUTPUT, top=TOP)
    await prefill.close()


async def test_a_server_that_hangs_or_is_gone_ends_in_time(server: FakeVllm) -> None:
    """JDG-1: a pass has a limit."""
    prefill = VllmPrefill(server.url, model="m", timeout=0.000_1)
    with pytest.raises(DeadlineExceeded):
        await prefill.score(PROMPT, OUTPUT, top=TOP)
    await prefill.close()
    nobody = VllmPrefill("http://127.0.0.1:9", model="m")
    with pytest.raises(EngineUnavailable):
        await nobody.score(PROMPT, OUTPUT, top=TOP)
    await nobody.close()


def test_a_prefill_elsewhere_is_refused() -> None:
    """JDG-1: canaries and opted-in answers are not sent over a network in the clear."""
    with pytest.raises(ConfigError):
        VllmPrefill("http://10.0.0.1:8000", model="m")


@given(JSON)
def test_arbitrary_json_gives_rows_or_a_typed_error(told: Any) -> None:
    """JDG-1: whatever a server says."""
    for read in (lambda: _rows(told, (1, 2, 3), 1, 4), lambda: _ids(told)):
        try:
            read()
        except BombyxError:
            continue


@given(st.lists(JSON, min_size=3, max_size=3))
def test_arbitrary_rows_give_rows_or_a_typed_error(listed: list[Any]) -> None:
    """JDG-1: in the right frame, with anything in it."""
    try:
        rows = _rows({"choices": [{"prompt_logprobs": listed}]}, (1, 2, 3), 1, 4)
    except BombyxError:
        return
    assert len(rows) == 2
