# SPDX-License-Identifier: Apache-2.0
"""Money on its way back: withdrawals of frozen channels are announced, waited out and fetched (spec PAY-16).

Not here: when a channel is frozen (`wallet.py`), and what its owner does by hand (`channels.py`). Looked at when a
client starts and every so often, so that an announcement outlives the process that made it, and a chain that was away
costs time, not money.

Always: nothing is announced for a channel that is not frozen; what the payee may still claim within the delay stays
its own.
"""

from __future__ import annotations

import logging

from bombyx.errors import BombyxError
from bombyx.ports import ChannelView, Clock, Ledger
from bombyx.protocol.pay.payer import PayerChannel
from bombyx.protocol.primitives import Amount
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.wallet import Wallet

log = logging.getLogger(__name__)


class Withdrawals:
    """Looks after every channel of one wallet."""

    def __init__(self, wallet: Wallet, *, ledger: Ledger, clock: Clock, owner: SigningKey, every: float) -> None:
        self._wallet = wallet
        self._ledger = ledger
        self._clock = clock
        self._owner = owner
        self._every = every

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(self._every)

    async def look(self) -> int:
        """Take the next step of every withdrawal that has one; how many were fetched."""
        fetched = 0
        for channel in (*self._wallet.channels(), *self._wallet.closed_channels()):
            try:
                fetched += await self._step(channel)
            except BombyxError as error:  # the chain is away, or sees the time otherwise: the next look tries again
                log.warning("withdrawal from channel %s: %s", channel.id.hex()[:12], error)
        return fetched

    async def _step(self, channel: PayerChannel) -> bool:
        view = await self._ledger.channel(channel.id)
        if view is None:
            return False
        if view.withdrawing:
            return await self._fetch(channel, view)
        if channel.frozen is not None and view.balance > view.total_claimed:
            left = Amount(view.balance - view.total_claimed)
            await self._ledger.initiate_withdraw(channel.id, left, signer=self._owner)
            log.info("withdrawal of %d from channel %s announced", left, channel.id.hex()[:12])
        return False

    async def _fetch(self, channel: PayerChannel, view: ChannelView) -> bool:
        if view.seconds_left(self._clock.now()) >= 0:
            return False
        await self._ledger.finalize_withdraw(channel.id, signer=self._owner)
        await self._wallet.observe(channel)
        log.info("withdrawal from channel %s fetched", channel.id.hex()[:12])
        return True
