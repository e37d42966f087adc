# SPDX-License-Identifier: Apache-2.0
"""The proxy's choice among a request's k candidates (spec MKT-5): least expected finish x price factor / reputation.

Not here: who the candidates are (the client drew them) and any state (the proxy keeps one `WorkerStats` per worker).
Always: a worker without a free place, or an ejected one, comes after those that can serve at once; one where many
wait is not tried; the ranking holds all who can, best first; the reason is returned in words, for the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bombyx.protocol.market.stats import WorkerStats, slowdown
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.quick import quick

PRICE_WEIGHT: Final = 0.5  # twice the price counts as 1.41 times the time
FULL_PROGRESS: Final = 0.5  # a request that runs is, on average, half done
WAITING_SHARE: Final = 2  # one may wait for every two places: a burst is served, and nobody waits long


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests a worker runs, requests that wait there, and how many it runs at once."""

    active: int
    queued: int
    capacity: int

    @property
    def share(self) -> float:
        return self.active / max(1, self.capacity)

    @property
    def full(self) -> bool:
        """No place is free: one more would wait."""
        return self.active + self.queued >= self.capacity

    @property
    def closed(self) -> bool:
        """One more would wait too long."""
        beyond, capacity = self.active + self.queued - self.capacity, self.capacity
        return beyond >= 0 and (capacity <= 0 or beyond >= (capacity // WAITING_SHARE or 1))


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One candidate as the proxy knows it: what it would charge, how busy it is, what was seen of it."""

    worker: Digest
    price: Amount
    load: Load
    stats: WorkerStats


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`worker` is None when nobody can serve now; `ranking` holds all who can, best first."""

    worker: Digest | None
    ranking: tuple[Digest, ...]
    why: str


def expected_seconds(contender: Contender, output_units: int, now: float) -> float:
    """Expected time to the last frame: wait for a free slot, first frame, then the units at the present load."""
    load = contender.load
    first_frame, seconds_per_unit = contender.stats.speeds(now)
    slower = slowdown((load.active + 1) / max(1, load.capacity))
    service = (first_frame + seconds_per_unit * output_units) * slower
    waiting = load.queued + max(0, load.active + 1 - load.capacity)
    return service + waiting * service * FULL_PROGRESS / max(1, load.capacity)


def choose(contenders: Sequence[Contender], *, output_units: int, now: float, lottery: float) -> Choice:
    """Rank the contenders. `now` is monotonic seconds; `lottery` in [0, 1) breaks ties and lets probes through."""
    able = [c for c in contenders if not c.load.closed]
    if not able:
        return Choice(worker=None, ranking=(), why=f"all {len(contenders)} candidates are full")
    cheapest = max(1, min([c.price for c in able]))
    start = int(lottery * len(able))
    weighed = []
    for place, contender in enumerate(able[start:] + able[:start]):  # ties fall to whoever the lottery puts first
        stats, price = contender.stats, max(1, contender.price)
        factor = (price / cheapest) ** PRICE_WEIGHT if price != cheapest else 1.0
        score = expected_seconds(contender, output_units, now) * factor / stats.reputation()
        weighed.append((_CLASS[stats.standing(now)] + contender.load.full * _WAITS, score, place, contender))
    weighed.sort()
    standing, least, _, best = weighed[0]
    why = f"{_WORDS[standing]}, expected {least:.2f} s, {len(weighed)} of {len(contenders)} able"
    return Choice(worker=best.worker, ranking=tuple([one.worker for *_, one in weighed]), why=why)


# A half-open worker goes first: its one probe is how it comes back, and a probe that fails costs one failover.
_CLASS: Final = {"half-open": 0, "open": 1, "ejected": 4}
_WAITS: Final = 2
_WORDS: Final = {at + more: name + how for name, at in _CLASS.items() for more, how in ((0, ""), (_WAITS, ", waits"))}
