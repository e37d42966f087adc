# SPDX-License-Identifier: Apache-2.0
"""The proxy role, put together: start, serve, drain, stop; and start again after a crash.

It is given ports and keys only; `handle` goes to an HTTP server and `on_link` to whatever accepts worker links.

Always: after a restart the books are those of the store; requests that were cut are settled at their last receipt
before the first new one is taken; `drain` lets answers end, `stop` loses nothing that was promised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from bombyx.errors import BombyxError, LocalError
from bombyx.ports import Clock, HttpExchange, Leases, Ledger, Link, Store
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal import GatewayKey, Randomness
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.records import LinkType
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.admission import Admission
from bombyx.roles.proxy.census import Census
from bombyx.roles.proxy.closing import Closing
from bombyx.roles.proxy.desk import Desk
from bombyx.roles.proxy.directory import Noticeboard, Shelf
from bombyx.roles.proxy.dispatch import Dispatcher
from bombyx.roles.proxy.front import Front
from bombyx.roles.proxy.holdings import PAYEE, PAYER, Holdings
from bombyx.roles.proxy.metrics import Metrics
from bombyx.roles.proxy.opt_in import Forward, OptInRelay
from bombyx.roles.proxy.registry import Registry
from bombyx.roles.proxy.roster import Roster
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.settings import ProxySettings
from bombyx.roles.proxy.settlement import Settler
from bombyx.roles.proxy.tenancy import Tenancy
from bombyx.roles.proxy.view import Observer
from bombyx.roles.proxy.wallet import Wallet

T = TypeVar("T")
log = logging.getLogger("bombyx.proxy")


class Proxy:
    """One proxy process. `key` is its address, its purse and its signature; `pay_key` opens clients' session keys."""

    def __init__(
        self,
        settings: ProxySettings,
        *,
        key: SigningKey,
        pay_key: GatewayKey,
        ledger: Ledger,
        store: Store,
        clock: Clock,
        randomness: Randomness,
        observer: Observer | None = None,
        leases: Leases | None = None,
        forward: Forward | None = None,
    ) -> None:
        """`leases`: this process is one of several over `store`; None: it has the store alone. `forward`: how clients'
        opt-ins reach validators; None: they do not."""
        self._forward = forward
        self.settings = settings
        self.metrics = Metrics()
        self.roster = Roster()
        self._key = key
        self._pay_key = pay_key
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._observer = observer
        self._leases = leases
        self._tenancy: Tenancy | None = None
        self._moving: asyncio.Task[None] | None = None
        self._front: Front | None = None
        self._desk: Desk | None = None
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        return self._key.address

    def handle(self, exchange: HttpExchange) -> None:
        _started(self._front).handle(exchange)

    def on_link(self, link: Link) -> None:
        _started(self._desk).on_link(link)

    async def start(self) -> None:
        """Read the books, settle what a crash cut, and be ready. `Unavailable`: chain or store do not answer."""
        info = await self._ledger.info()
        settings, clock, shelf = self.settings, self._clock, Shelf()
        holdings = Holdings(shared=self._leases is not None)
        self._scribe = scribe = Scribe(self._store, holdings)
        tenancy = self._tenancy = self._shared(holdings)
        if tenancy is not None:
            await tenancy.take_slot()
        self._wallet = purse = Wallet(
            settings,
            self._key,
            info,
            ledger=self._ledger,
            clock=clock,
            randomness=self._randomness,
            scribe=scribe,
            holdings=holdings,
        )
        purse.load(await self._store.scan(PAYER))
        self._accounts = books = Accounts(
            settings,
            self._key,
            self._pay_key,
            info,
            [] if tenancy else await self._store.scan(PAYEE),
            ledger=self._ledger,
            clock=clock,
            scribe=scribe,
            hold=tenancy.hold if tenancy else None,
            stored=tenancy.rows if tenancy else None,
        )
        self._settler = settler = Settler(books, purse, scribe)
        await settler.pay_debts(self._store)
        cut = await settler.recover(self._store)
        if cut:
            log.warning("%d requests were cut by the last stop; they are settled at their last receipt", cut)
        dispatcher = Dispatcher(
            settings,
            self.roster,
            books,
            purse,
            settler,
            self.metrics,
            receipt_domain=receipt_domain(info.chain_id, info.registry),
            clock=clock,
            randomness=self._randomness,
            observer=self._observer,
        )
        self._front = Front(
            Admission(settings, self.address, self.roster, books, clock),
            dispatcher,
            books,
            Noticeboard(settings, self.address, self._pay_key, info, self.roster, clock),
            shelf,
            self.metrics,
            clock,
            closing=Closing(books, self._key),
            census=Census(books, self._ledger, clock),
            expose_views=settings.expose_views,
            observer=self._observer,
            opt_ins=None if self._forward is None else OptInRelay(self._ledger, self._forward, clock),
        )
        registry = Registry(
            self._ledger,
            clock,
            settings.policy,
            chain_id=info.chain_id,
            fresh_seconds=settings.timings.registry_fresh,
        )
        self._desk = Desk(
            settings,
            self._key,
            info.chain_id,
            registry,
            self.roster,
            purse,
            shelf,
            self.metrics,
            clock=clock,
            randomness=self._randomness,
        )
        if tenancy is not None:
            tenancy.on_cut = dispatcher.cut
            tenancy.on_slot_lost = self._move
            await tenancy.start(books, settler)
        self._housekeeper = asyncio.get_running_loop().create_task(self._keep_house())

    def _shared(self, holdings: Holdings) -> Tenancy | None:
        if self._leases is None:
            return None
        return Tenancy(
            self._leases,
            holdings,
            self.settings.timings,
            store=self._store,
            scribe=self._scribe,
            ledger=self._ledger,
            clock=self._clock,
        )

    def _move(self) -> None:
        if self._moving is None or self._moving.done():
            self._moving = asyncio.get_running_loop().create_task(self._take_other_slot())

    async def _take_other_slot(self) -> None:
        """Our channels to workers are another replica's now: take other ones, and let workers link anew under them."""
        tenancy, desk = _started(self._tenancy), _started(self._desk)
        try:
            await tenancy.take_slot()
            self._wallet.load(await self._store.scan(PAYER))
        except BombyxError as error:
            log.error("no slot: %s", error)  # without one nothing is paid, so nothing is served; housekeeping tries on
            return
        for session in list(desk.links):
            await session.close()

    async def drain(self) -> None:
        """Take nothing new, let answers end."""
        front, desk = _started(self._front), _started(self._desk)
        front.draining = True
        for session in desk.links:
            session.send(LinkType.DRAIN, 0)
        await front.settled(self.settings.timings.drain)

    async def stop(self, *, claim: bool = False) -> None:
        """End everything; with `claim`, present to the chain what clients owe."""
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
        if self._desk is not None:
            for session in list(self._desk.links):
                await session.close()
        if self._front is not None:
            await self._front.settled(1.0)
            await self._front.stop()
            await self._accounts.close()
            await self._scribe.close()
        if claim and self._front is not None:
            await self._accounts.claim(everything=True)
            await self._scribe.close()
        if self._tenancy is not None:
            await self._tenancy.stop()

    async def claim(self, *, everything: bool = False) -> int:
        """Present what clients owe; how many channels."""
        return await self._accounts.claim(everything=everything)

    async def _keep_house(self) -> None:
        """Claims, top-ups, and keysets that end. The chain may be away for a while; that is no reason to stop."""
        while True:
            await self._clock.sleep(self.settings.timings.housekeeping)
            self.roster.expire(self._clock.now())
            recheck = _started(self._desk).recheck
            lapse = self._wallet.lapse
            await self._chores((self._keep_tenancy, self._accounts.claim, self._top_up, recheck, lapse, self._reclaim))

    async def _chores(self, chores: Iterable[Callable[[], Awaitable[object]]]) -> None:
        """Each on its own: a purse too empty to top a worker up must not keep us from claiming what fills it."""
        for chore in chores:
            try:
                await chore()
            except BombyxError as error:
                log.warning("housekeeping: %s", error)

    async def _top_up(self) -> None:
        for worker in list(self.roster.workers.values()):
            if worker.seats and self._wallet.runs_low(worker.seats[-1].account):
                await self._wallet.top_up(worker.seats[-1].account)

    async def _reclaim(self) -> None:
        seats = [seat for worker in self.roster.workers.values() for seat in worker.seats]
        await self._wallet.reclaim({seat.account.channel.id for seat in seats})

    async def _keep_tenancy(self) -> None:
        tenancy = self._tenancy
        if tenancy is None:
            return
        if not tenancy.has_slot:
            self._move()
        await tenancy.adopt()
        await self._settler.pay_debts(self._store)


def _started(part: T | None) -> T:
    if part is None:
        raise LocalError("the proxy is not started")
    return part
