# SPDX-License-Identifier: Apache-2.0
"""What clients owe, presented to the chain: by threshold, by age, at once when a client starts to withdraw (PAY-15).

Always: a channel whose claim is due by our books, or whose payer withdraws, is looked at in each round. Others with a
debt, and those claimed lately, for a reorg may take the claim back, are looked at where the chain does not tell what
happened, and now and then where it does. A claim the chain refuses never keeps another from going through.
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

SWEEP: Final = 150.0  # seconds; half of PayeeTerms.claim_interval, in which every channel is sure to be looked at
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
        self._leaving: set[Digest] = set()  # their payers withdraw: what they owe must not wait
        self.leaving_others: frozenset[Digest] = frozenset()  # heard in the last round, of channels not on our book
        self._swept_at = float("-inf")
        now = clock.monotonic()
        self._claimed_at = {channel: now for channel in book.channels if book.channel(channel).claimed}

    async def collect(self, *, everything: bool = False) -> int:
        """Present what is due, or whatever is owed; how many claims went through. `Unavailable`: the chain is away."""
        due: list[Claim] = []
        started, everywhere = self._clock.monotonic(), everything or not await self._is_told()
        for channel in self._worth_a_look(everywhere):
            view = await self._look(channel)
            if view is None or channel not in self._book:
                continue
            if not view.withdrawing:
                self._leaving.discard(channel)
            claim = self._book.claim_now(channel, view=view) if everything else None
            claim = claim or self._book.claim(channel, view=view, now=self._clock.now())
            if claim is not None:
                due.append(claim)
        if everywhere:
            self._swept_at = started
        return await self._present(due)

    async def _is_told(self) -> bool:
        """Whether the chain told who withdraws, so that not every channel need be looked at."""
        told = await self._ledger.leaving()
        if told is None:
            self._swept_at = float("-inf")  # until a sweep went through, whatever is told next
            self.leaving_others = frozenset()
        else:
            heard = told | self.leaving_others  # those that were taken in meanwhile are ours to claim from
            self._leaving |= {channel for channel in heard if channel in self._book}
            self.leaving_others = told - self._leaving
        return self._clock.monotonic() - self._swept_at < SWEEP

    def _worth_a_look(self, everywhere: bool) -> list[Digest]:
        book, now = self._book, self._clock.monotonic()
        self._claimed_at = {channel: at for channel, at in self._claimed_at.items() if at > now - WATCHED}
        owing = [channel for channel in book.channels if book.channel(channel).owed]
        if everywhere:
            return list(dict.fromkeys([*owing, *(channel for channel in self._claimed_at if channel in book)]))
        return [channel for channel in owing if channel in self._leaving or book.due(channel, self._clock.now())]

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
