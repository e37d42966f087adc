# SPDX-License-Identifier: Apache-2.0
"""The noise of `gumbel-splitmix64-v1`: a number for (seed, position, token id), and nothing else (spec AUD-3).

No state and no order: any position can be checked alone, and a vocabulary's size does not matter. splitmix64's
finaliser is a mixer, NOT a cryptographic function; the seed comes from one (`seed.py`).
"""

from __future__ import annotations

import math
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_STEP: Final = 0xD1B54A32D192ED03


def uniform(seed: int, position: int, token: int) -> float:
    """In (0, 1), both ends left out: the upper 53 bits, at the middle of their interval."""
    key = _mix((seed + _GOLDEN) & _MASK)
    key = _mix(key ^ ((position * _STEP + 1) & _MASK))
    mixed = _mix(key ^ _mix((token + _GOLDEN) & _MASK))
    return ((mixed >> 11) + 0.5) / (1 << 53)


def gumbel(seed: int, position: int, token: int) -> float:
    """Standard Gumbel noise: adding T times it to the logits and taking the largest draws from softmax at T."""
    return -math.log(-math.log(uniform(seed, position, token)))


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
