# SPDX-License-Identifier: Apache-2.0
"""Who may link: a worker's HELLO is held against its evidence, the registry and its own signature (spec LINK-2, ATT-6).

Always: nothing is offered to clients before the proxy's own appraisal passed, the operator signed our challenge, and a
channel to pay it is deposited; what is published afterwards is named by that evidence.
"""

from __future__ import annotations

import asyncio
import logging

from bombyx.errors import BombyxError, MalformedMessage, NoWorkers, Peer
from bombyx.ports import Clock, Link, Operator
from bombyx.protocol.attest import AttestationResult
from bombyx.protocol.pay.price import check_sheet, price_of
from bombyx.protocol.primitives import Address, Digest, sha256, tagged_hash
from bombyx.protocol.seal import Randomness
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.records import LinkChallenge, LinkHello, LinkLoad, LinkWelcome
from bombyx.protocol.wire.signing import SigningKey, recover
from bombyx.roles.proxy.directory import Shelf, evidence_blobs, offered_blobs
from bombyx.roles.proxy.links import LinkSession
from bombyx.roles.proxy.metrics import Metrics
from bombyx.roles.proxy.registry import Registry
from bombyx.roles.proxy.roster import Roster, Worker
from bombyx.roles.proxy.settings import ProxySettings
from bombyx.roles.proxy.wallet import Wallet

log = logging.getLogger("bombyx.proxy")

LINK_VERSION = 1
MAX_CAPACITY = 4_096
MAX_HARDWARE = 64  # characters of what a worker calls its hardware


