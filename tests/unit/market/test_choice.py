# SPDX-License-Identifier: Apache-2.0
"""The proxy's choice: speed, price, reputation, ejection and the way back."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bombyx.protocol.market import Contender, Load, WorkerStats, choose
from bombyx.protocol.market.stats import BACKOFF_FIRST, BACKOFF_MOST, PROBE_SECONDS
from bombyx.protocol.primitives import Amount, Digest

FRESH = WorkerStats.fresh("cpu")


def contender(
    name: str, *, stats: WorkerStats = FRESH, price: int = 100, active: int = 0, queued: int = 0
) -> Contender:
    worker = Digest(hashlib.sha256(name.encode()).digest())
    return Contender(
        worker=worker, price=Amount(price), load=Load(active=active, queued=queued, capacity=4), stats=stats
    )


def ejected(at: float) -> WorkerStats:
    stats = FRESH
    for _ in range(3):
        stats = stats.failed(at)
    return stats


def first(*contenders: Contender, now: float = 0.0, lottery: float = 0.0) -> Digest | None:
    return choose(contenders, output_units=128, now=now, lottery=lottery).worker


def test_the_faster_worker_wins_and_the_other_is_next() -> None:
    """MKT-5: least expected finish; the ranking is the failover order."""
    slow, quick = contender("slow", stats=FRESH.finished(0, 100, 10, 0.2)), contender("quick")
    choice = choose([slow, quick], output_units=128, now=0, lottery=0)
    assert choice.ranking == (quick.worker, slow.worker)


def test_the_cheaper_worker_wins_among_equals() -> None:
    """MKT-5: price factor."""
    assert first(contender("dear", price=400), contender("cheap", price=100)) == contender("cheap").worker


def test_a_busy_worker_yields_to_an_idle_one_and_a_full_one_comes_last() -> None:
    """MKT-5: load counts; who would have to wait comes after who can serve at once."""
    assert first(contender("busy", active=3), contender("idle")) == contender("idle").worker
    slow = contender("slow", stats=FRESH.finished(0, 1, 1_000, 0), active=3)
    choice = choose([contender("full", active=4), slow], output_units=64, now=0, lottery=0)
    assert choice.ranking == (slow.worker, contender("full").worker)


def test_where_all_are_full_the_shortest_queue_is_joined() -> None:
    """MKT-5: a burst waits its turn at a worker instead of being turned away."""
    long, short = contender("long", active=4, queued=1), contender("short", active=4)
    choice = choose([long, short], output_units=64, now=0, lottery=0)
    assert choice.ranking == (short.worker, long.worker)
    assert "waits" in choice.why


def test_where_every_queue_is_full_nobody_is_asked_in_vain() -> None:
    """MKT-5: one waits for every two places, so that who is let in is served in time; no place is no queue either."""
    crowded = contender("crowded", active=4, queued=2)
    none = replace(contender("none"), load=Load(active=0, queued=0, capacity=0))
    nobody = choose([crowded, none], output_units=1, now=0, lottery=0.99)
    assert nobody.worker is None
    assert "full" in nobody.why
    assert first(contender("last place", active=4, queued=1)) is not None
    one = Load(active=1, queued=0, capacity=1)
    assert not one.closed
    assert replace(one, queued=1).closed


def test_a_queue_at_a_sound_worker_is_better_than_an_ejected_one() -> None:
    """MKT-5, MKT-7."""
    out = contender("out", stats=ejected(at=0.0))
    assert first(out, contender("queue", active=4), now=1.0) == contender("queue").worker


def test_fast_failures_do_not_look_fast() -> None:
    """MKT-6: a failure leaves the speed as it was and lowers the reputation."""
    failing = FRESH.failed(1.0)
    assert failing.seconds_per_unit == FRESH.faded(1.0).seconds_per_unit
    assert first(contender("failing", stats=failing), contender("fresh"), now=1.0) == contender("fresh").worker


def test_three_failures_in_a_row_eject_and_one_probe_brings_back() -> None:
    """MKT-7: ejected for a back-off, then half-open: one probe at a time, a success opens."""
    stats = ejected(at=0.0)
    assert stats.standing(BACKOFF_FIRST - 0.1) == "ejected"
    assert stats.standing(BACKOFF_FIRST) == "half-open"
    probing = stats.dispatched(BACKOFF_FIRST)
    assert probing.standing(BACKOFF_FIRST + 1) == "ejected", "a second request is no probe"
    assert probing.finished(BACKOFF_FIRST + 2, 10, 1.0, 0.1).standing(BACKOFF_FIRST + 2) == "open"


def test_a_failed_probe_doubles_the_back_off_up_to_a_limit() -> None:
    """MKT-7: the pause doubles and is bounded."""
    stats, now = ejected(at=0.0), 0.0
    for _ in range(40):
        now = max(now, stats.ejected_until)
        stats = stats.dispatched(now).failed(now)
        assert stats.ejected_until - now <= BACKOFF_MOST
    assert stats.ejected_until - now == BACKOFF_MOST


def test_a_lost_probe_does_not_block_for_ever() -> None:
    """MKT-7: a probe that never comes back is forgotten after its time."""
    probing = ejected(at=0.0).dispatched(BACKOFF_FIRST)
    assert probing.standing(BACKOFF_FIRST + PROBE_SECONDS) == "half-open"


def test_ejected_workers_come_last_but_still_serve_when_nobody_else_can() -> None:
    """MKT-7: ejection is a preference, not an outage."""
    out = contender("out", stats=ejected(at=0.0))
    assert first(out, contender("in"), now=1.0) == contender("in").worker
    assert first(out, now=1.0) == out.worker


def test_old_slowness_fades() -> None:
    """MKT-8: without news the speed drifts back to the prior."""
    slow = FRESH.finished(0.0, 10, 100.0, 0.0)
    assert slow.faded(100_000.0).seconds_per_unit < 1.01 * FRESH.seconds_per_unit < slow.seconds_per_unit


def test_an_observation_beside_others_is_not_held_against_the_worker() -> None:
    """MKT-8: speed is kept at zero load."""
    alone = FRESH.finished(0.0, 100, 2.0, 0.0)
    beside = FRESH.finished(0.0, 100, 4.0, 1.0)
    assert alone.seconds_per_unit == beside.seconds_per_unit


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 5)), max_size=8),
    st.floats(0, 0.999),
)
def test_a_choice_is_always_one_of_those_who_can(entries: list[tuple[int, int, int]], lottery: float) -> None:
    """MKT-5: the ranking is exactly the able ones, whatever is observed."""
    people = []
    for number, (active, price, failures) in enumerate(entries):
        stats = FRESH
        for _ in range(failures):
            stats = stats.failed(1.0)
        people.append(contender(str(number), stats=stats, price=price, active=active))
    choice = choose(people, output_units=64, now=2.0, lottery=lottery)
    able = {c.worker for c in people if not c.load.closed}
    assert set(choice.ranking) == able
    assert choice.worker == (choice.ranking[0] if able else None)
