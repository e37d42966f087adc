# SPDX-License-Identifier: Apache-2.0
"""What honest answers look like: from measured margins to a `Calibration`, and its file (spec JDG-6, JDG-7).

`calibrate` takes the verdicts of honest configurations, one group each: other threads, batches, slots, decode against
prefill. m0 is twice the worst mean of a configuration, or of a kind of question: whoever accuses chooses the seeds. p0
is at least the upper 95 % bound on honest failures (Clopper-Pearson), so that a small measurement gives a weak claim,
never a false one.

Not here: how the answers are made (`bombyx calibrate`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.wire.audit import MILLION, Calibration

FAMILY: Final = "llama.cpp/cpu"
M0_FACTOR: Final = 2  # over the worst honest configuration: machines nobody measured
M0_FLOOR_E6: Final = 1_000  # logits, millionths; a bound near 0 would make one rounded token look like a fraud
MAX_FILE: Final = 4_096  # bytes

# What SmolLM2-135M and Gemma-3-270M on llama.cpp/CPU came to; the start for a model nobody measured.
DEFAULT: Final = Calibration(
    family=FAMILY,
    m0_e6=7_000,
    core_e6=30_000,
    outer_e6=20_000,
    outer_k=4,
    clip_e6=MILLION,
    hard_e6=2 * MILLION,
    mean_fail_e6=30_000,
    min_tokens=32,
    p0_e6=10_000,
    responses=0,
    tokens=0,
)


def calibrate(
    groups: Mapping[str, Sequence[ResponseVerdict]],
    start: Calibration,
    *,
    kinds: Mapping[str, Sequence[ResponseVerdict]] | None = None,
) -> Calibration:
    """A Calibration from honest answers that were judged with `start`. Raises `ValueError` without any.

    `kinds`: the same answers, by what was asked; they bound the mean as configurations do, and count no second time.
    """
    answers = [verdict for group in groups.values() for verdict in group]
    tokens = sum(verdict.tokens for verdict in answers)
    if not tokens:
        raise ValueError("JDG-6: no honest answer to calibrate with")
    worst = max(group_mean(group) for group in (*groups.values(), *(kinds or {}).values()) if group)
    failed = sum(verdict.failed for verdict in answers)
    p0 = max(start.p0_e6, math.ceil(upper_bound(failed, len(answers)) * MILLION))
    m0 = max(M0_FLOOR_E6, math.ceil(M0_FACTOR * worst * MILLION))
    return replace(start, m0_e6=m0, p0_e6=min(p0, MILLION // 2), responses=len(answers), tokens=tokens)


def group_mean(group: Sequence[ResponseVerdict]) -> float:
    """Mean clipped margin over all tokens of a configuration, in logits."""
    tokens = sum(verdict.tokens for verdict in group)
    return math.fsum(verdict.mean_margin * verdict.tokens for verdict in group) / tokens if tokens else 0.0


def upper_bound(hits: int, tries: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's exact upper bound on a probability, one-sided; 0 of 59 gives 0.05."""
    if not 0 <= hits <= tries or not tries:
        raise ValueError("hits lie in 0 .. tries, tries above 0")
    if hits == tries:
        return 1.0
    low, high = hits / tries, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(hits, tries, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(hits: int, tries: int, p: float) -> float:
    """P(binomial <= hits), in logarithms: thousands of tries underflow otherwise."""
    if p <= 0.0 or p >= 1.0:
        return 1.0 if p <= 0.0 else 0.0
    terms = (
        math.lgamma(tries + 1) - math.lgamma(n + 1) - math.lgamma(tries - n + 1)
        + n * math.log(p) + (tries - n) * math.log1p(-p)
        for n in range(hits + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, terms))


def to_json(calibration: Calibration) -> str:
    """The file a manifest takes."""
    return json.dumps(asdict(calibration), indent=2) + "\n"


def from_json(text: str | bytes) -> Calibration:
    """Raises `MalformedMessage` for anything but the fields of a Calibration within sensible bounds."""
    if len(text) > MAX_FILE:
        raise MalformedMessage(f"a calibration of more than {MAX_FILE} bytes", peer=Peer.UNKNOWN, rule="JDG-7")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedMessage("a calibration that is not JSON", peer=Peer.UNKNOWN, rule="JDG-7") from None
    names = {field.name for field in fields(Calibration)}
    if not isinstance(found, dict) or set(found) != names:
        raise MalformedMessage("a calibration with other fields than it has", peer=Peer.UNKNOWN, rule="JDG-7")
    return checked(_read(found))


def _read(found: dict[str, Any]) -> Calibration:
    numbers = {name: value for name, value in found.items() if name != "family"}
    if not isinstance(found["family"], str) or not all(type(value) is int for value in numbers.values()):
        raise MalformedMessage("a calibration whose numbers are not whole", peer=Peer.UNKNOWN, rule="JDG-7")
    return Calibration(**found)


def checked(c: Calibration) -> Calibration:
    """A Calibration that a Verifier can work with: a careless or hostile manifest must not make it divide by zero."""
    good = (
        0 < c.m0_e6 < c.clip_e6 // 4 <= MILLION
        and 0 < c.p0_e6 <= MILLION // 2
        and c.clip_e6 <= c.hard_e6 <= 64 * MILLION
        and 0 < c.mean_fail_e6 <= c.clip_e6
        and 0 <= c.core_e6 < MILLION
        and 0 <= c.outer_e6 < MILLION
        and 0 <= c.outer_k <= 64
        and 1 <= c.min_tokens <= 4_096
        and 0 <= c.responses < 1 << 48
        and 0 <= c.tokens < 1 << 48
        and 0 < len(c.family) <= 64
    )
    if not good:
        raise MalformedMessage("a calibration whose numbers contradict each other", peer=Peer.UNKNOWN, rule="JDG-7")
    return c
