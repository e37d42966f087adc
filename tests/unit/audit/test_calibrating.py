# SPDX-License-Identifier: Apache-2.0
"""Measuring honesty: on the packaged model itself, and what ends a measurement."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bombyx.adapters.calibrations import FILE, shipped_calibration
from bombyx.adapters.gguf import file_digest, find_packaged_model
from bombyx.adapters.prefill_llama import LlamaPrefill
from bombyx.compose.calibrate import calibrate_model
from bombyx.errors import ConfigError
from bombyx.ports import EngineEnd, EngineEvent, EngineHead, EngineRequest, EngineUsage
from bombyx.protocol.audit.asked import CHAT, COMPLETIONS
from bombyx.protocol.audit.calibration import DEFAULT, from_json, to_json
from bombyx.protocol.primitives import Digest
from bombyx.roles.validator.calibrating import Subject, Way, asking, measure, seed_of, shares


class Mute:
    """An engine whose answers cannot be re-run."""

    async def models(self) -> tuple[str, ...]:
        return ("m",)

    async def run(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        yield EngineHead(status=200, content_type="application/json")
        usage = EngineUsage(
            input=1, cached_input=0, output=1, ids=((5,),), finish=("stop",), verified=True, note="",
            audit_why="no seeds here",
        )  # fmt: skip
        yield EngineEnd(usage=usage)

    async def close(self) -> None:
        return None


async def test_the_packaged_model_is_measured_in_several_ways(tmp_path: Path) -> None:
    """JDG-6: honest answers, other threads and slots, every one re-run; the file that comes out is a calibration."""
    told: list[tuple[int, int]] = []
    found = await calibrate_model(None, answers=4, tokens=16, family="test", told=lambda *seen: told.append(seen))
    assert len(found.groups) == 4
    assert sorted(told) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    made = found.calibration
    assert (made.family, made.responses) == ("test", 4)
    assert not any(verdict.failed for group in found.groups.values() for verdict in group)
    assert made.p0_e6 == 500_000  # four answers say next to nothing, and the calibration says so
    assert from_json(to_json(made)) == made


async def test_an_engine_whose_answers_cannot_be_rerun_is_no_measurement() -> None:
    """JDG-6: leaving such answers out would make the rest look better."""
    prefill = LlamaPrefill(find_packaged_model(), context=64)
    subject = Subject(name="m", prefill=prefill, ends=(2,), chats=True)
    with pytest.raises(ConfigError, match="no seeds here"):
        await measure(
            Way(name="mute", engine=Mute(), at_once=1), subject, DEFAULT, first=0, count=1, tokens=16,
            told=lambda: None,
        )  # fmt: skip
    await prefill.close()


def test_the_packaged_model_comes_with_its_calibration() -> None:
    """JDG-6, JDG-7: what the embedded engine's manifest carries, and how much it rests on."""
    shipped = shipped_calibration(file_digest(find_packaged_model()))
    assert shipped is not None
    assert shipped.responses > 0
    assert shipped_calibration(Digest.zero()) is None
    assert FILE.is_file()


def test_what_is_measured_is_what_workers_are_judged_on() -> None:
    """JDG-6: canaries, none twice, at all their temperatures; a model without a chat template is asked completions."""
    prefill = LlamaPrefill(find_packaged_model(), context=64)
    chats, plain = (Subject(name="m", prefill=prefill, ends=(2,), chats=has) for has in (True, False))
    asked = [asking(seed_of(number), chats, 64) for number in range(300)]
    assert len(set(asked)) == 300
    bodies = [json.loads(body) for _, body in asked]
    assert {body["temperature"] for body in bodies} == {0, 0.5, 0.7, 1.0}
    assert not any(body["stream"] for body in bodies)
    assert {path for path, _ in asked} == {CHAT, COMPLETIONS}
    assert {asking(seed_of(number), plain, 64)[0] for number in range(50)} == {COMPLETIONS}


def test_configurations_share_the_answers() -> None:
    """JDG-6: no configuration is left out."""
    assert shares(10, range(4)) == [3, 3, 2, 2]
