# SPDX-License-Identifier: Apache-2.0
"""A calibration run: honest engines over one model file, a prefill beside them, one after the other (spec JDG-6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bombyx.adapters.engine_auditable import AuditableEngine
from bombyx.adapters.engine_embedded import EmbeddedOptions
from bombyx.adapters.gguf import file_digest, find_packaged_model, read_gguf
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.compose.weights import open_weights
from bombyx.protocol.audit.calibration import DEFAULT, calibrate, group_mean
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.audit import Calibration
from bombyx.roles.validator.calibrating import Subject, Way, by_temperature, measure, shares

CONTEXT: Final = 2_048  # tokens; canaries and their answers are short
# (threads, slots, answers at once): what differs between honest machines and moments.
CONFIGURATIONS: Final = ((1, 1, 1), (1, 4, 4), (2, 4, 3), (1, 8, 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run found."""

    weights: Digest | None  # None: those of engines elsewhere, which nobody hashed here
    calibration: Calibration
    groups: dict[str, list[ResponseVerdict]]
    kinds: dict[str, list[ResponseVerdict]]  # the same answers, by what was asked

    def rows(self) -> list[dict[str, object]]:
        """One a configuration, then one a kind of question, for people and programs."""
        return [
            {
                "configuration": name,
                "answers": len(group),
                "tokens": sum(verdict.tokens for verdict in group),
                "mean_margin": round(group_mean(group), 5),
                "largest_margin": round(max((verdict.max_margin for verdict in group), default=0.0), 3),
                "failed": sum(verdict.failed for verdict in group),
            }
            for name, group in (*self.groups.items(), *self.kinds.items())
        ]


async def calibrate_model(
    model: Path | None, *, answers: int, tokens: int, family: str, told: Callable[[int, int], None]
) -> Measured:
    """Ask and re-run `answers` answers. `told(done, all)` after each. Raises `ConfigError`, `EngineUnavailable`."""
    file = model or find_packaged_model()
    facts = await asyncio.to_thread(read_gguf, file)
    (weights,) = (await open_weights(file, context=CONTEXT, threads=1)).values()
    subject = Subject(name="m", prefill=weights.prefill, ends=weights.ends, chats=facts.chat_template is not None)
    index = await asyncio.to_thread(TokenIndex, facts.tokens, facts.end_of_text)
    groups: dict[str, list[ResponseVerdict]] = {}
    done, first = 0, 0

    def one_more() -> None:
        nonlocal done
        done += 1
        told(done, answers)

    try:
        for (threads, slots, at_once), count in zip(CONFIGURATIONS, shares(answers, CONFIGURATIONS), strict=True):
            options = EmbeddedOptions(model=file, name="m", threads=threads, parallel=slots, context=CONTEXT)
            engine = AuditableEngine(options, index)
            way = Way(name=f"{threads} threads, {slots} slots, {at_once} at once", engine=engine, at_once=at_once)
            try:
                groups[way.name] = await measure(
                    way, subject, replace(DEFAULT, family=family), first=first, count=count, tokens=tokens,
                    told=one_more,
                )  # fmt: skip
            finally:
                await engine.close()
            first += count
    finally:
        await weights.prefill.close()
    digest = await asyncio.to_thread(file_digest, file)
    kinds = by_temperature([verdict for group in groups.values() for verdict in group], subject, tokens)
    made = calibrate(groups, replace(DEFAULT, family=family), kinds=kinds)
    return Measured(weights=digest, calibration=made, groups=groups, kinds=kinds)
