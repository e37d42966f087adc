# SPDX-License-Identifier: Apache-2.0
"""What clients owe, presented to the chain: by threshold, by age, at once when a client starts to withdraw (PAY-15).

Always: every channel with a debt is looked at in each round, and one that was claimed lately too, for a reorg may take
the claim back; a claim the chain refuses never keeps another from going through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from bombyx.errors import PaymentError
from bombyx.ports import ChannelView, Claim, Clock, Ledger
from bombyx.protocol.pay.batches import Batches
from bombyx.protocol.pay.payee import PayeeBook
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.signing import SigningKey

log = logging.getLogger("bombyx.proxy")

WATCHED: Final = 1_800.0  # seconds a claim is watched: two epochs of a chain that is final after two, and as much again


class Claims:
    """One per proxy. `seen` hears of every view the chain gave."""

    def __init__(
        self, book: PayeeBook, *, ledger: Ledger, clock: Clock, signer: SigningKey, seen: Callable[[ChannelView], None]
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._clock = clock
        self._signer = signer
        self._seen = seen
        now = clock.monotonic()
        self._claimed_at = {channel: now for channel in book.channels if book.channel(channel).claimed}

    async def collect(self, *, everything: bool = False) -> int:
        """Present what is due, or whatever is owed; how many claims went through. `Unavailable`: the chain is away."""
        due: list[Claim] = []
        for channel in self._worth_a_look():
            view = await self._look(channel)
            if view is None or channel not in self._book:
                continue
            claim = self._book.claim_now(channel, view=view) if everything else None
            claim = claim or self._book.claim(channel, view=view, now=self._clock.now())
            if claim is not None:
                due.append(claim)
        return await self._present(due)

    def _worth_a_look(self) -> list[Digest]:
        since = self._clock.monotonic() - WATCHED
        self._claimed_at = {channel: at for channel, at in self._claimed_at.items() if at > since}
        owing = [channel for channel in self._book.channels if self._book.channel(channel).owed]
        return list(dict.fromkeys([*owing, *(channel for channel in self._claimed_at if channel in self._book)]))

    async def _look(self, channel: Digest) -> ChannelView | None:
        view = await self._ledger.channel(channel)
        if view is not None:
            self._seen(view)
            self._book.observe(view, now=self._clock.now())
        return view

    async def _present(self, due: list[Claim]) -> int:
        batches, done = Batches(due), 0
        while (batch := batches.take()) is not None:
            try:
                await self._ledger.claim(batch, signer=self._signer)
            except PaymentError as error:
                if (alone := batches.refused(batch)) is not None:
                    log.error("the chain refuses a claim of %d: %s", alone.total_claimed, error.message)
                continue
            done += len(batch)
            for claim in batch:
                channel = claim.config.channel_id(self._book.domain)
                self._claimed_at[channel] = self._clock.monotonic()
                await self._look(channel)
        return done
