# SPDX-License-Identifier: Apache-2.0
"""A real vLLM with the seeded sampler: generate with it, re-run with its own `prompt_logprobs`, judge. Needs a GPU.

    pip install vllm bombyx
    vllm serve Qwen/Qwen2.5-0.5B-Instruct --logprobs-mode raw_logits --max-logprobs 136
    BOMBYX_LIVE_VLLM=http://127.0.0.1:8000 BOMBYX_LIVE_MODEL=Qwen/Qwen2.5-0.5B-Instruct \\
        python -m pytest -m live tests/live/test_vllm.py

No run of it is on record yet: what the offline tests cannot show is that vLLM keeps to its documented interface.
"""

from __future__ import annotations

import json
import os

import pytest

from bombyx.adapters.engine_dialect import CHAT, Dialect
from bombyx.adapters.engine_openai import OpenAIEngine
from bombyx.adapters.prefill_vllm import VllmPrefill
from bombyx.compose.calibrate_engines import calibrate_engines
from bombyx.ports import AuditAsk, EngineEnd, EngineRequest
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.margin import needed
from bombyx.protocol.audit.seed import choice_seed
from bombyx.protocol.audit.verdict import Grade, judge
from bombyx.protocol.primitives import sha256

URL, MODEL = os.environ.get("BOMBYX_LIVE_VLLM", ""), os.environ.get("BOMBYX_LIVE_MODEL", "")
pytestmark = [pytest.mark.live, pytest.mark.skipif(not URL, reason="BOMBYX_LIVE_VLLM names no server")]


async def test_an_answer_of_vllm_passes_and_another_seed_fails() -> None:
    """AUD-4, JDG-1: the same answer, judged with the seed it was drawn by and with another."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Tell me about rain."}]}).encode()
    root = sha256(b"live")
    engine = OpenAIEngine(URL, dialect=Dialect.VLLM_SEEDED)
    asked = EngineRequest(
        path=CHAT, body=body, stream=False, cache_salt=b"live", max_output=128, deadline_seconds=120,
        audit=AuditAsk(root=root),
    )  # fmt: skip
    (usage,) = [event.usage async for event in engine.run(asked) if isinstance(event, EngineEnd)]
    await engine.close()
    assert usage.audit is not None, usage.audit_why
    assert usage.ids is not None
    prefill, ids, sampler = VllmPrefill(URL, model=MODEL), usage.ids[0], usage.audit.sampler
    assert await prefill.render(CHAT, body) == usage.audit.prompt_ids
    rows = await prefill.score(usage.audit.prompt_ids, ids, top=needed(sampler, DEFAULT, len(ids)))
    await prefill.close()
    right = judge(rows, ids, sampler=sampler, seed=choice_seed(root, 0), calibration=DEFAULT)
    wrong = judge(rows, ids, sampler=sampler, seed=choice_seed(sha256(b"other"), 0), calibration=DEFAULT)
    assert (right.verdict, wrong.verdict) == (Grade.PASS, Grade.FAIL)


async def test_honest_answers_of_vllm_make_a_calibration() -> None:
    """JDG-6: `bombyx calibrate --engine` over it; nothing honest fails, and the margins bound something."""
    found = await calibrate_engines([URL], model=MODEL, key="", answers=64, tokens=64, family="", told=lambda *_: None)
    assert not any(verdict.failed for group in found.groups.values() for verdict in group)
    assert found.calibration.m0_e6 < 100_000
