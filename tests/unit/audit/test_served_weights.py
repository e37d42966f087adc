# SPDX-License-Identifier: Apache-2.0
"""A validator whose model is served by vLLM: found by its manifest, read over HTTP, with the ends its table names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.audit.vllm_over_llama import LlamaVllm

from bombyx.adapters.end_tokens import end_tokens
from bombyx.adapters.engine_auditable import AuditableEngine
from bombyx.adapters.engine_embedded import EmbeddedOptions
from bombyx.adapters.gguf import find_packaged_model
from bombyx.compose.weights import open_served, open_weights
from bombyx.compose.worker import embedded
from bombyx.config import ValidatorConfig, WorkerConfig, load
from bombyx.errors import ConfigError
from bombyx.protocol.audit.calibration import DEFAULT, to_json
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.validator.calibrating import Subject, answered, judged, trial
from bombyx.roles.validator.examine import Examiner


async def test_answers_of_one_engine_are_rerun_by_another_that_serves_the_same_weights(tmp_path: Path) -> None:
    """AUD-55, JDG-1: an embedded worker's answer, judged by `prompt_logprobs`; its manifest finds the model."""
    served = await embedded(WorkerConfig())
    await served.engine.close()
    assert served.token_table is not None
    manifest, tokens = tmp_path / "model.manifest", tmp_path / "model.tokens"
    manifest.write_bytes(served.manifest.encode())
    tokens.write_bytes(served.token_table)
    file, root = find_packaged_model(), sha256(b"root")
    async with LlamaVllm(file, context=256, name=served.manifest.name) as server:
        models = await open_served(server.url, manifest=str(manifest), tokens=str(tokens), ends="")
        (found,) = models.values()
        assert Examiner(models).knows(served.manifest)
        assert not Examiner(models).knows(replace(served.manifest, tokenizer=sha256(b"other")))
        engine = AuditableEngine(EmbeddedOptions(model=file, name="m", threads=1, parallel=1, context=256))
        subject = Subject(name="m", prefill=found.prefill, ends=found.ends, chats=True)
        path, body = trial(subject, 24)
        usage = await answered(engine, path, body, root, 24)
        await engine.close()
        verdict = await judged(subject, DEFAULT, path, body, root, usage)
        assert not verdict.failed
        assert (await judged(subject, DEFAULT, path, body, sha256(b"another seed"), usage)).failed
        await found.prefill.close()


async def test_ends_known_by_name_are_those_the_runtime_knows() -> None:
    """JDG-4: for a model whose runtime tells: the one that ends a turn first, and none that is not one."""
    (local,) = (await open_weights(None, context=64, threads=1)).values()
    assert local.table is not None
    named = await asyncio.to_thread(end_tokens, local.table)
    assert named[0] == local.ends[0]
    assert set(named) <= set(local.ends)
    await local.prefill.close()


def test_a_text_that_only_looks_like_an_end_is_none() -> None:
    """JDG-4: an ordinary token that spells the name stands for text."""
    table = TokenTable.build([b"</s>", b"a", b"</s>", b"<|eot_id|>"], special=[2, 3])
    assert end_tokens(table) == (3, 2)
    assert end_tokens(TokenTable.build([b"a"], special=[])) == ()


async def test_what_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    """AUD-55, JDG-4: no manifest, no table, no known end, or two sources of weights."""
    for given in (
        {"engine": "http://127.0.0.1:8000"},
        {"engine": "http://127.0.0.1:8000", "manifest": "m", "tokens": "t", "model_file": "f"},
        {"ends": "1,x"},
        {"ends": "1,-2"},
    ):
        with pytest.raises(ConfigError):
            load(ValidatorConfig, overrides=given)
    assert load(ValidatorConfig, overrides={"ends": "2, 0"}).ends == "2, 0"
    table = TokenTable.build([b"a"], special=[]).encode()
    served = await embedded(WorkerConfig())
    await served.engine.close()
    manifest, tokens = tmp_path / "m", tmp_path / "t"
    manifest.write_bytes(replace(served.manifest, tokenizer=sha256(table)).encode())
    tokens.write_bytes(table)
    with pytest.raises(ConfigError, match="--ends"):
        await open_served("http://127.0.0.1:8000", manifest=str(manifest), tokens=str(tokens), ends="")
    with pytest.raises(ConfigError, match="loopback"):
        await open_served("http://10.0.0.1:8000", manifest=str(manifest), tokens=str(tokens), ends="0")


async def test_an_embedded_worker_publishes_the_calibration_it_was_given(tmp_path: Path) -> None:
    """JDG-6: of another file than the packaged one, or measured on the operator's own machines."""
    file = tmp_path / "calibration.json"
    file.write_text(to_json(replace(DEFAULT, family="llama.cpp/riscv")))
    served = await embedded(WorkerConfig(calibration=str(file)))
    await served.engine.close()
    assert served.manifest.calibration is not None
    assert served.manifest.calibration.family == "llama.cpp/riscv"
    with pytest.raises(ConfigError, match="cannot read"):
        await embedded(WorkerConfig(calibration=str(tmp_path / "none")))