class Desk:
    """Takes links in. Implements `LinkDesk`."""

    def __init__(
        self,
        settings: ProxySettings,
        key: SigningKey,
        chain_id: int,
        registry: Registry,
        roster: Roster,
        wallet: Wallet,
        shelf: Shelf,
        metrics: Metrics,
        *,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._settings = settings
        self._key = key
        self._chain_id = chain_id
        self._registry = registry
        self._roster = roster
        self._wallet = wallet
        self._shelf = shelf
        self._metrics = metrics
        self._clock = clock
        self._randomness = randomness
        self._workers: dict[LinkSession, Worker] = {}
        self.links: set[LinkSession] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def on_link(self, link: Link) -> None:
        """A worker connected."""
        if len(self.links) >= self._settings.limits.workers:
            closing = asyncio.get_running_loop().create_task(link.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            log.warning("a worker's link is closed: %d are open", len(self.links))
            self._metrics.links.labels("turned away").inc()
            return
        session = LinkSession(
            link,
            self,
            handshake_seconds=self._settings.timings.handshake,
            max_streams=self._settings.limits.streams_per_link,
        )
        self.links.add(session)

    # --- LinkDesk ---

    def challenge(self) -> LinkChallenge:
        return LinkChallenge(
            v=LINK_VERSION,
            proxy=self._key.address,
            chain_id=self._chain_id,
            nonce=Digest(self._randomness.bytes(32)),
            at=self._clock.now(),
        )

    async def welcome(self, session: LinkSession, hello: LinkHello, nonce: Digest) -> bytes:
        try:
            return await self._welcome(session, hello, nonce)
        except BombyxError:
            self._metrics.links.labels("turned away").inc()
            raise

    async def _welcome(self, session: LinkSession, hello: LinkHello, nonce: Digest) -> bytes:
        self._check_form(hello)
        result, line = await self._registry.vet(hello.bundle)
        self._check_signature(hello, nonce, result.keyset.operator)
        sheet = self._check_sheet(hello, result, line)
        wanted = self._shelf.lacks(offered_blobs(hello, result))
        blobs = await session.fetch(wanted, limit=self._settings.limits.blob_bytes) if wanted else ()
        account = await self._wallet.account(line)
        if session.closed:
            raise NoWorkers("the link ended during its handshake", rule="LINK-2")
        worker = self._worker(session, hello, line)
        self._shelf.put((*evidence_blobs(hello), *blobs))
        self._roster.seat(worker, result, sheet, account)
        self._metrics.workers.set(len(self._roster.workers))
        log.info(
            "worker %s linked: %s, %d models, %s", line.address, result.trust_class, len(line.models), worker.hardware
        )
        return LinkWelcome(
            v=LINK_VERSION,
            proxy=self._key.address,
            commission_bps=self._settings.commission_bps,
            channel_config=account.channel.config.encode(),
            window=self._settings.stream_window,
            signature=self._key.sign(tagged_hash("bombyx welcome v1", hello.nonce, sha256(hello.bundle))),
        ).encode()

    def _worker(self, session: LinkSession, hello: LinkHello, line: Operator) -> Worker:
        known = self._workers.get(session)
        if known is not None:
            if known.operator != line.address:
                raise MalformedMessage("a link changed its operator", peer=Peer.WORKER, rule="LINK-2")
            known.capacity = hello.capacity
            return known
        worker = Worker(
            operator=line.address,
            link=session,
            hardware=hello.hardware,
            capacity=hello.capacity,
            stats=self._roster.stats_of(line.address, hello.hardware),
        )
        self._workers[session] = worker
        self._roster.take(worker)
        self._metrics.links.labels("welcomed").inc()
        return worker

    def _check_form(self, hello: LinkHello) -> None:
        if hello.v != LINK_VERSION or not 1 <= hello.capacity <= MAX_CAPACITY:
            raise MalformedMessage(
                f"link version {hello.v}, capacity {hello.capacity}", peer=Peer.WORKER, rule="LINK-2"
            )
        if len(hello.hardware) > MAX_HARDWARE or not hello.hardware.isprintable():
            raise MalformedMessage("a hardware name that cannot be shown", peer=Peer.WORKER, rule="LINK-2")

    def _check_signature(self, hello: LinkHello, nonce: Digest, operator: Address) -> None:
        signed = tagged_hash("bombyx link v1", nonce, self._key.address, sha256(hello.bundle))
        if recover(signed, hello.signature) != operator:
            raise MalformedMessage(
                "the HELLO is not signed by its operator for this challenge", peer=Peer.WORKER, rule="LINK-2"
            )

    def _check_sheet(self, hello: LinkHello, result: AttestationResult, line: Operator) -> PriceSheet:
        sheet = PriceSheet.decode(hello.price_sheet)
        check_sheet(sheet)
        if sheet.operator != line.address or sheet.digest() != line.price_sheet:
            raise MalformedMessage("the price sheet is not the registered one", peer=Peer.WORKER, rule="PAY-12")
        for model in result.keyset.models:
            price_of(sheet, model)
        return sheet

    async def recheck(self) -> None:
        """Let go of operators that the registry lists no more, and of keysets whose image its publishers have revoked
        (MKT-13, ATT-14)."""
        for worker in list(self._roster.workers.values()):
            if await self._registry.worker(worker.operator) is None:
                await self._eject(worker)
        for seat in [seat for worker in self._roster.workers.values() for seat in worker.seats]:
            if not await self._registry.still_admits(seat.result):
                self._roster.retract(seat)
                log.warning("worker %s: publishers revoked its image", seat.worker.operator)

    async def _eject(self, worker: Worker) -> None:
        """It was convicted, or left: nothing more is sent to it. Answers under way are cut with its link."""
        log.warning("worker %s is not in the registry any more", worker.operator)
        for seat in list(worker.seats):
            self._roster.retract(seat)
        self._metrics.links.labels("ejected").inc()
        await worker.link.close()

    def loaded(self, session: LinkSession, load: LinkLoad) -> None:
        worker = self._workers.get(session)
        if worker is not None:
            worker.reported = load

    def draining(self, session: LinkSession) -> None:
        worker = self._workers.get(session)
        if worker is not None and not worker.draining:
            worker.draining = True
            self._roster.changes += 1
            log.info("worker %s drains", worker.operator)

    def gone(self, session: LinkSession) -> None:
        self.links.discard(session)
        worker = self._workers.pop(session, None)
        if worker is None:
            return
        self._roster.drop(worker)
        self._metrics.workers.set(len(self._roster.workers))
        self._metrics.links.labels("ended").inc()
        log.info("worker %s left", worker.operator)
