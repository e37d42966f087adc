# SPDX-License-Identifier: Apache-2.0
"""What judged answers say: power against tokens, sequential tests, partial cheating. Resampling only, no model.

A `Judged` holds one run's answers. Power resamples blocks of 16 consecutive tokens, since margins of one answer hang
together; sequential tests resample whole answers. Every draw comes from a generator with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from _answers import read_answers

from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.case import Verdict
from bombyx.protocol.audit.eprocess import SHARES, Evidence
from bombyx.protocol.audit.margin import Margin
from bombyx.protocol.audit.verdict import ResponseVerdict, find, weigh

BLOCK: Final = 16
MILLION_TO_ONE: Final = 6.0  # log10
LONGEST: Final = 4_096  # tokens of one simulated audit
M0: Final = DEFAULT.m0_e6 / 1e6


@dataclass(frozen=True, slots=True)
class Judged:
    """One run: per answer its margins, tokens outside, log probabilities, and TOPLOC's comparisons."""

    name: str
    lines: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, name: str, folder: Path) -> Judged:
        return cls(name, tuple(read_answers(folder / f"{name}.judged.jsonl")))

    def clipped(self) -> list[Any]:
        return [np.minimum(line["m"], 1.0) for line in self.lines]

    def surprise(self) -> list[Any]:
        """Negative log probabilities: what a test without seeds looks at."""
        return [-np.asarray(line["lp"]) for line in self.lines]

    def verdicts(self) -> list[ResponseVerdict]:
        return [
            weigh([Margin(value=m, outside=bool(o)) for m, o in zip(line["m"], line["o"], strict=True)], DEFAULT)
            for line in self.lines
        ]

    def chunks(self) -> Any:
        return np.array([chunk for line in self.lines for chunk in line["t"]]).reshape(-1, 3)

    @property
    def tokens(self) -> int:
        return sum(line["n"] for line in self.lines)

    @property
    def mean(self) -> float:
        return float(np.concatenate(self.clipped()).mean()) if self.lines else 0.0

    @property
    def largest(self) -> float:
        return max((max(line["m"]) for line in self.lines), default=0.0)

    @property
    def failed(self) -> int:
        return sum(verdict.failed for verdict in self.verdicts())


def block_means(answers: Sequence[Any]) -> Any:
    """Means of whole blocks of consecutive tokens."""
    return np.array(
        [answer[at : at + BLOCK].mean() for answer in answers for at in range(0, len(answer) - BLOCK + 1, BLOCK)]
    )


def resampled(means: Any, tokens: int, draws: int, chance: np.random.Generator) -> Any:
    return means[chance.integers(0, len(means), (draws, max(1, tokens // BLOCK)))].mean(axis=1)


def power(honest: Sequence[Any], cheat: Sequence[Any], tokens: int, *, alarms: float = 0.001) -> float:
    """Share of audits of `tokens` tokens that find the cheat, where `alarms` of the honest ones are found too."""
    chance = np.random.default_rng(1)
    quiet, loud = block_means(honest), block_means(cheat)
    if not len(quiet) or not len(loud):
        return 0.0
    threshold = np.quantile(resampled(quiet, tokens, 40_000, chance), 1 - alarms)
    return float((resampled(loud, tokens, 8_000, chance) > threshold).mean())


def tokens_to_slash(answers: Sequence[Any], runs: int = 400) -> tuple[float, float, float]:
    """(median, 95th percentile, share never) of tokens until the token e-process reaches a million to one."""
    chance, hits = np.random.default_rng(2), []
    bets = np.array([share / M0 for share in SHARES])
    for _ in range(runs):
        picked, length = [], 0
        while length < LONGEST:
            picked.append(answers[int(chance.integers(0, len(answers)))])
            length += len(picked[-1])
        gains = np.concatenate(picked)[:LONGEST, None] - M0
        logs = np.log1p(bets * gains).cumsum(axis=0)
        top = logs.max(axis=1)
        wealth = (top + np.log(np.exp(logs - top[:, None]).mean(axis=1))) / np.log(10)
        over = np.flatnonzero(wealth >= MILLION_TO_ONE)
        hits.append(over[0] + 1 if len(over) else np.inf)
    found = np.array(hits)
    return (
        float(np.median(found)),
        float(np.quantile(found, 0.95, method="higher")),
        float(np.isinf(found).mean()),
    )


def audits_to_slash(
    honest: Sequence[ResponseVerdict], cheat: Sequence[ResponseVerdict], share: float, *, runs: int, most: int = 2_000
) -> tuple[float, float]:
    """(median, 95th percentile) of audited answers until the evidence slashes a worker that cheats on a `share`."""
    chance, hits = np.random.default_rng(3), []
    for _ in range(runs):
        evidence, count = Evidence.none(DEFAULT), 0
        while find(evidence) is not Verdict.GUILTY and count < most:
            side = cheat if chance.random() < share else honest
            verdict = side[int(chance.integers(0, len(side)))]
            evidence = evidence.update(verdict.margins, failed=verdict.failed)
            count += 1
        hits.append(count if find(evidence) is Verdict.GUILTY else np.inf)
    return float(np.median(hits)), float(np.quantile(hits, 0.95, method="higher"))


def honest_peak(honest: Sequence[ResponseVerdict], *, runs: int, answers: int) -> float:
    """The largest log10 of evidence any of `runs` honest workers' lives of `answers` audits comes to."""
    chance, peak = np.random.default_rng(4), 0.0
    for _ in range(runs):
        evidence = Evidence.none(DEFAULT)
        for place in chance.integers(0, len(honest), answers).tolist():
            evidence = evidence.update(honest[place].margins, failed=honest[place].failed)
        peak = max(peak, evidence.peak)
    return peak


def toploc_fails(chunks: Any) -> float:
    """Share of 32-token chunks beyond TOPLOC's published thresholds: exponents 90, mean 10, median 8."""
    if not len(chunks):
        return float("nan")
    bad = (chunks[:, 0] < 90) | (chunks[:, 1] > 10) | (chunks[:, 2] > 8)
    return float(bad.mean())
