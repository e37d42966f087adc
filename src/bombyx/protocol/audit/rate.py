# SPDX-License-Identifier: Apache-2.0
"""How many answers are audited, and which (spec JDG-21 .. JDG-23).

Honesty pays best when p >= (C + B) / (d (R + B + S)): C is what cheating saves on one answer, B what else it gains, d
the chance that an audited cheat is found out, R the fee, S the stake that is lost. The floor covers what nobody knows
of B.

Always: which answers are drawn follows from a beacon later than the receipts, so neither worker nor validator chooses.
"""

from __future__ import annotations

import math
from typing import Final

from bombyx.protocol.primitives import Digest, tagged_hash

FLOOR: Final = 0.01
NEW_WORKER: Final = 0.5  # share audited of a worker nobody knows
HALF_LIFE: Final = 16  # audits after which the extra for new workers has halved
_SCALE: Final = 1 << 64


def rate(cost: float, side_gain: float, *, detection: float, fee: float, stake: float, floor: float = FLOOR) -> float:
    """The share of answers to audit, in `floor` .. 1. One currency, per answer; `stake`: what a conviction takes."""
    if not 0 < detection <= 1 or min(cost, side_gain, fee, stake) < 0:
        raise ValueError("detection lies in 0 .. 1, sums of money are not negative")
    at_risk = detection * (fee + side_gain + stake)
    return 1.0 if at_risk <= 0 else max(floor, min(1.0, (cost + side_gain) / at_risk))


def adapted(base: float, *, audits: int, log10_evidence: float) -> float:
    """`base`, raised for new workers and with the evidence: tenfold for each factor of a thousand."""
    new = NEW_WORKER * math.exp2(-audits / HALF_LIFE)
    raised = base * math.pow(10, min(9.0, max(0.0, log10_evidence / 3)))  # evidence has no end, powers do
    return min(1.0, max(raised, base + (1 - base) * new))


def canaries(share: float, answers: int, validators: int, *, least: int, most: int) -> int:
    """How many one validator asks of a worker in an epoch, so that all of them together audit `share` of as many
    answers as it gave in its last; `least` keeps workers nobody uses honest, `most` bounds what one of them costs."""
    return max(least, min(most, math.ceil(share * answers / max(1, validators))))


def selected(beacon: Digest, receipt: Digest, share: float) -> bool:
    """Whether the lottery of `beacon` draws the receipt with this hash, at `share`."""
    drawn = int.from_bytes(tagged_hash("bombyx audit draw v1", beacon, receipt)[:8], "big")
    return drawn < round(share * _SCALE)
