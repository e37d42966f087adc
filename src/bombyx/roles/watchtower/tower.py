# SPDX-License-Identifier: Apache-2.0
"""Watches channels for payees that are away, and claims for them before a withdrawal takes their money (spec PAY-26).

It holds tickets (`protocol/pay/tickets.py`) and a key that pays for gas, nothing else: all it can do with them is send
payees their own money. Always: a ticket is checked before it is kept; the one that claims most stays; one channel's
failure does not keep another from being claimed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from bombyx.errors import BombyxError, PeerError
from bombyx.ports import ChannelView, Ledger
from bombyx.protocol.pay.tickets import Ticket, check_ticket
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.signing import SigningKey

log = logging.getLogger("bombyx.watchtower")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What was done for one channel."""

    channel: Digest
    amount: int
    transaction: Digest


class Watchtower:
    """One chain's channels. `threshold`: claim that much even if nobody withdraws; None: withdrawals alone."""

    def __init__(self, ledger: Ledger, gas: SigningKey, *, threshold: int | None = None) -> None:
        self._ledger = ledger
        self._gas = gas
        self._threshold = threshold
        self._tickets: dict[Digest, Ticket] = {}

    @property
    def watched(self) -> tuple[Digest, ...]:
        return tuple(self._tickets)

    async def keep(self, tickets: Iterable[Ticket]) -> int:
        """Take tickets in; how many were refused as worthless."""
        info = await self._ledger.info()
        domain, refused = settlement_domain(info.chain_id, info.settlement), 0
        for ticket in tickets:
            try:
                channel = check_ticket(ticket, domain)
            except PeerError as error:
                log.warning("a ticket is refused: %s", error)
                refused += 1
                continue
            known = self._tickets.get(channel)
            if known is None or ticket.claim.total_claimed > known.claim.total_claimed:
                self._tickets[channel] = ticket
        return refused

    async def look(self) -> tuple[Claimed, ...]:
        """One round over all channels. `Unavailable` when the chain does not answer at all."""
        await self._ledger.head()
        done = []
        for channel, ticket in self._tickets.items():
            try:
                claimed = await self._attend(channel, ticket)
            except BombyxError as error:
                log.warning("channel %s: %s", channel, error)
                continue
            if claimed is not None:
                done.append(claimed)
        return tuple(done)

    async def _attend(self, channel: Digest, ticket: Ticket) -> Claimed | None:
        view = await self._ledger.channel(channel)
        if view is None or not self._due(view, ticket):
            return None
        owed = ticket.claim.total_claimed - view.total_claimed
        done = await self._ledger.claim_signed([ticket.claim], ticket.authorization, signer=self._gas)
        log.warning("claimed %d for %s", owed, ticket.claim.config.receiver)
        return Claimed(channel=channel, amount=owed, transaction=done)

    def _due(self, view: ChannelView, ticket: Ticket) -> bool:
        owed = ticket.claim.total_claimed - view.total_claimed
        if owed <= 0 or ticket.claim.total_claimed > view.balance:
            return False
        return view.withdrawing or (self._threshold is not None and owed >= self._threshold)
