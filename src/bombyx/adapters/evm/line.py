# SPDX-License-Identifier: Apache-2.0
"""One account's line of nonces in this process, and one transaction's wait in it. No I/O; `transactions.py` asks.

Always: two families of one process never have one nonce; a watch ends, mined or not.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from bombyx.adapters.evm.fees import Fees, Patience
from bombyx.adapters.evm.outbox import Family

SIGHTINGS: Final = 2  # of nodes behind one address, one may be a block behind: one look proves nothing


@dataclass(slots=True, kw_only=True, eq=False)
class Line:
    """`flying`: being followed. `given_up`: nobody waits for them, yet they may still be mined."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # one nonce is given at a time
    finishing: asyncio.Lock = field(default_factory=asyncio.Lock)
    flying: dict[int, Family] = field(default_factory=dict)
    given_up: list[Family] = field(default_factory=list)
    read: bool = False  # what an earlier process left is in `given_up`
    _next: int = 0

    def next_after(self, counted: int) -> int:
        """The next nonce. With nothing under way the chain's count alone stands: a reorg may have taken some back."""
        return max(counted, self._next) if self.flying else counted

    def took(self, family: Family) -> None:
        self.flying[family.nonce] = family
        self._next = family.nonce + 1

    def landed(self, family: Family) -> None:
        self.flying.pop(family.nonce, None)

    def take_oldest(self) -> Family:
        oldest = min(self.given_up, key=lambda family: family.nonce)
        self.given_up.remove(oldest)
        return oldest


class Watch:
    """How long, and at what, one transaction has been waiting."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._started = self._heard = self._bumped = time.monotonic()
        self._looked = float("-inf")
        self._sightings = self._height = 0
        self._standing: dict[tuple[str, int], float] = {}
        self._fees: Fees | None = None

    def over(self) -> bool:
        return time.monotonic() - self._started >= self._patience.give_up_after

    def buried(self, height: int) -> None:
        """It is mined, and blocks are laid on it: confirmations may take long, and are no reason to give up."""
        if height > self._height:
            self._height, self._started = height, time.monotonic()

    def answered(self) -> None:
        self._heard = time.monotonic()

    def away(self) -> bool:
        """Whether the chain has answered nothing for too long."""
        return time.monotonic() - self._heard >= self._patience.away_after

    def looks(self) -> bool:
        """Whether it is time to look at the nonces again."""
        if time.monotonic() - self._looked < self._patience.look:
            return False
        self._looked = time.monotonic()
        return True

    def displaced(self, seen: bool) -> bool:
        """Whether another transaction has certainly taken the nonce."""
        self._sightings = self._sightings + 1 if seen else 0
        return self._sightings >= SIGHTINGS

    def stands(self, where: tuple[str, int]) -> float:
        """For how many seconds the line has stood there, look after look."""
        since = self._standing.get(where, time.monotonic())
        self._standing = {where: since}
        return time.monotonic() - since

    def bumps(self) -> bool:
        if time.monotonic() - self._bumped < self._patience.bump_after:
            return False
        self._bumped = time.monotonic()
        return True

    def bump_now(self) -> None:
        self._bumped = float("-inf")

    def filling(self, asked: Fees) -> Fees:
        """What an empty transaction offers: what is asked, and more each time. It is given time to be mined."""
        self._standing = {}
        self._fees = asked if self._fees is None else self._fees.bumped(self._patience).at_least(asked)
        return self._fees
