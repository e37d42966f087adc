# SPDX-License-Identifier: Apache-2.0
"""`bombyx calibrate --engine` over HTTP servers that answer as vLLM does, the packaged model's logits behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.unit.audit.vllm_over_llama import LlamaVllm
from typer.testing import CliRunner

from bombyx.adapters.gguf import find_packaged_model
from bombyx.adapters.gguf_pruned import prune
from bombyx.cli.app import app
from bombyx.compose.calibrate import Measured
from bombyx.compose.calibrate_engines import calibrate_engines
from bombyx.errors import ConfigError, EngineUnavailable
from bombyx.protocol.audit.calibration import DEFAULT, from_json, group_mean

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def measured(*urls: str, **changes: Any) -> Measured:
    asked: dict[str, Any] = {"model": "", "key": "", "answers": 4, "tokens": 16, "family": "", "told": lambda *_: None}
    return await calibrate_engines(urls, **(asked | changes))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine() -> AsyncIterator[LlamaVllm]:
    async with LlamaVllm(find_packaged_model(), context=256) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def another() -> AsyncIterator[LlamaVllm]:
    """The same weights on a machine that rounds otherwise."""
    async with LlamaVllm(find_packaged_model(), context=256, noise=0.1) as running:
        yield running


async def test_two_machines_are_measured_against_each_other(machine: LlamaVllm, another: LlamaVllm) -> None:
    """JDG-6: every answer is seeded, re-run once, alone and in a batch, here and there; the worst pair decides."""
    told: list[tuple[int, int]] = []
    found = await measured(machine.url, another.url, answers=16, told=lambda *seen: told.append(seen))
    assert len(found.groups) == 8
    assert sorted(told) == [(number, 16) for number in range(1, 17)]
    made = found.calibration
    assert (made.family, made.responses, found.weights) == ("vllm 0.11.0", 16, None)
    assert not any(verdict.failed for group in found.groups.values() for verdict in group)
    means = {name: group_mean(group) for name, group in found.groups.items()}
    noisy = [mean for name, mean in means.items() if name.startswith(another.url.removeprefix("http://"))]
    assert max(means.values()) == max(noisy), "what rounds otherwise shows"
    kinds = [group_mean(group) for group in found.kinds.values()]
    assert made.m0_e6 == max(1_000, -int(-2_000_000 * max(*noisy, *kinds) // 1))
    assert machine.widest > 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda answer: _without(answer, "prompt_token_ids"), "cannot be re-run"),
        (lambda answer: _without(answer, "token_ids"), "cannot be re-run"),
        (lambda answer: _without(answer, "prompt_logprobs"), "--max-logprobs"),
        (lambda answer: _other_prompt(answer), "other templates"),
    ],
    ids=["no prompt ids", "no output ids", "no prompt_logprobs", "another template"],
)
async def test_what_an_engine_lacks_is_said_before_anything_is_measured(
    machine: LlamaVllm, spoil: Callable[[Any], Any], words: str
) -> None:
    """JDG-6: in words that name the remedy."""
    machine.spoil = spoil
    try:
        with pytest.raises(ConfigError, match=words):
            await measured(machine.url)
    finally:
        machine.spoil = lambda answer: answer


async def test_a_vllm_without_the_sampler_is_no_honest_engine() -> None:
    """JDG-6, AUD-4: its answers follow no seed; measured, they would make a calibration that excuses anything."""
    async with LlamaVllm(find_packaged_model(), context=256, processors=False) as greedy:
        with pytest.raises(ConfigError, match=r"whatever the seed.*SeededSampler"):
            await measured(greedy.url)


async def test_attack_one_of_the_machines_runs_other_weights(machine: LlamaVllm, tmp_path: Path) -> None:
    """JDG-6: a cheaper copy among the honest ones does not widen the bound; it ends the measurement."""
    cheap = tmp_path / "cheap.gguf"
    await asyncio.to_thread(prune, find_packaged_model(), cheap, (10, 14, 18))
    async with LlamaVllm(cheap, context=256) as other:
        with pytest.raises(ConfigError, match="same weights"):
            await measured(machine.url, other.url, answers=8, tokens=24)


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "http://", "http://198.51.100.7:8000", "http://[::", "127.0.0.1:8000"]
)
async def test_attack_answers_that_anybody_on_the_way_may_alter(url: str) -> None:
    """JDG-6: who alters what an engine says makes the calibration: far away means https."""
    with pytest.raises(ConfigError):
        await measured(url)


async def test_names_are_asked_for_or_must_fit(machine: LlamaVllm) -> None:
    """JDG-6: no other model is measured by mistake, and nobody at all is unavailable, not measured."""
    with pytest.raises(ConfigError, match="serves m, not 'other'"):
        await measured(machine.url, model="other")
    with pytest.raises(EngineUnavailable):
        await measured("http://127.0.0.1:9")
    machine.version = ""
    found = await measured(machine.url, model="m", family="vllm h100")
    assert found.calibration.family == "vllm h100"
    machine.version = "0.11.0"


async def test_the_command_writes_the_file_a_manifest_takes(machine: LlamaVllm, tmp_path: Path) -> None:
    """JDG-7: from the command line, with what the engine told."""
    out = tmp_path / "calibration.json"
    arguments = ["calibrate", "--engine", machine.url, "--answers", "4", "--tokens", "16", "--out", str(out), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result.exit_code == 0, result.output
    made = from_json(out.read_text())
    assert (made.family, made.responses) == ("vllm 0.11.0", 4)
    assert made.core_e6 == DEFAULT.core_e6
    assert json.loads(result.stdout)["weights"] is None


def _without(answer: Any, name: str) -> Any:
    answer.pop(name, None)
    for choice in answer.get("choices", ()):
        choice.pop(name, None)
    return answer


def _other_prompt(answer: Any) -> Any:
    if "prompt_token_ids" in answer:
        answer["prompt_token_ids"][0] += 1
    return answer
