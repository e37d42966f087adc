# SPDX-License-Identifier: Apache-2.0
"""How large the network is, as this proxy knows it: operators on the chain, clients and value locked in channels here.

Totals only, counted at most every few seconds however often they are asked for: no client and no channel is named.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from bombyx.errors import BombyxError
from bombyx.ports import Clock, Ledger, OperatorRole
from bombyx.protocol.pay.channel import Phase
from bombyx.roles.proxy.accounts import Accounts

FRESH_SECONDS: Final = 10.0
LOOKED_UP: Final = 256  # channels asked of the chain in one count; beyond them the total says so
_MANY: Final = {OperatorRole.PROXY: "proxies", OperatorRole.WORKER: "workers", OperatorRole.VALIDATOR: "validators"}


class Census:
    """Counts, remembered for a moment."""

    def __init__(self, accounts: Accounts, ledger: Ledger, clock: Clock) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._clock = clock
        self._counted: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._lock = asyncio.Lock()

    async def counts(self) -> dict[str, Any]:
        """An empty object while the chain does not answer and nothing was counted yet."""
        async with self._lock:
            at, known = self._counted
            if self._clock.monotonic() - at > FRESH_SECONDS:
                try:
                    known = await self._count()
                except BombyxError:
                    pass  # what was counted last stands
                self._counted = (self._clock.monotonic(), known)
            return known

    async def _count(self) -> dict[str, Any]:
        book = self._accounts.book
        channels = [book.channel(one) for one in book.channels]
        alive = [one for one in channels if one.phase is not Phase.CLOSED]
        locked = 0
        for one in alive[:LOOKED_UP]:
            view = await self._ledger.channel(one.id)
            locked += int(view.balance - view.total_claimed) if view else 0
        registered = {_MANY[role]: len(await self._ledger.operators(role)) for role in OperatorRole}
        return {
            "registered": registered,
            "clients": len({one.config.payer for one in alive}),
            "channels": len(alive),
            "value_locked": locked,
            "value_locked_complete": len(alive) <= LOOKED_UP,
        }
