# SPDX-License-Identifier: Apache-2.0
"""A worker from boot to drain: the parts put together, and the clocks that drive them.

Not here: what any part does. Engines, stores and sockets belong to whoever started them and are not closed here.

Always: nothing is dialled before the keys are made, quoted and registered; a key rotation refuses no request; after
`drain` nothing new is taken, what runs is finished, and what was earned is claimed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bombyx.errors import BombyxError, ConfigError, Unavailable
from bombyx.ports import Link
from bombyx.protocol.primitives import Address, Amount
from bombyx.protocol.wire.evidence import Keyset
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.boot import Boot, WorkerPorts, price_sheet
from bombyx.roles.worker.desk import Desk
from bombyx.roles.worker.dialling import Dialling
from bombyx.roles.worker.ended import Ended
from bombyx.roles.worker.evidence import EvidenceMaker
from bombyx.roles.worker.gate import Gate
from bombyx.roles.worker.health import EngineHealth
from bombyx.roles.worker.keys import BootKeys, Keyring, Period
from bombyx.roles.worker.link import LinkSession
from bombyx.roles.worker.notary import Notary
from bombyx.roles.worker.payments import Till
from bombyx.roles.worker.registration import Registration
from bombyx.roles.worker.settings import ProxyPeer, ServedModel, WorkerSettings
from bombyx.roles.worker.uploads import Uploads

__all__ = ["Worker", "WorkerPorts"]

log = logging.getLogger("bombyx.worker")
T = TypeVar("T")

LAST_WORDS: Final = 2.0  # seconds links get to take what was said before they are closed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What stands once the worker has booted."""

    till: Till
    desk: Desk
    notary: Notary
    evidence: EvidenceMaker
    chain_id: int


