# SPDX-License-Identifier: Apache-2.0
"""When is a proxy's conduct more than bad luck? Tests with a stated rate of false alarms (spec MKT-10 .. MKT-12).

A `Series` watches one thing that an honest proxy does with probability at most p, whatever came before: leaving out a
worker that others list; picking a worker although a clearly better one was on offer. It bets against that bound: each
look multiplies the wealth of several bets by q/p on a hit, (1-q)/(1-p) on a miss. While the bound holds the mean wealth
is a supermartingale that starts at 1, so it ever reaches 1/a with probability at most a (Ville's inequality): it may
be looked at as often as one likes, looks may depend on each other, and no sample size is fixed beforehand.

Many series share one rate: the j-th that begins gets the part 1/(j(j+1)) of it, and those parts add up to 1.

It is NOT proof, and nothing here is slashed for it: it says that honesty, as stated, explains what was seen badly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FALSE_ALARM: Final = 1e-3  # of all series together, over the life of a client
MISSING: Final = 0.1  # an honest proxy lacks a worker that others list at most so often
WORSE: Final = 0.5  # an honest proxy picks a worker over a clearly better one at most so often
BETTER: Final = 1.5  # "clearly": so many times cheaper or faster, and nowhere worse
_BETS: Final = (0.2, 0.5, 0.8, 0.98)  # how far each bet's q lies between p and 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Looks at one thing. `bound`: the p above; `rank`: the how-manieth series this is, from 1."""

    bound: float
    rank: int
    looks: int = 0
    hits: int = 0

    def look(self, *, hit: bool) -> Series:
        return Series(bound=self.bound, rank=self.rank, looks=self.looks + 1, hits=self.hits + hit)

    @property
    def log_evidence(self) -> float:
        """Natural logarithm of the mean wealth. The order of looks does not matter, so counts are all there is."""
        misses = self.looks - self.hits
        wealth = []
        for share in _BETS:
            q = self.bound + share * (1 - self.bound)
            wealth.append(self.hits * math.log(q / self.bound) + misses * math.log((1 - q) / (1 - self.bound)))
        top = max(wealth)
        return top + math.log(sum(math.exp(w - top) for w in wealth) / len(wealth))

    def alarms(self, rate: float = FALSE_ALARM) -> bool:
        """Whether this series alarms, at a rate of false alarms of `rate` for all series together."""
        return self.log_evidence >= math.log(self.rank * (self.rank + 1) / rate)


def tail(hits: int, looks: int, bound: float) -> float:
    """Probability of at least `hits` in `looks` independent tries of probability `bound` (binomial, exact)."""
    return math.fsum(math.comb(looks, n) * bound**n * (1 - bound) ** (looks - n) for n in range(hits, looks + 1))


def too_many_missing(missing: int, known: int, *, look: int = 1, rate: float = FALSE_ALARM) -> bool:
    """Whether one directory lacks more of the workers that others list than chance allows, at the `look`-th look.

    It takes workers as independent: a proxy that just started, or lost its network, lacks all of them at once and
    deserves the same attention.
    """
    return known > 0 and tail(missing, known, MISSING) <= rate / (look * (look + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One candidate as the client knows it from its own receipts: price, and seconds per unit (None: not yet)."""

    price: int
    pace: float | None


def clearly_better(rival: Measured, worker: Measured) -> bool:
    """Nowhere worse, and by `BETTER` cheaper or faster; False where either was not measured."""
    if rival.pace is None or worker.pace is None:
        return False
    if rival.price > worker.price or rival.pace > worker.pace:
        return False
    return rival.price * BETTER <= worker.price or rival.pace * BETTER <= worker.pace
