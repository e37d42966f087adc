# SPDX-License-Identifier: Apache-2.0
"""Several replicas of one proxy over one store: who keeps which channel's book (spec LEASE-1 .. LEASE-6).

A client's channel is kept by one replica at a time: it takes the lease, reads the channel's rows, settles what the
replica before it left behind, and only then accepts. Everything it writes is fenced by that lease, so a replica that
was paused, cut off or thought dead can do no harm when it comes back: its rows are refused, its streams cut.

Always: nothing is accepted on a channel whose lease is not held; what a dead replica left is settled and claimed by
whichever replica sees it first; a process that has the store alone does nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from bombyx.errors import BombyxError, HeldElsewhere, LeaseLost, Unavailable
from bombyx.ports import Clock, Leases, Ledger, Store
from bombyx.protocol.pay import rows as r
from bombyx.protocol.pay.payee import owing
from bombyx.protocol.primitives import Digest
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.claiming import SWEEP
from bombyx.roles.proxy.holdings import PAYEE, Holdings, channel_name, channel_of, slot_name
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.settings import Timings
from bombyx.roles.proxy.settlement import Settler

log = logging.getLogger("bombyx.proxy")

MAX_SLOTS: Final = 1_024


class Tenancy:
    """One per proxy process that shares its store."""

    def __init__(
        self,
        leases: Leases,
        holdings: Holdings,
        timings: Timings,
        *,
        store: Store,
        scribe: Scribe,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._leases = leases
        self._holdings = holdings
        self._timings = timings
        self._store = store
        self._scribe = scribe
        self._ledger = ledger
        self._clock = clock
        self._accounts: Accounts | None = None
        self._settler: Settler | None = None
        self._ready: dict[Digest, float] = {}  # channels kept here -> when last used
        self._turns: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._keeper: asyncio.Task[None] | None = None
        self._swept_at = float("-inf")
        self.on_cut: Callable[[Digest], None] = lambda channel: None  # a channel is lost: its streams must end
        self.on_slot_lost: Callable[[], None] = lambda: None
        holdings.on_lost = self._lost

    async def start(self, accounts: Accounts, settler: Settler) -> None:
        self._accounts, self._settler = accounts, settler
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def take_slot(self) -> None:
        """The lowest slot that is free."""
        for slot in range(MAX_SLOTS):
            with contextlib.suppress(HeldElsewhere):
                self._holdings.add(await self._leases.acquire(slot_name(slot)))
                self._holdings.slot = slot
                log.info("this replica has slot %d", slot)
                return
        raise Unavailable(f"all {MAX_SLOTS} slots are taken", retry_after=self._timings.lease_life, rule="LEASE-6")

    @property
    def has_slot(self) -> bool:
        return self._holdings.has(slot_name(self._holdings.slot))

    # --- channels ---

    async def hold(self, channel: Digest) -> None:
        """Return when this process keeps the channel. Raises `HeldElsewhere` when another does."""
        if channel in self._ready:
            self._ready[channel] = self._clock.monotonic()
            return
        async with self._turn(channel):
            if channel not in self._ready:
                await self._take(channel)
            self._ready[channel] = self._clock.monotonic()

    async def _take(self, channel: Digest) -> None:
        assert self._accounts is not None
        assert self._settler is not None
        lease = await self._leases.acquire(channel_name(channel))
        self._holdings.add(lease)
        try:
            self._accounts.book.take_in(await self.rows(channel))
            cut = await self._settler.recover(self._store, channel)
            if not self._holdings.has(lease.name):
                raise LeaseLost("another replica was faster", rule="LEASE-1")
        except BaseException:
            self._accounts.book.forget(channel)
            self._holdings.remove(lease.name)
            await self._leases.release([lease])
            raise
        if cut:
            log.warning("%d requests of a replica that is gone are settled at their last receipt", cut)

    async def rows(self, channel: Digest) -> list[tuple[bytes, bytes]]:
        """The channel's rows, whoever keeps it."""
        return [row for prefix in r.prefixes(channel) for row in await self._store.scan(PAYEE, prefix=prefix)]

    def _lost(self, name: bytes) -> None:
        channel = channel_of(name)
        if channel is None:
            log.error("another replica has taken over our slot")
            self.on_slot_lost()
            return
        log.warning("another replica has taken over a channel")
        self._ready.pop(channel, None)
        if self._accounts is not None:
            self._accounts.book.forget(channel)
        self.on_cut(channel)

    def _turn(self, channel: Digest) -> asyncio.Lock:
        return self._turns.setdefault(channel, asyncio.Lock())

    # --- keeping ---

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(self._timings.lease_renew)
            try:
                self._holdings.taken(await self._leases.renew())
                await self._let_go(self._clock.monotonic() - self._timings.lease_idle)
            except BombyxError as error:
                log.warning("leases: %s", error)

    async def _let_go(self, unused_since: float) -> None:
        """Give back channels that nobody uses, so that a client may go to another replica."""
        for channel, used in list(self._ready.items()):
            if used < unused_since:
                async with self._turn(channel):
                    await self._give_back(channel, unused_since)

    async def _give_back(self, channel: Digest, unused_since: float) -> None:
        assert self._accounts is not None
        await self._scribe.flush()
        if self._ready.get(channel, unused_since) >= unused_since or self._accounts.open_of(channel):
            return
        del self._ready[channel]
        self._accounts.book.forget(channel)
        lease = self._holdings.remove(channel_name(channel))
        if lease is not None:
            await self._leases.release([lease])

    async def adopt(self) -> None:
        """Take in channels that no replica keeps and that need one: cut requests to settle, charges to claim. Who
        withdraws is heard from the chain where it tells; every debtor is looked at now and then."""
        assert self._accounts is not None
        wanted = {Digest(key[1:33]) for key, _ in await self._store.scan(PAYEE, prefix=r.RESERVED)}
        owed = owing(await self._store.scan(PAYEE, prefix=r.STATE), self._accounts.book.terms, self._clock.now())
        told = self._accounts.leaving_others
        await self._take_in(wanted | {channel for channel, due in owed.items() if due or channel in told})
        started = self._clock.monotonic()
        if started - self._swept_at >= SWEEP:
            leaving = {channel for channel in owed if channel not in self._ready and await self._leaving(channel)}
            await self._take_in(leaving)
            self._accounts.heard_leaving(leaving)
            self._swept_at = started

    async def _take_in(self, channels: set[Digest]) -> None:
        for channel in channels - self._ready.keys():
            with contextlib.suppress(HeldElsewhere):
                await self.hold(channel)

    async def _leaving(self, channel: Digest) -> bool:
        """Whether its payer withdraws: then claims must not wait, whoever kept the channel last (PAY-15)."""
        view = await self._ledger.channel(channel)
        return view is not None and view.withdrawing

    async def stop(self) -> None:
        """Everything back, so that nobody waits for it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            await self._leases.leave()
        except BombyxError as error:
            log.warning("leases: %s", error)
