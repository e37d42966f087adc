# SPDX-License-Identifier: Apache-2.0
"""A worker from boot to drain: the parts put together, and the clocks that drive them.

Not here: what any part does. Engines, stores and sockets belong to whoever started them and are not closed here.

Always: nothing is dialled before the keys are made, quoted and registered; a key rotation refuses no request; after
`drain` nothing new is taken, what runs is finished, and what was earned is claimed.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from bombyx.errors import BombyxError, ConfigError, Unavailable
from bombyx.ports import (
    Clock,
    Dialer,
    EndorsementSource,
    EvidenceSource,
    Ledger,
    LedgerInfo,
    Link,
    Operator,
    OperatorRole,
    Store,
)
from bombyx.protocol.pay.payee import PayeeTerms
from bombyx.protocol.pay.price import check_sheet
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.evidence import Keyset
from bombyx.protocol.wire.market import ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.signing import SigningKey
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
from bombyx.roles.worker.serve import Server
from bombyx.roles.worker.settings import ProxyPeer, ServedModel, WorkerSettings
from bombyx.roles.worker.uploads import Uploads

log = logging.getLogger("bombyx.worker")
T = TypeVar("T")

LAST_WORDS: Final = 2.0  # seconds links get to take what was said before they are closed


class EnclaveEntropy(Protocol):
    """`ports.Entropy` and `seal.Randomness` in one: the enclave's own source."""

    def bytes(self, size: int) -> builtins.bytes: ...

    def mlkem768_encapsulate(self, public_key: builtins.bytes) -> tuple[builtins.bytes, builtins.bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPorts:
    """The outside world of one worker."""

    clock: Clock
    entropy: EnclaveEntropy
    store: Store
    ledger: Ledger
    device: EvidenceSource
    endorser: EndorsementSource | None
    dialer: Dialer


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
        self._boot: BootKeys | None = None
        self._chain: LedgerInfo | None = None
        self._desk: Desk | None = None
        self._till: Till | None = None
        self._evidence: EvidenceMaker | None = None

    # --- what others may look at ---

    @property
    def operator(self) -> Address:
        return self._operator.address

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
        self._boot = BootKeys.make(ports.entropy)
        self._chain = await self._patiently(ports.ledger.info)
        self._till = self._new_till(self._boot, self._chain)
        await self._till.load()
        await self._ended.load(ports.store, ports.clock.now())
        self._evidence = self._evidence_maker(self._boot, self._chain)
        await self._patiently(self._new_period)
        await self._patiently(self._register)
        self._desk = self._new_desk(self._boot, self._chain, self._till)
        self._diallings = tuple(
            Dialling(peer, ports.dialer, self._open_session, ports.clock, ports.entropy, self._settings.timings)
            for peer in self._settings.proxies
        )
        self._spawn(*(dialling.run() for dialling in self._diallings), self._rotate(), self._report(), self._earn())

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
        if self._till is None:
            return Amount(0)
        try:
            return await self._till.claim(self._operator, everything=everything)
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

    async def _earn(self) -> None:
        clock, store = self._ports.clock, self._ports.store
        while True:
            await clock.sleep(self._settings.timings.claim)
            await self.claim()
            forgotten = self._ended.prune(clock.now())
            if forgotten:
                await store.write(forgotten)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until chain and enclave device answer: without them there is nothing a worker could do instead."""
        while True:
            try:
                return await work()
            except Unavailable as error:
                log.warning("waiting: %s", error)
                await self._ports.clock.sleep(self._settings.timings.retry_publish)

    # --- making the parts ---

    async def _new_period(self) -> None:
        if self._evidence is None:
            raise Unavailable("the worker has not started")
        self._keyring.add(await self._evidence.period(self._keyring.new_gateways(self._ports.entropy)))

    async def _register(self) -> None:
        boot = self._booted
        line = Operator(
            address=self._operator.address,
            role=OperatorRole.WORKER,
            endpoint="",
            receipt_address=boot.receipt.address,
            pay_authorizer=boot.pay_authorizer.address,
            pay_key_config=boot.pay_gateway.config.encode(),
            price_sheet=self.sheet.digest(),
            models=tuple(self._models),
        )
        await self._ports.ledger.register(line, signer=self._operator)

    @property
    def _booted(self) -> BootKeys:
        if self._boot is None:
            raise Unavailable("the worker has not started")
        return self._boot

    def _new_till(self, boot: BootKeys, chain: LedgerInfo) -> Till:
        terms = PayeeTerms(
            receiver=self._operator.address,
            receiver_authorizer=boot.pay_authorizer.address,
            token=chain.token,
            claim_threshold=self._settings.claim_threshold,
        )
        ports = self._ports
        return Till(
            terms,
            settlement_domain(chain.chain_id, chain.settlement),
            store=ports.store,
            ledger=ports.ledger,
            gateway=boot.pay_gateway,
            clock=ports.clock,
        )

    def _evidence_maker(self, boot: BootKeys, chain: LedgerInfo) -> EvidenceMaker:
        ports = self._ports
        return EvidenceMaker(
            operator=self._operator.address,
            chain=chain,
            boot=boot,
            manifests=[model.manifest for model in self._models.values()],
            device=ports.device,
            endorser=ports.endorser,
            ledger=ports.ledger,
            clock=ports.clock,
            timings=self._settings.timings,
        )

    def _new_desk(self, boot: BootKeys, chain: LedgerInfo, till: Till) -> Desk:
        settings, ports = self._settings, self._ports
        domain = receipt_domain(chain.chain_id, chain.registry)
        server = Server(
            models=self._models,
            sheet=self.sheet,
            keyring=self._keyring,
            till=till,
            notary=Notary(boot.receipt, domain, self._operator.address, ports.store),
            ended=self._ended,
            gate=self._gate,
            health=self._health,
            limits=settings.limits,
            clock=ports.clock,
            entropy=ports.entropy,
        )
        return Desk(
            operator=self._operator,
            keyring=self._keyring,
            sheet=self.sheet,
            blobs=[model.token_table for model in self._models.values() if model.token_table is not None],
            hardware=settings.hardware,
            trusted=frozenset(peer.address for peer in settings.proxies if peer.address is not None),
            gate=self._gate,
            server=server,
            till=till,
            ledger=ports.ledger,
            entropy=ports.entropy,
        )

    def _open_session(self, link: Link, peer: ProxyPeer) -> LinkSession:
        if self._desk is None or self._chain is None:
            raise Unavailable("the worker has not started")
        return LinkSession(
            link,
            self._desk,
            self._uploads,
            chain_id=self._chain.chain_id,
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


def price_sheet(settings: WorkerSettings, operator: Address, models: tuple[Digest, ...]) -> PriceSheet:
    """The sheet this worker publishes. `ConfigError` for a model without a price: nothing is served by accident."""
    unpriced = [model for model in models if model not in settings.prices]
    if unpriced:
        raise ConfigError(f"{len(unpriced)} models have no price")
    lines = [(model, settings.prices[model]) for model in models]
    sheet = PriceSheet(
        v=1,
        operator=operator,
        grain=settings.grain,
        prices=tuple(
            ModelPrice(model=model, input=price.input, cached_input=price.cached_input, output=price.output)
            for model, price in lines
        ),
    )
    try:
        check_sheet(sheet)
    except BombyxError as error:
        raise ConfigError(f"the prices do not make a price sheet: {error}") from None
    return sheet


async def _within(seconds: float, *works: Coroutine[Any, Any, None]) -> bool:
    """Run all; False when the time was up first."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*works)
    except TimeoutError:
        return False
    return True
