# SPDX-License-Identifier: Apache-2.0
"""What a proxy has seen of one worker, as a value: speed, success, and whether it is ejected (spec MKT-6 .. MKT-8).

Always: a failure never counts as speed (a fast failure is not a fast success); what was learnt fades towards the prior,
so a worker that was slow once gets another chance; an ejected worker comes back by one probe at a time (half-open).
Speeds are kept at zero load: an observation made beside n others is divided by the slowdown n explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from bombyx.protocol.quick import quick

WEIGHT: Final = 0.2  # of the newest observation in a moving average
MEMORY_SECONDS: Final = 600.0  # what was learnt loses 1/e of its weight in this time without news
EJECT_BELOW: Final = 0.5  # success rate
EJECT_AFTER: Final = 3  # failures in a row
BACKOFF_FIRST: Final = 5.0  # seconds; doubles with each ejection in a row
BACKOFF_MOST: Final = 300.0  # seconds
PROBE_SECONDS: Final = 60.0  # a probe that has not come back by then no longer blocks the next

# seconds per output unit and seconds to the first frame, per hardware class, before anything was observed
PRIORS: Final = {"h100": (0.01, 0.3), "gpu": (0.02, 0.5), "cpu": (0.02, 0.5)}
PRIOR_DEFAULT: Final = (0.02, 0.5)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """Moving averages about one worker. Times are monotonic seconds."""

    prior: tuple[float, float]
    seconds_per_unit: float
    first_frame: float
    success: float = 1.0
    seen: int = 0
    failures_in_row: int = 0
    ejections: int = 0
    ejected_until: float = -math.inf
    probe_since: float = -math.inf
    updated: float = 0.0

    @classmethod
    def fresh(cls, hardware: str) -> WorkerStats:
        """Nothing seen yet: the prior of its hardware class, and the benefit of the doubt."""
        prior = PRIORS.get(hardware.lower(), PRIOR_DEFAULT)
        return cls(prior=prior, seconds_per_unit=prior[0], first_frame=prior[1])

    def faded(self, now: float) -> WorkerStats:
        """These facts as they weigh at `now`: old speeds drift back to the prior."""
        first_frame, seconds_per_unit = self.speeds(now)
        return replace(self, seconds_per_unit=seconds_per_unit, first_frame=first_frame, updated=now)

    def speeds(self, now: float) -> tuple[float, float]:
        """(seconds to the first frame, seconds per unit) as they weigh at `now`."""
        keep = math.exp(-max(0.0, now - self.updated) / MEMORY_SECONDS)
        per_unit, first = self.prior
        return first + (self.first_frame - first) * keep, per_unit + (self.seconds_per_unit - per_unit) * keep

    def standing(self, now: float) -> str:
        """`open` (takes traffic), `ejected` (takes none) or `half-open` (takes one probe at a time)."""
        if self.ejections == 0:
            return "open"
        if now < self.ejected_until or now - self.probe_since < PROBE_SECONDS:
            return "ejected"
        return "half-open"

    def dispatched(self, now: float) -> WorkerStats:
        """A request was sent; for a half-open worker this is its probe."""
        return replace(self, probe_since=now) if self.standing(now) == "half-open" else self

    def first_frame_seen(self, now: float, waited: float, load: float) -> WorkerStats:
        """The first frame came after `waited` seconds, `load` = share of the capacity that was busy."""
        first_frame, seconds_per_unit = self.speeds(now)
        return WorkerStats(  # spelt out, as it is made for each answer: `replace` takes three times as long
            prior=self.prior,
            seconds_per_unit=seconds_per_unit,
            first_frame=_mix(first_frame, waited / slowdown(load), WEIGHT),
            success=self.success,
            seen=self.seen,
            failures_in_row=self.failures_in_row,
            ejections=self.ejections,
            ejected_until=self.ejected_until,
            probe_since=self.probe_since,
            updated=now,
        )

    def finished(self, now: float, output_units: int, seconds: float, load: float) -> WorkerStats:
        """A complete answer: `output_units` in `seconds` after the first frame."""
        first_frame, seconds_per_unit = self.speeds(now)
        if output_units > 0:
            seconds_per_unit = _mix(seconds_per_unit, seconds / output_units / slowdown(load), WEIGHT)
        return WorkerStats(  # what is not named is as it was in the beginning
            prior=self.prior,
            seconds_per_unit=seconds_per_unit,
            first_frame=first_frame,
            success=_mix(self.success, 1.0, WEIGHT),
            seen=self.seen + 1,
            updated=now,
        )

    def failed(self, now: float) -> WorkerStats:
        """A failure the worker is to blame for. Its speed is not touched."""
        seen = self.faded(now)
        row, success = seen.failures_in_row + 1, _mix(seen.success, 0.0, WEIGHT)
        seen = replace(seen, success=success, seen=seen.seen + 1, failures_in_row=row, probe_since=-math.inf)
        if row < EJECT_AFTER and success >= EJECT_BELOW and seen.ejections == 0:
            return seen
        pause = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(seen.ejections, 16))
        return replace(seen, ejections=seen.ejections + 1, ejected_until=now + pause)

    def reputation(self) -> float:
        """Between 0.05 and 1: the success rate, never zero, so that a probe can be ranked."""
        return max(0.05, self.success)


def slowdown(load: float) -> float:
    """How much slower one stream runs when `load` (0 .. 1 and more) of the capacity is busy: continuous batching."""
    return 1.0 + max(0.0, load)


def _mix(old: float, new: float, weight: float) -> float:
    return old * (1.0 - weight) + new * weight
