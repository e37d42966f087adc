# SPDX-License-Identifier: Apache-2.0
"""The margin of one token: what honest rounding may do, and what a cheat cannot."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.margin import TIE, Margin, Row, margin, needed
from bombyx.protocol.audit.prf import gumbel
from bombyx.protocol.wire.audit import ALGORITHM, SamplerBlock, SeedSource

SAMPLER = SamplerBlock(
    algorithm=ALGORITHM,
    temperature_e6=700_000,
    top_p_e6=950_000,
    top_k=50,
    presence_e6=0,
    frequency_e6=0,
    max_output=64,
    seed_source=SeedSource.JOINT,
    stop=(),
)
GREEDY = replace(SAMPLER, temperature_e6=0, seed_source=SeedSource.GREEDY)
SEED = 0x0123_4567_89AB_CDEF


def row_of(logits: dict[int, float], token: int, top: int = 55) -> Row:
    """What a Verifier's prefill gives for these logits."""
    ranked = sorted(logits.items(), key=lambda one: (-one[1], one[0]))
    rank = sum(value > logits[token] for value in logits.values())
    return Row(candidates=tuple(ranked[:top]), chosen=logits[token], chosen_rank=rank)


def drawn(logits: dict[int, float], sampler: SamplerBlock, seed: int, position: int) -> int:
    """A worker's draw, written plainly: top_k, softmax at T, top_p, the largest z + T g."""
    ranked = sorted(logits.items(), key=lambda one: (-one[1], one[0]))[: sampler.top_k]
    if sampler.temperature_e6 == 0:
        return ranked[0][0]
    temperature = sampler.temperature_e6 / 1e6
    weights = [2.718281828459045 ** ((z - ranked[0][1]) / temperature) for _, z in ranked]
    left, mass = [], 0.0
    for (token, z), weight in zip(ranked, weights, strict=True):
        left.append((z + temperature * gumbel(seed, position, token), -token))
        mass += weight / sum(weights)
        if mass >= sampler.top_p_e6 / 1e6:
            break
    return -max(left)[1]


def judged(logits: dict[int, float], token: int, sampler: SamplerBlock = SAMPLER, seed: int = SEED) -> Margin:
    return margin(row_of(logits, token), token, position=3, counts={}, sampler=sampler, seed=seed, calibration=DEFAULT)


def some_logits(seed: int, size: int = 200, spread: float = 3.0) -> dict[int, float]:
    chance = random.Random(seed)
    return {token: chance.gauss(0, spread) for token in range(size)}


@given(st.integers(0, 10_000), st.sampled_from((0, 1)), st.integers(1, 50), st.integers(50_000, 1_000_000))
def test_the_seeds_own_choice_has_no_margin(which: int, warm: int, top_k: int, top_p: int) -> None:
    """JDG-1: with the worker's very logits the margin is 0 and nothing is outside, whatever the settings."""
    sampler = replace(SAMPLER if warm else GREEDY, top_k=top_k, top_p_e6=top_p)
    logits = some_logits(which)
    assert judged(logits, drawn(logits, sampler, SEED, 3), sampler) == Margin(value=0.0, outside=False)


@given(
    st.integers(0, 10_000),
    st.integers(1, 50),
    st.integers(50_000, 1_000_000),
    st.sampled_from((1, 50_000, 200_000, 700_000, 1_200_000, 2_000_000)),
    st.floats(0.0, TIE / 2),
)
def test_rounding_moves_a_margin_by_no_more_than_itself(
    which: int, top_k: int, top_p: int, temperature: int, noise: float
) -> None:
    """JDG-2, JDG-3: logits off by at most half a TIE cost at most twice that, and never leave the nucleus.

    The edges of top_k and top_p are where a margin without bands goes wrong by several logits, and where a band of
    fixed mass called honest tokens impossible: four of 40 answers at top_p 0.5.
    """
    sampler = replace(SAMPLER, top_k=top_k, top_p_e6=top_p, temperature_e6=temperature)
    worker = some_logits(which, 200, spread=(which % 6 + 1) / 2)
    chance = random.Random(which + 1)
    verifier = {token: z + chance.choice((-noise, noise, chance.uniform(-noise, noise))) for token, z in worker.items()}
    found = judged(verifier, drawn(worker, sampler, SEED, 3), sampler)
    assert not found.outside
    assert found.value <= 2 * noise + 1e-9


def test_another_seed_costs_whole_logits() -> None:
    """JDG-1: a worker that draws with its own seed is off by 0.3 logits on average, an honest one by 0."""
    total = 0.0
    for which in range(200):
        logits = some_logits(which)
        total += min(1.0, judged(logits, drawn(logits, SAMPLER, SEED ^ 1, 3)).value)
    assert total / 200 > 0.2


def test_a_token_nobody_could_draw_is_outside() -> None:
    """JDG-3: beyond the outer nucleus by more than rounding."""
    logits = {0: 10.0, 1: 9.0, 2: 1.0, 3: 0.5} | dict.fromkeys(range(4, 80), -5.0)
    assert judged(logits, 2).outside
    assert not judged(logits, 1).outside


def test_a_token_beyond_top_k_is_outside_even_without_top_p() -> None:
    """JDG-3: top_k alone bounds the draw when top_p is 1."""
    logits = {token: -token * 0.2 for token in range(80)}
    sampler = replace(SAMPLER, top_p_e6=1_000_000, top_k=5)
    assert judged(logits, 30, sampler).outside
    assert not judged(logits, 5, sampler).outside  # the fifth and sixth are too close to tell


def test_with_top_k_one_nothing_is_drawn() -> None:
    """JDG-2: noise must not count where only one token is left, or a rounded tie would cost ten logits."""
    logits = {0: 5.00, 1: 5.01, 2: 0.0} | dict.fromkeys(range(3, 80), -5.0)
    assert judged(logits, 0, replace(SAMPLER, top_k=1)).value == pytest.approx(0.01)


def test_a_greedy_answer_is_judged_without_any_seed() -> None:
    """JDG-1: at temperature 0 the margin is the distance to the largest logit."""
    logits = {0: 5.0, 1: 4.0, 2: 1.0} | dict.fromkeys(range(3, 80), -5.0)
    assert judged(logits, 1, GREEDY).value == 1.0
    assert judged(logits, 1, GREEDY, seed=99).value == 1.0


def test_penalties_are_applied_as_the_worker_applied_them() -> None:
    """JDG-1: presence once, frequency by count, before anything is cut off."""
    sampler = replace(GREEDY, presence_e6=500_000, frequency_e6=250_000)
    row = row_of({0: 5.0, 1: 4.2} | dict.fromkeys(range(2, 80), -5.0), 1)
    got = margin(row, 1, position=9, counts={0: 2}, sampler=sampler, seed=0, calibration=DEFAULT)
    assert got.value == 0.0  # 5.0 - 0.5 - 2 * 0.25 = 4.0, below 4.2


def test_rows_are_wide_enough_for_what_penalties_push_down() -> None:
    """JDG-1: as many more candidates as the answer may have different tokens."""
    assert needed(SAMPLER, DEFAULT, 64) == 55
    assert needed(replace(SAMPLER, presence_e6=1), DEFAULT, 64) == 119
