# SPDX-License-Identifier: Apache-2.0
"""The noise of `gumbel-splitmix64-v1`: a function of (seed, position, token id) and of nothing else (spec AUD-2).

No state, no order: any position of any answer can be checked alone, on any machine, in any language. NOT cryptography:
who knows the seed knows the noise, and who does not choose the seed cannot steer it (AUD-1).

Always: 64-bit integers that wrap, IEEE 754 doubles, results in (0, 1).
"""

from __future__ import annotations

import math
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_POSITION: Final = 0xD1B54A32D192ED03
_BELOW_ONE: Final = 1.0 - 2.0**-53  # the largest double below 1; what would round to 1 is this


def uniform(seed: int, position: int, token: int) -> float:
    """A number in (0, 1) for one token at one position."""
    return _uniform(_key(seed, position), token)


def gumbel(seed: int, position: int, token: int) -> float:
    """-ln(-ln u): standard Gumbel noise."""
    return _gumbel(_key(seed, position), token)


class Noise:
    """The noise of one position: the same numbers as `gumbel`, the part all tokens share computed once."""

    __slots__ = ("_key",)

    def __init__(self, seed: int, position: int) -> None:
        self._key = _key(seed, position)

    def of(self, token: int) -> float:
        return _gumbel(self._key, token)


def _key(seed: int, position: int) -> int:
    first = _mix((seed + _GOLDEN) & _MASK)
    return _mix(first ^ ((position * _POSITION + 1) & _MASK))


def _uniform(key: int, token: int) -> float:
    bits = _mix(key ^ _mix((token + _GOLDEN) & _MASK)) >> 11
    return min((bits + 0.5) * 2.0**-53, _BELOW_ONE)


def _gumbel(key: int, token: int) -> float:
    return -math.log(-math.log(_uniform(key, token)))


def _mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
