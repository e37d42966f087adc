# SPDX-License-Identifier: Apache-2.0
"""The seeded sampler: the published numbers, and what must hold for any logits."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.audit.prf import Noise, gumbel, uniform
from bombyx.protocol.audit.sampler import choose, enough, nucleus, penalise
from bombyx.protocol.wire.audit import ALGORITHM, MAX_TOP_K, MILLION, SamplerBlock, SeedSource

ROWS = st.dictionaries(st.integers(0, 2**20), st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=100).map(
    lambda row: tuple(row.items())
)
SEEDS = st.integers(0, 2**64 - 1)


def sampler(**changes: Any) -> SamplerBlock:
    given_: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "temperature_e6": 700_000,
        "top_p_e6": 950_000,
        "top_k": 50,
        "presence_e6": 0,
        "frequency_e6": 0,
        "max_output": 100,
        "seed_source": SeedSource.JOINT,
        "stop": (),
    } | changes
    if not given_["temperature_e6"]:
        given_["seed_source"] = SeedSource.GREEDY
    return SamplerBlock(**given_)


SAMPLERS = st.builds(
    sampler,
    temperature_e6=st.sampled_from([0, 1, 100_000, 700_000, 2_000_000]),
    top_p_e6=st.sampled_from([1, 500_000, 950_000, 1_000_000]),
    top_k=st.integers(1, MAX_TOP_K),
    presence_e6=st.sampled_from([0, 1_500_000]),
    frequency_e6=st.sampled_from([0, 300_000]),
)


@pytest.fixture(scope="module")
def vectors(repo: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repo / "tests" / "vectors" / "sampler.json").read_text())
    return found


def test_the_noise_is_the_published_noise(vectors: dict[str, Any]) -> None:
    """AUD-2: the same numbers from (seed, position, token) on any machine."""
    for case in vectors["noise"]:
        seed, position, token = int(case["seed"]), case["position"], case["token"]
        assert uniform(seed, position, token) == case["uniform"]
        assert gumbel(seed, position, token) == pytest.approx(case["gumbel"], abs=1e-12)
        assert Noise(seed, position).of(token) == gumbel(seed, position, token)
    assert gumbel(42, 7, 5) == pytest.approx(-1.270535, abs=1e-6)  # as the research that found the method has it


def test_the_choices_are_the_published_choices(vectors: dict[str, Any]) -> None:
    """AUD-4: penalties, top_k, temperature, top_p, noise; in that order, ties to the lower id."""
    for case in vectors["choices"]:
        names = ("temperature_e6", "top_p_e6", "top_k", "presence_e6", "frequency_e6")
        block = sampler(**{name: case[name] for name in names})
        logits, counts = [tuple(pair) for pair in case["logits"]], dict(case["counts"])
        ordered = penalise(logits, counts, block)
        kept = nucleus(
            ordered, temperature=block.temperature_e6 / MILLION, top_k=block.top_k, top_p=block.top_p_e6 / MILLION
        )
        assert [token for token, _ in kept] == case["kept"]
        for position, wanted in enumerate(case["chosen"]):
            assert choose(logits, block, seed=int(case["seed"]), position=position, counts=counts) == wanted


def test_the_vectors_are_what_the_script_makes(repo: Path) -> None:
    """AUD-4: the file in the repository was not edited by hand."""
    script = [sys.executable, str(repo / "scripts" / "sampler_vectors.py"), "--check"]
    assert subprocess.run(script, check=False).returncode == 0


@given(seed=SEEDS, position=st.integers(0, 2**31), token=st.integers(0, 2**31))
def test_noise_is_always_a_finite_number(seed: int, position: int, token: int) -> None:
    """AUD-2: strictly between 0 and 1, so that both logarithms exist."""
    assert 0 < uniform(seed, position, token) < 1
    assert math.isfinite(gumbel(seed, position, token))


def test_the_highest_bits_do_not_round_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUD-2: (2^53 - 1/2) / 2^53 is no double; what would round up to 1 is the number just below."""
    monkeypatch.setattr("bombyx.protocol.audit.prf._mix", lambda _: (1 << 64) - 1)
    assert uniform(1, 2, 3) == 1 - 2**-53
    assert math.isfinite(gumbel(1, 2, 3))


