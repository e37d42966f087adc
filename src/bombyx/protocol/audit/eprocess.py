# SPDX-License-Identifier: Apache-2.0
"""Evidence that may be looked at as often as one likes: e-processes over one worker and one model (JDG-11 .. JDG-14).

A `Bets` watches numbers x in 0 .. 1 whose mean an honest worker keeps at or below a bound m, whatever came before. It
bets against that: wealth_l = prod(1 + l (x - m)) for a few l. While the bound holds, the mean wealth is a non-negative
supermartingale that starts at 1, so it *ever* reaches 1/a with probability at most a (Ville's inequality). No sample
size is fixed, answers may depend on each other, and no honest worker is worn down by many audits: its wealth falls.

`Evidence` holds two: clipped margins of tokens against m0, and failed answers against p0. Its value is their mean,
which is an e-process again; `peak` is the largest it ever was.

It is NOT proof of one answer's fault, and one answer alone never decides (`verdict.py`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.wire.audit import MILLION, Calibration

SHARES: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.4, 0.8)  # of 1/bound: how boldly each bet is placed; below 1
VERSION: Final = 1
_HEAD: Final = struct.Struct(">BddQQQd")
_ONE: Final = struct.Struct(">d")
SIZE: Final = _HEAD.size + 2 * len(SHARES) * _ONE.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Bets:
    """Wealths against "the mean is at most `bound`", as natural logarithms."""

    bound: float
    logs: tuple[float, ...] = (0.0,) * len(SHARES)
    count: int = 0

    def update(self, values: Iterable[float]) -> Bets:
        """After more numbers, each in 0 .. 1 and none left out because of what it is."""
        logs, seen = list(self.logs), 0
        bets = [share / self.bound for share in SHARES]
        for value in values:
            if not 0.0 <= value <= 1.0:
                raise ValueError("an e-process takes numbers in 0 .. 1")
            gain = value - self.bound
            logs = [log + math.log1p(bet * gain) for log, bet in zip(logs, bets, strict=True)]
            seen += 1
        return replace(self, logs=tuple(logs), count=self.count + seen)

    def zeros(self, count: int) -> Bets:
        """As `update` with so many zeros, at once."""
        logs = tuple(log + count * math.log1p(-share) for log, share in zip(self.logs, SHARES, strict=True))
        return replace(self, logs=logs, count=self.count + count)

    @property
    def log10(self) -> float:
        """The mean wealth's decimal logarithm."""
        return _log_mean(self.logs) / math.log(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that one judge holds against one worker and one model."""

    tokens: Bets
    answers: Bets
    failures: int = 0  # answers that failed: a finding wants several, however bad one was
    peak: float = 0.0  # log10, at or above 0: wealth begins at 1

    @classmethod
    def none(cls, calibration: Calibration) -> Evidence:
        """Before the first answer."""
        return cls(
            tokens=Bets(bound=calibration.m0_e6 / MILLION),
            answers=Bets(bound=calibration.p0_e6 / MILLION),
        )

    def update(self, margins: Iterable[float], *, failed: bool) -> Evidence:
        """After one more answer: its clipped margins (0 .. 1) and whether it failed."""
        return self._after(self.tokens.update(margins), failed=failed)

    def absent(self, tokens: int = 0) -> Evidence:
        """After a planned canary that brought no receipt: it counts for the worker, as `tokens` without a margin.

        No answer that could have been shown says less against the worker than that, if it had no more tokens: so an
        accuser gains nothing by withholding one. With fewer it does: an honest machine fails now and then, by tokens
        far off, and only the many answers between keep those from convicting it.
        """
        return self._after(self.tokens.zeros(tokens), failed=False)

    @property
    def log10(self) -> float:
        """Decimal logarithm of the mean of both wealths."""
        ten = math.log(10)
        return _log_mean((self.tokens.log10 * ten, self.answers.log10 * ten)) / ten

    def _after(self, tokens: Bets, *, failed: bool) -> Evidence:
        answers = self.answers.update((float(failed),))
        after = Evidence(tokens=tokens, answers=answers, failures=self.failures + failed)
        return replace(after, peak=max(self.peak, after.log10))

    def encode(self) -> bytes:
        """For a store; not a message."""
        head = _HEAD.pack(
            VERSION,
            self.tokens.bound,
            self.answers.bound,
            self.tokens.count,
            self.answers.count,
            self.failures,
            self.peak,
        )
        return head + b"".join(_ONE.pack(log) for log in (*self.tokens.logs, *self.answers.logs))

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Raises `MalformedMessage` for anything `encode` cannot have written."""
        if len(data) != SIZE or data[0] != VERSION:
            raise MalformedMessage(f"evidence of {len(data)} bytes, expected {SIZE}", peer=Peer.UNKNOWN, rule="JDG-14")
        _, token_bound, answer_bound, token_count, answer_count, failures, peak = _HEAD.unpack_from(data)
        logs = tuple(_ONE.unpack_from(data, _HEAD.size + at * _ONE.size)[0] for at in range(2 * len(SHARES)))
        if not (0 < token_bound < 1 and 0 < answer_bound < 1 and peak >= 0 and all(map(math.isfinite, (*logs, peak)))):
            raise MalformedMessage("evidence with impossible numbers", peer=Peer.UNKNOWN, rule="JDG-14")
        return cls(
            tokens=Bets(bound=token_bound, logs=logs[: len(SHARES)], count=token_count),
            answers=Bets(bound=answer_bound, logs=logs[len(SHARES) :], count=answer_count),
            failures=failures,
            peak=peak,
        )


def combined_log10(values: Iterable[float]) -> float:
    """One e-value out of several judges' (decimal logarithms): their mean, valid however they depend on each other."""
    ten = math.log(10)
    return _log_mean(tuple(value * ten for value in values)) / ten


def _log_mean(logs: tuple[float, ...]) -> float:
    top = max(logs)
    return top + math.log(math.fsum(math.exp(log - top) for log in logs) / len(logs))
