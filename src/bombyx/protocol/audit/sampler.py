# SPDX-License-Identifier: Apache-2.0
"""`gumbel-splitmix64-v1`: which token follows, given the logits. The order of steps is normative (spec AUD-4).

    penalties -> top_k -> softmax at T over the survivors -> top_p -> largest of z + T * noise; ties to the lower id

Worker and Verifier run these same lines. Candidates are (id, logit) pairs: the largest logits of a position, as many as
`enough` says, in any order. Temperature 0 is the largest logit after penalties.

Always: IEEE 754 doubles, in the order written here; a result never depends on the order candidates came in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from bombyx.protocol.audit.prf import Noise
from bombyx.protocol.wire.audit import MAX_TOP_K, MILLION, SamplerBlock

Candidate = tuple[int, float]
SPARE: Final = 4  # candidates beyond top_k, for a Verifier's tolerance (Calibration.outer_k)


def enough(sampler: SamplerBlock, distinct: int) -> int:
    """How many of the largest raw logits settle a position after `distinct` different tokens: penalties only lower."""
    return MAX_TOP_K + SPARE + (distinct if sampler.penalised else 0)


def penalise(candidates: Iterable[Candidate], counts: Mapping[int, int], sampler: SamplerBlock) -> list[Candidate]:
    """Candidates after the penalties OpenAI defines over the answer so far, largest first, ties to the lower id."""
    if not sampler.penalised or not counts:
        return in_order(candidates)
    presence, frequency = sampler.presence_e6 / MILLION, sampler.frequency_e6 / MILLION
    lowered = [
        (token, logit - presence - frequency * counts[token]) if token in counts else (token, logit)
        for token, logit in candidates
    ]
    return in_order(lowered)


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Largest logit first, ties to the lower id."""
    return sorted(candidates, key=lambda pair: (-pair[1], pair[0]))


def nucleus(ordered: Sequence[Candidate], *, temperature: float, top_k: int, top_p: float) -> Sequence[Candidate]:
    """What top_k and then top_p leave: the smallest prefix whose share of the survivors' mass reaches top_p."""
    kept = ordered[: max(1, min(top_k, MAX_TOP_K + SPARE))]
    if top_p >= 1.0 or temperature <= 0.0:
        return kept
    largest = kept[0][1]
    masses = [math.exp((logit - largest) / temperature) for _, logit in kept]
    wanted, reached = top_p * sum_in_order(masses), 0.0
    for place, mass in enumerate(masses, start=1):
        reached += mass
        if reached >= wanted:
            return kept[:place]
    return kept


def sum_in_order(values: Iterable[float]) -> float:
    """From the first to the last: `sum` of newer Pythons compensates, and other languages do not."""
    total = 0.0
    for value in values:
        total += value
    return total


def choose(
    candidates: Iterable[Candidate], sampler: SamplerBlock, *, seed: int, position: int, counts: Mapping[int, int]
) -> int:
    """The token at `position` (0: the first of the answer). `counts`: how often each token stands before it."""
    ordered = penalise(candidates, counts, sampler)
    if not sampler.temperature_e6:
        return ordered[0][0]
    temperature = sampler.temperature_e6 / MILLION
    kept = nucleus(ordered, temperature=temperature, top_k=sampler.top_k, top_p=sampler.top_p_e6 / MILLION)
    noise = Noise(seed, position)
    chosen, best = -1, -math.inf
    for token, logit in kept:
        score = logit + temperature * noise.of(token)
        if score > best or (score == best and token < chosen):
            chosen, best = token, score
    return chosen