@given(row=ROWS, block=SAMPLERS, seed=SEEDS, shuffled=st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(row: Any, block: SamplerBlock, seed: int, shuffled: Any) -> None:
    """AUD-4: a worker's and a Verifier's candidates may come in any order."""
    mixed = list(row)
    shuffled.shuffle(mixed)
    counts = {token: 2 for token, _ in row[::3]}
    assert choose(row, block, seed=seed, position=4, counts=counts) == choose(
        mixed, block, seed=seed, position=4, counts=counts
    )


@given(row=ROWS, block=SAMPLERS, seed=SEEDS)
def test_what_is_chosen_was_left_in(row: Any, block: SamplerBlock, seed: int) -> None:
    """AUD-4: nothing outside top_k and top_p is ever chosen."""
    ordered = penalise(row, {}, block)
    kept = nucleus(
        ordered, temperature=block.temperature_e6 / MILLION, top_k=block.top_k, top_p=block.top_p_e6 / MILLION
    )
    assert 1 <= len(kept) <= block.top_k
    assert choose(row, block, seed=seed, position=0, counts={}) in {token for token, _ in kept}


@given(row=ROWS, block=SAMPLERS, seed=SEEDS, seen=st.lists(st.integers(0, 99), max_size=8))
def test_so_many_candidates_are_enough(row: Any, block: SamplerBlock, seed: int, seen: list[int]) -> None:
    """AUD-4: candidates below `enough` cannot be chosen, whatever penalties do to those above."""
    ranked = sorted(row, key=lambda pair: (-pair[1], pair[0]))
    counts = {ranked[place][0]: 3 for place in seen if place < len(ranked)}
    few = ranked[: enough(block, len(counts))]
    assert choose(few, block, seed=seed, position=1, counts=counts) == choose(
        row, block, seed=seed, position=1, counts=counts
    )


@given(row=ROWS, seed=SEEDS, position=st.integers(0, 999))
def test_temperature_zero_takes_the_largest_and_the_lower_id(row: Any, seed: int, position: int) -> None:
    """AUD-4: no seed is needed for greedy answers."""
    wanted = min(row, key=lambda pair: (-pair[1], pair[0]))[0]
    assert choose(row, sampler(temperature_e6=0), seed=seed, position=position, counts={}) == wanted


def test_equal_scores_go_to_the_lower_id() -> None:
    """AUD-4: ties are broken the same way everywhere."""
    block = sampler(temperature_e6=0)
    assert choose([(9, 1.0), (3, 1.0), (7, 1.0)], block, seed=0, position=0, counts={}) == 3


def test_noise_draws_from_the_softmax() -> None:
    """AUD-2: over many positions tokens come as often as softmax at T says."""
    row, block = [(0, 2.0), (1, 1.0), (2, 0.0)], sampler(temperature_e6=1_000_000, top_p_e6=1_000_000)
    drawn = [choose(row, block, seed=5, position=position, counts={}) for position in range(20_000)]
    masses = [math.exp(logit) for _, logit in row]
    for token in range(3):
        assert drawn.count(token) / 20_000 == pytest.approx(masses[token] / sum(masses), abs=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 0},
        {"top_k": 65},
        {"temperature_e6": 2_000_001},
        {"top_p_e6": 0},
        {"presence_e6": 2_000_001},
        {"stop": ("x",) * 17},
        {"stop": ("x" * 1025,)},
        {"seed_source": SeedSource.GREEDY},
    ],
)
def test_a_block_out_of_bounds_cannot_be_made(wrong: dict[str, Any]) -> None:
    """AUD-5: a worker cannot claim settings nobody could check."""
    with pytest.raises(ValueError):
        sampler(**wrong)
