# SPDX-License-Identifier: Apache-2.0
"""What is forgotten of receipts, and what never is (RCT-11)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.pay.retention import LEAST_AGE, Retention
from bombyx.protocol.primitives import Instant

START = Instant(1_800_000_000_000)


def later(seconds: float) -> Instant:
    return START.plus(seconds=seconds)


def test_by_age_and_by_count_the_oldest_first() -> None:
    """RCT-11: each bound by itself is enough."""
    kept = Retention(most=2, seconds=10 * LEAST_AGE)
    for number in range(4):
        assert kept.note(bytes([number]), later(number)) is not None
    assert kept.note(b"\x00", later(9)) is None, "the same receipt again"
    assert kept.prune(later(LEAST_AGE - 1)) == []
    assert [key for _, key in kept.prune(later(LEAST_AGE + 4))] == [b"\x00", b"\x01"]
    assert [key for _, key in kept.prune(later(10 * LEAST_AGE + 2))] == [b"\x02"]


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=60), st.integers(0, 50), st.floats(0, 1e7))
def test_the_index_gives_the_same_back_and_nothing_young_goes(ages: list[float], most: int, seconds: float) -> None:
    """RCT-11: over restarts, too."""
    first, now = Retention(most=most, seconds=seconds), later(1e7)
    index = [first.note(number.to_bytes(2), later(at)) for number, at in enumerate(sorted(ages))]
    second = Retention(most=most, seconds=seconds)
    second.load([key for key in index if key is not None])
    gone = first.prune(now)
    assert gone == second.prune(now)
    assert all((now - Instant(int.from_bytes(key[:8]))) / 1000 >= LEAST_AGE for key, _ in gone)
    assert {key for key, _ in gone} <= set(index)
