# SPDX-License-Identifier: Apache-2.0
"""How far an emitted token lies from the one the seed demands: the nucleus-band margin (spec JDG-1 .. JDG-4).

A Verifier's logits are never bit for bit the worker's, so "which token" cannot be compared; "by how much it lost" can.
The margin is max(z_v + T g_v) over rivals v, minus z_y + T g_y of the emitted token y, and 0 if y wins. Rounding moves
it by hundredths; a model quantised to 4 bits by tenths; another seed by whole logits.

Rounding also moves tokens over the edge of what top_p and top_k leave. So a rival counts only if it is left even when
everything within `TIE` of it ranks above it, all that is above it gains `TIE` on the rest, and `core` less mass is
kept. A token is *outside* only if it is cut off even when everything within `TIE` of it ranks below it, all that is
above it loses `TIE` against the rest, and `outer` more mass, `outer_k` more tokens are kept. The edge moves by logits,
not by a share of mass: at top_p 0.5 the same rounding moves several times the mass it moves at 0.95.

So, where every logit is off by at most `TIE` / 2, an honest margin is at most `TIE` and no honest token is outside, at
any temperature, top_k and top_p.

Not here: where rows come from (`ports.Prefill`), and what a whole answer's margins mean (`verdict.py`).
Always: pure Python floats; nothing depends on the size or order of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bombyx.protocol.audit.prf import gumbel
from bombyx.protocol.wire.audit import MILLION, Calibration, SamplerBlock

TIE: Final = 0.5  # logits; honest runs move a logit by 0.15 on average, two of a thousand by more than this
LARGE: Final = 600.0  # exp of this is still a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the claimed model says of one output position: its best candidates, and the emitted token's own logit.

    `candidates` are (id, logit) by falling logit, ties by id; at least top_k + outer_k of them after the row's
    penalties (`needed`). `chosen_rank` counts the tokens before it in that order.
    """

    candidates: tuple[tuple[int, float], ...]
    chosen: float
    chosen_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """By how much a token lost, in logits; `outside`: no honest worker could have drawn it at all."""

    value: float
    outside: bool


def needed(sampler: SamplerBlock, calibration: Calibration, output: int) -> int:
    """How many candidates a row must hold: penalties may push down as many as the answer has different tokens."""
    spare = output if sampler.penalised else 0
    return sampler.top_k + calibration.outer_k + 1 + spare


def margin(
    row: Row,
    token: int,
    *,
    position: int,
    counts: Mapping[int, int],
    sampler: SamplerBlock,
    seed: int,
    calibration: Calibration,
) -> Margin:
    """The margin of `token` at output position `position`; `counts` are the answer's tokens before it."""
    candidates = penalised(row.candidates, counts, sampler)
    chosen = row.chosen - penalty(counts.get(token, 0), sampler)
    if sampler.temperature_e6 == 0 or sampler.top_k == 1:  # nothing is drawn
        return Margin(value=max(0.0, candidates[0][1] - chosen), outside=False)
    temperature = sampler.temperature_e6 / MILLION
    masses = _masses(candidates, temperature, sampler.top_k)
    rivals = _core(candidates, masses, sampler, calibration)
    own = chosen + temperature * gumbel(seed, position, token)
    best = max((logit + temperature * gumbel(seed, position, rival) for rival, logit in rivals), default=own)
    outside = _is_outside(candidates, masses, chosen, sampler, calibration)
    return Margin(value=max(0.0, best - own), outside=outside)


def penalty(count: int, sampler: SamplerBlock) -> float:
    """What OpenAI's penalties take from a token that the answer holds `count` times."""
    if count == 0:
        return 0.0
    return (sampler.presence_e6 + count * sampler.frequency_e6) / MILLION


def penalised(
    candidates: Sequence[tuple[int, float]], counts: Mapping[int, int], sampler: SamplerBlock
) -> Sequence[tuple[int, float]]:
    """The candidates after penalties, in order again."""
    if not sampler.penalised or not counts:
        return candidates
    lowered = [(token, logit - penalty(counts.get(token, 0), sampler)) for token, logit in candidates]
    return sorted(lowered, key=lambda one: (-one[1], one[0]))


def _masses(candidates: Sequence[tuple[int, float]], temperature: float, top_k: int) -> list[float]:
    """Cumulated probability at T, normed over the first `top_k`, as the sampler norms it: masses[n] of the first n."""
    top = candidates[0][1]
    weights = [math.exp((logit - top) / temperature) for _, logit in candidates]
    whole, sums = math.fsum(weights[:top_k]), [0.0]
    for weight in weights:
        sums.append(sums[-1] + weight / whole)
    return sums


def _core(
    candidates: Sequence[tuple[int, float]], masses: Sequence[float], sampler: SamplerBlock, calibration: Calibration
) -> list[tuple[int, float]]:
    """The candidates that every honest worker had in its draw."""
    kept = (sampler.top_p_e6 - calibration.core_e6) / MILLION if sampler.top_p_e6 < MILLION else math.inf
    core, end = [], 0
    for place, (token, logit) in enumerate(candidates[: sampler.top_k]):
        while end < len(candidates) and candidates[end][1] > logit - TIE:
            end += 1
        above = masses[end] - (masses[place + 1] - masses[place])  # everything that may rank above it, itself left out
        if end <= sampler.top_k and (moved(above, TIE, sampler) < kept or end == 1):
            core.append((token, logit))
    return core


def _is_outside(
    candidates: Sequence[tuple[int, float]],
    masses: Sequence[float],
    chosen: float,
    sampler: SamplerBlock,
    calibration: Calibration,
) -> bool:
    """Whether no honest worker had a token of this logit in its draw."""
    above = 0
    while above < len(candidates) and candidates[above][1] > chosen + TIE:
        above += 1
    if above >= sampler.top_k + calibration.outer_k:
        return True
    if sampler.top_p_e6 == MILLION:
        return False
    return moved(masses[above], -TIE, sampler) >= (sampler.top_p_e6 + calibration.outer_e6) / MILLION


def moved(mass: float, logits: float, sampler: SamplerBlock) -> float:
    """The mass of some tokens after their logits all moved by so much against those of all others; 0 and 1 stay."""
    if not 0.0 < mass < 1.0:
        return min(1.0, max(0.0, mass))
    log_odds = math.log(mass / (1.0 - mass)) + logits * MILLION / sampler.temperature_e6
    return 1.0 / (1.0 + math.exp(-log_odds)) if log_odds > -LARGE else 0.0
