# SPDX-License-Identifier: Apache-2.0
"""vLLM's logits-processor interface, played by a stand-in batch and tensor: the draw is the protocol's own."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.vllm_batch import Batch, Tensor

from bombyx.adapters.engine_answer import Answer
from bombyx.adapters.engine_dialect import CHAT, Dialect, plan_request
from bombyx.adapters.vllm_sampler import SeededSampler, arguments, read_arguments
from bombyx.ports import AuditAsk, EngineRequest
from bombyx.protocol.audit.sampler import choose
from bombyx.protocol.audit.seed import choice_seed
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.audit import ALGORITHM, SamplerBlock, SeedSource

SAMPLER = SamplerBlock(
    algorithm=ALGORITHM, temperature_e6=700_000, top_p_e6=950_000, top_k=50, presence_e6=0, frequency_e6=0,
    max_output=0, seed_source=SeedSource.JOINT, stop=(),
)  # fmt: skip
VOCABULARY = 300


def params(**extra: Any) -> Any:
    return SimpleNamespace(temperature=0.0, extra_args=extra or None)


def logits(rows: int, seed: int = 0) -> Tensor:
    chance = np.random.default_rng(seed)
    return Tensor(chance.normal(0, 3, (rows, VOCABULARY)).astype(np.float32))


def taken(tensor: Tensor, row: int) -> int:
    """What vLLM takes at temperature 0."""
    return int(tensor.data[row].argmax())


def processor() -> SeededSampler:
    return SeededSampler(None, "cpu", False)


def test_it_decides_the_argmax() -> None:
    """AUD-4: vLLM may skip processors that say they do not."""
    assert processor().is_argmax_invariant() is False


@given(st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(1, 64), st.integers(0, 2_000_000))
@settings(max_examples=60)
def test_the_token_left_is_the_protocols(seed: int, salt: int, top_k: int, temperature: int) -> None:
    """AUD-4: whatever the settings, for every position of an answer with penalties."""
    sampler = replace(
        SAMPLER, top_k=top_k, temperature_e6=temperature, presence_e6=300_000, frequency_e6=200_000,
        seed_source=SeedSource.JOINT if temperature else SeedSource.GREEDY,
    )  # fmt: skip
    output: list[int] = []
    running = processor()
    running.update_state(Batch(batch_size=1, added=[(0, params(**arguments(sampler, seed)), [1], output)]))
    for position in range(4):
        given_logits = logits(1, salt + position)
        wanted = choose(
            list(enumerate(given_logits.data[0].tolist())), sampler, seed=seed, position=position,
            counts=Counter(output),
        )  # fmt: skip
        assert taken(running.apply(given_logits), 0) == wanted
        output.append(wanted)  # vLLM's own list: the processor sees it grow
        running.update_state(None)


def test_other_requests_of_the_batch_are_not_touched() -> None:
    """AUD-4: a neighbour without our arguments keeps its logits."""
    running, before = processor(), logits(2)
    untouched = before.data[0].copy()
    running.update_state(Batch(added=[(0, params(), [1], []), (1, params(**arguments(SAMPLER, 5)), [1], [])]))
    after = running.apply(before)
    assert (after.data[0] == untouched).all()
    assert np.isfinite(after.data[1]).sum() == 1


def test_requests_keep_their_seed_when_the_batch_is_rearranged() -> None:
    """AUD-4: removed, added, moved: a seed follows its request, and a freed row has none."""
    running = processor()
    seeds = {row: arguments(SAMPLER, 100 + row) for row in range(3)}
    running.update_state(Batch(added=[(row, params(**seeds[row]), [1], []) for row in range(3)]))
    swap, one_way = SimpleNamespace(name="SWAP"), SimpleNamespace(name="UNIDIRECTIONAL")
    running.update_state(Batch(removed=[1], moved=[(0, 2, swap), (2, 1, one_way)]))
    tensor = logits(3)
    rows = [list(enumerate(row.tolist())) for row in tensor.data]
    after = running.apply(tensor)
    for row, seed in ((0, 102), (1, 100)):
        assert taken(after, row) == choose(rows[row], SAMPLER, seed=seed, position=0, counts={})
    assert np.isfinite(after.data[2]).all()


def test_arguments_survive_being_made_strings() -> None:
    """AUD-4: vLLM may hand every extra argument on as text."""
    as_text = {name: str(value) for name, value in arguments(SAMPLER, 2**64 - 1).items()}
    assert read_arguments(as_text) == (SAMPLER, 2**64 - 1)
    assert read_arguments({"other": 1}) is None
    assert read_arguments(None) is None


@pytest.mark.parametrize(
    "change",
    [{"bombyx_seed": "xyz"}, {"bombyx_seed": "g" * 16}, {"bombyx_top_k": 65}, {"bombyx_top_k": "1e3"},
     {"bombyx_temperature_e6": -1}, {"bombyx_top_p_e6": 0}],
)  # fmt: skip
def test_attack_arguments_out_of_range_are_refused_at_the_door(change: dict[str, Any]) -> None:
    """AUD-4: never in the middle of a batch that others share."""
    with pytest.raises(ValueError):
        SeededSampler.validate_params(params(**(arguments(SAMPLER, 1) | change)))


def test_a_temperature_beside_the_seed_is_refused() -> None:
    """AUD-4: vLLM would draw a second time."""
    with pytest.raises(ValueError, match="temperature 0"):
        SeededSampler.validate_params(SimpleNamespace(temperature=0.7, extra_args=arguments(SAMPLER, 1)))


# --- what the engine adapter sends and reads --------------------------------------------------------------------------


def request(body: dict[str, Any], *, audit: bool = True) -> EngineRequest:
    return EngineRequest(
        path=CHAT, body=json.dumps(body).encode(), stream=False, cache_salt=b"s", max_output=40, deadline_seconds=5,
        audit=AuditAsk(root=sha256(b"root")) if audit else None,
    )  # fmt: skip


CHATTED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
    "temperature": 0.9,
    "top_k": 20,
}


def test_a_request_that_can_be_rerun_is_drawn_by_the_processor() -> None:
    """AUD-4: its sampling fields become arguments, and what vLLM itself would do is switched off."""
    plan = plan_request(request(CHATTED | {"presence_penalty": 0.5}), Dialect.VLLM_SEEDED)
    sent = json.loads(plan.body)
    sampler, seed = read_arguments(sent["vllm_xargs"]) or pytest.fail("no arguments")
    assert (sampler.temperature_e6, sampler.top_k, sampler.presence_e6) == (900_000, 20, 500_000)
    assert seed == choice_seed(sha256(b"root"), 0)
    assert sent["temperature"] == 0
    assert not {"top_k", "presence_penalty"} & sent.keys()
    assert plan.sampler is not None
    assert plan.sampler.max_output == 40


@pytest.mark.parametrize(
    ("change", "audit", "why"),
    [({"n": 2}, True, "several"), ({"tools": [{"type": "function"}]}, True, "tools"), ({}, False, "no seed")],
)  # fmt: skip
def test_what_cannot_be_rerun_is_served_as_it_was_and_says_why(change: dict[str, Any], audit: bool, why: str) -> None:
    """AUD-3: vLLM samples itself."""
    plan = plan_request(request(CHATTED | change, audit=audit), Dialect.VLLM_SEEDED)
    assert plan.sampler is None
    assert why in plan.why
    assert json.loads(plan.body)["temperature"] == 0.9


def test_attack_an_application_cannot_smuggle_its_own_seed() -> None:
    """AUD-1: arguments of that name come from the engine adapter alone."""
    smuggled = {"vllm_xargs": {**arguments(SAMPLER, 7), "other": 1}}
    sent = json.loads(plan_request(request(CHATTED | smuggled), Dialect.VLLM_SEEDED).body)
    assert sent["vllm_xargs"] == {"other": 1}


def test_the_prompts_ids_come_back_and_are_hidden_from_the_application() -> None:
    """AUD-5: what a Verifier needs of vLLM's answer; the application sees the answer it asked for."""
    plan = plan_request(request(CHATTED), Dialect.VLLM_SEEDED)
    answer = Answer(plan)
    told = {
        "prompt_token_ids": [5, 6, 7],
        "choices": [{"index": 0, "message": {"content": "y"}, "finish_reason": "stop", "token_ids": [9, 2]}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    shown = answer.body(json.dumps(told).encode())
    usage = answer.usage()
    assert b"token_ids" not in shown.data
    assert usage.audit is not None
    assert usage.audit.prompt_ids == (5, 6, 7)
    assert usage.ids == ((9, 2),)
