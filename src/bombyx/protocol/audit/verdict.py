# SPDX-License-Identifier: Apache-2.0
"""From rows to a verdict: on one answer (pass, grey, fail), and on a worker (guilty, innocent, abstain). Spec JDG-5.

One answer's verdict is never a conviction: it is one number for the e-processes. A worker is GUILTY at evidence of a
million to one, counted over every answer of a plan that was fixed beforehand.

Not here: structure that needs no model (`structure.py`), rows (`ports.Prefill`), money.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from bombyx.protocol.audit.case import Verdict
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.margin import Margin, Row, margin
from bombyx.protocol.wire.audit import MILLION, Calibration, SamplerBlock, SeedSource

ALARM: Final = 3.0  # log10 of evidence at which more validators look
SLASH: Final = 6.0  # log10 of evidence at which a jury finds guilty: false once in a million workers' lives
FAILURES: Final = 3  # failed answers without which nobody is found guilty, however bad one of them is
GREY_SHARE: Final = 0.5  # of `mean_fail`: from there an answer is worth a second look


class Grade(StrEnum):
    """On one answer."""

    PASS = "pass"  # noqa: S105  # a grade
    GREY = "grey"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseVerdict:
    """What one answer's tokens say. `margins` are clipped and in 0 .. 1, as `Evidence.update` takes them."""

    verdict: Grade
    tokens: int
    mean_margin: float  # clipped, in logits
    max_margin: float  # not clipped
    outside: int
    margins: tuple[float, ...] = field(repr=False)
    reasons: tuple[str, ...]
    counts: bool  # joint seed or greedy: may enter an e-process; one party alone chose the noise otherwise

    @property
    def failed(self) -> bool:
        return self.verdict is Grade.FAIL


def scored_ids(
    output_ids: Sequence[int], *, finish: str, ends: Sequence[int], stopped_by_text: bool
) -> tuple[int, ...]:
    """The ids to score: the answer's, and an end-of-generation token where "stop" claims one that was not emitted.

    `ends`: the model's end-of-generation ids, the one that ends a turn first. With it an answer cut short is judged
    like any wrong token (JDG-4).
    """
    if finish != "stop" or stopped_by_text or not ends or (output_ids and output_ids[-1] in ends):
        return tuple(output_ids)
    return (*output_ids, ends[0])


def judge(
    rows: Sequence[Row], ids: Sequence[int], *, sampler: SamplerBlock, seed: int, calibration: Calibration
) -> ResponseVerdict:
    """The verdict on one answer whose scored ids are `ids`; `rows` has one row an id."""
    if len(rows) != len(ids):
        raise ValueError(f"JDG-1: {len(rows)} rows for {len(ids)} ids")
    margins, counts = [], Counter[int]()
    for position, (row, token) in enumerate(zip(rows, ids, strict=True)):
        margins.append(
            margin(row, token, position=position, counts=counts, sampler=sampler, seed=seed, calibration=calibration)
        )
        counts[token] += 1
    return weigh(margins, calibration, counts=sampler.seed_source is not SeedSource.APPLICATION)


def weigh(margins: Sequence[Margin], calibration: Calibration, *, counts: bool = True) -> ResponseVerdict:
    """What an answer's margins come to (JDG-5)."""
    clip, tokens = calibration.clip_e6 / MILLION, len(margins)
    clipped = tuple(min(one.value, clip) for one in margins)
    mean = math.fsum(clipped) / tokens if tokens else 0.0
    rest = (
        math.fsum(sorted(clipped)[:-1]) / tokens if tokens else 0.0
    )  # one token alone never fails an answer by a mean
    largest = max((one.value for one in margins), default=0.0)
    outside = sum(one.outside for one in margins)
    mean_fail = calibration.mean_fail_e6 / MILLION
    reasons = []
    if tokens >= calibration.min_tokens and rest > mean_fail:
        reasons.append(f"mean margin {rest:.4f}, the largest left out, above {mean_fail:g}")
    if largest > calibration.hard_e6 / MILLION:
        reasons.append(f"a margin of {largest:.2f} above {calibration.hard_e6 / MILLION:g}")
    if outside:
        reasons.append(f"{outside} tokens that could not be drawn")
    verdict = Grade.FAIL if reasons else Grade.PASS
    if not reasons and (rest > GREY_SHARE * mean_fail or largest > clip):
        verdict = Grade.GREY
        reasons.append("larger margins than most honest answers have")
    return ResponseVerdict(
        verdict=verdict,
        tokens=tokens,
        mean_margin=mean,
        max_margin=largest,
        outside=outside,
        margins=tuple(value / clip for value in clipped),
        reasons=tuple(reasons),
        counts=counts,
    )


def broken(reason: str) -> ResponseVerdict:
    """An answer whose structure alone is wrong (text, counts, chain): it fails without a model."""
    return ResponseVerdict(
        verdict=Grade.FAIL, tokens=0, mean_margin=0.0, max_margin=0.0, outside=0, margins=(), reasons=(reason,),
        counts=True,
    )  # fmt: skip


def taken_in(evidence: Evidence, verdict: ResponseVerdict) -> Evidence:
    """Evidence after one planned answer. Of a canary that brought no receipt, see `Evidence.absent`."""
    if not verdict.counts:
        return evidence
    return evidence.update(verdict.margins, failed=verdict.failed)


def find(evidence: Evidence) -> Verdict:
    """What a juror says who judged every answer of the plan itself (JDG-15)."""
    if evidence.peak >= SLASH and evidence.failures >= FAILURES:
        return Verdict.GUILTY
    return Verdict.INNOCENT if evidence.peak < ALARM else Verdict.ABSTAIN