class Worker:
    """`start`, wait for `ready`, and at SIGTERM `drain`; `stop` is for those who cannot wait."""

    def __init__(
        self, settings: WorkerSettings, ports: WorkerPorts, *, operator: SigningKey, models: tuple[ServedModel, ...]
    ) -> None:
        if not models or not settings.proxies:
            raise ConfigError("a worker serves at least one model and dials at least one proxy")
        self._settings = settings
        self._ports = ports
        self._operator = operator
        self._models = {model.digest: model for model in models}
        self.sheet = price_sheet(settings, operator.address, tuple(self._models))
        self.ready = asyncio.Event()
        self._keyring = Keyring()
        self._gate = Gate(settings.limits)
        self._uploads = Uploads(settings.limits.uploads)
        self._ended = Ended()
        self._health = {
            digest: EngineHealth(model.engine, ports.clock, every=settings.timings.engine_probe)
            for digest, model in self._models.items()
        }
        self._diallings: tuple[Dialling, ...] = ()
        self._sessions: set[LinkSession] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._parts: _Parts | None = None

    # --- what others may look at ---

    @property
    def operator(self) -> Address:
        return self._operator.address

    @property
    def receipt_key(self) -> Address:
        """Of this boot. Raises `Unavailable` before the start."""
        return self._booted.notary.address

    @property
    def keyset(self) -> Keyset:
        """The keyset of now."""
        return self._period.keyset

    @property
    def bundle(self) -> bytes:
        """The Evidence bundle of now."""
        return self._period.bundle

    @property
    def links(self) -> int:
        """Links that were welcomed and stand."""
        return len(self._sessions)

    @property
    def _period(self) -> Period:
        period = self._keyring.current
        if period is None:
            raise Unavailable("the worker has not started")
        return period

    # --- life ---

    async def start(self) -> None:
        """Boot: fresh keys, evidence, registration; then dial. Returns before any link stands: wait for `ready`."""
        ports = self._ports
        boot = Boot(
            settings=self._settings,
            ports=ports,
            operator=self._operator,
            models=self._models,
            sheet=self.sheet,
            chain=await self._patiently(ports.ledger.info),
            keys=BootKeys.make(ports.entropy),
        )
        till = boot.till()
        notary = boot.notary()
        desk = boot.desk(
            keyring=self._keyring,
            till=till,
            notary=notary,
            gate=self._gate,
            ended=self._ended,
            health=self._health,
        )
        self._parts = _Parts(
            till=till, desk=desk, notary=notary, evidence=boot.evidence(), chain_id=boot.chain.chain_id
        )
        await till.load()
        await notary.load()
        await self._ended.load(ports.store, ports.clock.now())
        await self._patiently(self._new_period)
        registration = Registration(boot.registration(), ledger=ports.ledger, signer=self._operator)
        await self._patiently(registration.publish)
        self._diallings = tuple(
            Dialling(peer, ports.dialer, self._open_session, ports.clock, ports.entropy, self._settings.timings)
            for peer in self._settings.proxies
        )
        self._spawn(
            *(dialling.run() for dialling in self._diallings), self._rotate(), self._report(), self._earn(registration)
        )

    async def drain(self) -> None:
        """Finish what runs, take nothing new, claim what was earned, go."""
        self._gate.closed = True
        for dialling in self._diallings:
            dialling.stop()
        sessions = tuple(self._sessions)
        for session in sessions:
            session.announce_drain()
        if not await _within(self._settings.timings.drain, *(session.settled() for session in sessions)):
            for session in sessions:
                session.stop_streams()
            await _within(LAST_WORDS, *(session.settled() for session in sessions))
        await self.claim(everything=True)
        await _within(LAST_WORDS, *(session.close() for session in sessions))
        await self.stop()

    async def stop(self) -> None:
        """Cut everything now. Rows already written say what was earned."""
        self._gate.closed = True
        sessions = tuple(self._sessions)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _within(LAST_WORDS, *(session.settled() for session in sessions))
        for health in self._health.values():
            await health.stop()
        self._tasks.clear()
        self.ready.clear()

    async def claim(self, *, everything: bool = False) -> Amount:
        """Claim what is due; `everything`: whatever is owed, due or not."""
        if self._parts is None:
            return Amount(0)
        try:
            return await self._parts.till.claim(self._operator, everything=everything)
        except BombyxError as error:
            log.warning("claiming: %s", error)
            return Amount(0)

    # --- clocks ---

    async def _rotate(self) -> None:
        """New keys each period. The old ones still open requests for the overlap, then they are dropped."""
        times, clock = self._settings.timings, self._ports.clock
        while True:
            await clock.sleep(max(0.0, self._period.made_at + times.rotation - clock.monotonic()))
            await self._patiently(self._new_period)
            for session in tuple(self._sessions):
                session.introduce()
            log.info("keys rotated; the old ones end in %d s", times.overlap)

    async def _report(self) -> None:
        clock = self._ports.clock
        while True:
            await clock.sleep(self._settings.timings.load_report)
            self._keyring.erase(clock.monotonic())
            for session in tuple(self._sessions):
                session.report_load()
                session.drop_stalled(self._settings.timings.upload_stall)

    async def _earn(self, registration: Registration) -> None:
        clock, store = self._ports.clock, self._ports.store
        while True:
            await clock.sleep(self._settings.timings.claim)
            await self.claim()
            try:
                if await registration.keep():
                    log.warning("the chain had lost our line of its registry: published again")
            except BombyxError as error:
                log.warning("our line of the registry: %s", error)
            try:
                await store.write(self._ended.prune(clock.now()))
                await self._booted.notary.forget(clock.now())
            except Unavailable as error:  # a store that is full now may not be later
                log.warning("forgetting: %s", error)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until chain and enclave device answer: without them there is nothing a worker could do instead."""
        while True:
            try:
                return await work()
            except Unavailable as error:
                log.warning("waiting: %s", error)
                await self._ports.clock.sleep(self._settings.timings.retry_publish)

    # --- parts ---

    async def _new_period(self) -> None:
        period = await self._booted.evidence.period(self._keyring.new_gateways(self._ports.entropy))
        self._keyring.add(period)

    @property
    def _booted(self) -> _Parts:
        if self._parts is None:
            raise Unavailable("the worker has not started")
        return self._parts

    def _open_session(self, link: Link, peer: ProxyPeer) -> LinkSession:
        parts = self._booted
        return LinkSession(
            link,
            parts.desk,
            self._uploads,
            chain_id=parts.chain_id,
            expected_proxy=peer.address,
            handshake_seconds=self._settings.timings.handshake,
            on_welcome=self._welcomed,
            on_end=self._sessions.discard,
        )

    def _welcomed(self, session: LinkSession) -> None:
        self._sessions.add(session)
        self.ready.set()

    def _spawn(self, *works: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(work) for work in works]


async def _within(seconds: float, *works: Coroutine[Any, Any, None]) -> bool:
    """Run all; False when the time was up first."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*works)
    except TimeoutError:
        return False
    return True
