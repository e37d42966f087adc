# SPDX-License-Identifier: Apache-2.0
"""MKT-10 .. MKT-12: honest proxies are left in peace at the stated rate, dishonest ones are found in stated time."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.market.choice import Contender, Load, choose
from bombyx.protocol.market.stats import WorkerStats
from bombyx.protocol.market.suspicion import (
    MISSING,
    WORSE,
    Measured,
    Series,
    clearly_better,
    tail,
    too_many_missing,
)
from bombyx.protocol.primitives import Amount, sha256


def alarmed(series: Series, hits: list[bool], rate: float) -> int | None:
    """After how many looks, or None."""
    for count, hit in enumerate(hits, start=1):
        series = series.look(hit=hit)
        if series.alarms(rate):
            return count
    return None


@pytest.mark.parametrize("bound", [MISSING, WORSE])
def test_chance_alone_alarms_no_more_often_than_stated(bound: float) -> None:
    """MKT-10: at the bound itself, looked at after every step; 600 lives of 100 looks at a rate of 5 %."""
    chance = random.Random(b"honest at the bound")
    rate = 0.05 * 2  # the first series has half of the whole rate
    lives = [
        alarmed(Series(bound=bound, rank=1), [chance.random() < bound for _ in range(100)], rate) for _ in range(600)
    ]
    false = sum(life is not None for life in lives)
    assert false <= 600 * 0.05 + 3 * math.sqrt(600 * 0.05 * 0.95)


def test_many_series_share_one_rate() -> None:
    """MKT-10: 20 workers watched at once, honest at the bound: together they alarm no more often than stated."""
    chance = random.Random(b"twenty workers")
    lives = 100
    false = 0
    for _ in range(lives):
        false += any(
            alarmed(Series(bound=MISSING, rank=rank), [chance.random() < MISSING for _ in range(40)], 0.05)
            for rank in range(1, 21)
        )
    assert false <= lives * 0.05 + 3 * math.sqrt(lives * 0.05 * 0.95)


@pytest.mark.parametrize(("share", "within"), [(1.0, 7), (0.5, 60)])
def test_a_hidden_worker_is_missed(share: float, within: int) -> None:
    """MKT-11: hidden always it is noticed within a morning of hourly looks; every other time, within days."""
    chance = random.Random(b"hiding")
    found = [
        alarmed(Series(bound=MISSING, rank=3), [chance.random() < share for _ in range(within)], 1e-3)
        for _ in range(200)
    ]
    assert sum(one is not None for one in found) >= 190


@given(st.integers(0, 60), st.integers(0, 60))
def test_more_hits_never_calm(hits: int, misses: int) -> None:
    """MKT-10: evidence grows with each hit above the bound's own share."""
    series = Series(bound=MISSING, rank=1, looks=hits + misses, hits=hits)
    assert series.look(hit=True).log_evidence >= series.look(hit=False).log_evidence


def test_the_tail_is_the_binomials() -> None:
    """MKT-11: exact, and one directory that lacks nearly everybody is noticed at once."""
    assert tail(0, 7, 0.3) == pytest.approx(1.0)
    assert tail(2, 3, 0.1) == pytest.approx(3 * 0.01 * 0.9 + 0.001)
    assert too_many_missing(6, 6)
    assert not too_many_missing(2, 6)
    assert not too_many_missing(0, 0)
    assert not too_many_missing(2, 2)  # two workers are too few to tell


def test_only_what_was_measured_is_compared() -> None:
    """MKT-12: a rival nobody measured, or one that is a little better, or better in one thing alone, proves nothing."""
    worker = Measured(price=100, pace=1.0)
    assert clearly_better(Measured(price=100, pace=0.6), worker)
    assert clearly_better(Measured(price=60, pace=1.0), worker)
    assert not clearly_better(Measured(price=60, pace=None), worker)
    assert not clearly_better(Measured(price=90, pace=0.9), worker)
    assert not clearly_better(Measured(price=50, pace=1.1), worker)
    assert not clearly_better(worker, worker)


# --- a market, simulated ---------------------------------------------------------------------------------------------


def market(chance: random.Random, favourite: int | None, requests: int, *, rate: float) -> bool:
    """Whether `favours` alarms on anybody. Workers differ in speed, load comes and goes; receipts tell the pace."""
    speeds = [0.02 * (1 + chance.random() * 2) for _ in range(6)]
    prices = [chance.choice((80, 100, 130)) for _ in speeds]
    names = [sha256(bytes([n])) for n in range(6)]
    stats = [WorkerStats.fresh("cpu") for _ in speeds]
    series: dict[int, Series] = {}
    paces: dict[int, float] = {}
    busy = [0] * 6
    for now in range(requests):
        busy = [min(3, max(0, b + chance.choice((-1, 0, 1)))) for b in busy]
        drawn = chance.sample(range(6), 1 if chance.random() < 0.1 else 3)
        contenders = [
            Contender(
                worker=names[n],
                price=Amount(prices[n]),
                load=Load(active=busy[n], queued=0, capacity=4),
                stats=stats[n],
            )
            for n in drawn
        ]
        picked = choose(contenders, output_units=100, now=float(now), lottery=chance.random()).worker
        winner = favourite if favourite in drawn else next(n for n in drawn if names[n] == picked)
        measured = {n: Measured(price=prices[n], pace=paces.get(n)) for n in drawn}
        for n in drawn:
            if any(clearly_better(measured[m], measured[n]) for m in drawn if m != n):
                series[n] = series.get(n, Series(bound=WORSE, rank=len(series) + 1)).look(hit=n == winner)
                if series[n].alarms(rate):
                    return True
        took = speeds[winner] * (1 + 0.3 * busy[winner]) * chance.uniform(0.8, 1.25)
        stats[winner] = (
            stats[winner].first_frame_seen(now, 0.1, busy[winner] / 4).finished(now, 100, took * 100, busy[winner] / 4)
        )
        paces[winner] = paces.get(winner, took) + 0.2 * (took - paces.get(winner, took))
    return False


def test_an_honest_market_is_left_in_peace() -> None:
    """MKT-12: the proxy's real choice, with loads that change: 20 lives of 300 requests, no alarm at 1 in 1 000."""
    chance = random.Random(b"an honest market")
    assert sum(market(chance, None, 300, rate=1e-3) for _ in range(20)) == 0


def test_a_favourite_that_is_not_the_best_is_found() -> None:
    """MKT-12: picked whenever drawn, it is found in a few hundred requests unless it really is the best."""
    chance = random.Random(b"a favourite")
    assert sum(market(chance, 0, 600, rate=1e-3) for _ in range(12)) >= 6
