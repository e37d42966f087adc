# SPDX-License-Identifier: Apache-2.0
"""The sequential test: how seldom it wrongs the honest, how soon it finds the rest, what its stored form refuses."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.eprocess import SIZE, Bets, Evidence, combined_log10

M0 = DEFAULT.m0_e6 / 1e6


def margins(chance: random.Random, count: int, share: float) -> list[float]:
    """Mostly 0, and uniform in 0 .. 1 for a `share` of tokens: mean share / 2."""
    return [chance.random() if chance.random() < share else 0.0 for _ in range(count)]


def test_ville_honest_at_the_very_bound_seldom_reach_a_hundred() -> None:
    """JDG-11: P(ever E >= 100) <= 1 % for the worst honest worker there is, looked at after every answer."""
    chance, ever, workers = random.Random(5), 0, 600
    for _ in range(workers):
        evidence = Evidence.none(DEFAULT)
        for _ in range(40):
            failed = chance.random() < DEFAULT.p0_e6 / 1e6
            evidence = evidence.update(margins(chance, 32, 2 * M0), failed=failed)
        ever += evidence.peak >= 2.0
    assert ever / workers <= 0.01 + 3 * math.sqrt(0.01 / workers)


def test_an_honest_worker_is_not_worn_down_by_many_audits() -> None:
    """JDG-11: at half the bound the wealth falls for good."""
    chance, bets = random.Random(6), Bets(bound=M0)
    bets = bets.update(margins(chance, 20_000, M0))
    assert bets.log10 < -1


def test_a_four_bit_swap_is_found_within_three_hundred_tokens() -> None:
    """JDG-11: a mean margin of 0.05, the mildest 4-bit change measured, reaches a million to one."""
    chance, needed = random.Random(7), []
    for _ in range(60):
        bets = Bets(bound=M0)
        while bets.log10 < 6:
            bets = bets.update(margins(chance, 1, 0.104))
        needed.append(bets.count)
    assert sorted(needed)[56] <= 300


def test_a_cheat_on_one_answer_in_five_is_found_by_failed_answers() -> None:
    """JDG-12: the response level sees what the mean over all tokens dilutes."""
    chance, evidence, audits = random.Random(8), Evidence.none(DEFAULT), 0
    while evidence.peak < 6:
        evidence = evidence.update((), failed=chance.random() < 0.18)
        audits += 1
    assert audits < 120


def test_attack_dropped_canaries_count_for_the_worker() -> None:
    """JDG-13: an accuser that leaves out the good answers gains nothing: what is missing counts as passed."""
    shown = Evidence.none(DEFAULT)
    for number in range(400):
        shown = shown.update((), failed=True) if number % 200 == 0 else shown.absent()
    assert shown.answers.count == 400
    assert shown.peak < 3


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(0, 40), st.booleans())
def test_attack_no_answer_says_less_against_a_worker_than_one_that_is_withheld(
    margins: list[float], more: int, failed: bool
) -> None:
    """AUD-54: whatever an answer of at most so many tokens was, each bet has at least as much with it as without."""
    before = Evidence.none(DEFAULT).update([0.4] * 9, failed=True)
    shown, withheld = before.update(margins, failed=failed), before.absent(len(margins) + more)
    for mine, without in ((shown.tokens, withheld.tokens), (shown.answers, withheld.answers)):
        assert all(one >= other - 1e-9 for one, other in zip(mine.logs, without.logs, strict=True))
    assert shown.peak >= withheld.peak - 1e-9


def test_attack_wealth_once_reached_is_not_talked_down() -> None:
    """JDG-11: good answers after the fact do not undo a peak; Ville's bound covers the largest value ever."""
    evidence = Evidence.none(DEFAULT)
    for _ in range(5):
        evidence = evidence.update([0.4] * 64, failed=True)
    peak = evidence.peak
    for _ in range(300):
        evidence = evidence.update([0.0] * 64, failed=False)
    assert peak > 6
    assert evidence.peak >= peak
    assert evidence.log10 < peak


def test_several_judges_give_their_mean_not_their_product() -> None:
    """JDG-14: judges who saw the same answers are no independent evidence."""
    assert combined_log10([3.0, 3.0, 3.0]) == pytest.approx(3.0)
    assert combined_log10([6.0, -20.0]) == pytest.approx(6 - math.log10(2))


@given(st.lists(st.tuples(st.lists(st.floats(0, 1), max_size=20), st.booleans()), max_size=12))
def test_stored_evidence_comes_back(answers: list[tuple[list[float], bool]]) -> None:
    """JDG-14: encode and decode are inverses."""
    evidence = Evidence.none(DEFAULT)
    for values, failed in answers:
        evidence = evidence.update(values, failed=failed)
    assert Evidence.decode(evidence.encode()) == evidence


@given(st.binary(max_size=SIZE + 8))
def test_damaged_rows_of_evidence_are_refused_or_sound(data: bytes) -> None:
    """JDG-14: whatever a store gives back, there is no NaN in the books."""
    try:
        evidence = Evidence.decode(data)
    except MalformedMessage:
        return
    assert math.isfinite(evidence.peak)
    assert evidence.encode() == data


def test_a_number_outside_its_range_is_our_own_fault() -> None:
    """JDG-11: the bound holds for numbers in 0 .. 1 alone."""
    with pytest.raises(ValueError):
        Bets(bound=M0).update([1.5])
