# SPDX-License-Identifier: Apache-2.0
"""Answers of users who wanted them checked: handed over after delivery, sealed to this validator's enclave (AUD-57).

Not here: cases. What users hand over raises the rate of canaries and an alarm; nobody is accused with it, for whoever
hands answers over chooses which. Always: a package lives in memory until it is judged, and nothing of it is kept but a
verdict; a package whose receipt does not bind it counts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from bombyx.errors import BombyxError, MalformedMessage, Overloaded, Peer
from bombyx.ports import Entropy
from bombyx.protocol.audit.rate import adapted, selected
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal import GatewayKey, decapsulate_request
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.examine import Examiner
from bombyx.roles.validator.settings import ValidatorSettings
from bombyx.roles.validator.standing import Standing

LABEL: Final = b"message/bombyx-opt-in request v1"
log = logging.getLogger("bombyx.validator")


class OptIns:
    """A bounded queue, and one task that judges what the lottery draws."""

    def __init__(
        self,
        settings: ValidatorSettings,
        *,
        keys: Callable[[], tuple[GatewayKey, ...]],
        domain: Digest,
        examiner: Examiner,
        book: Book,
        entropy: Entropy,
        is_worker_key: Callable[[Address, Address], Awaitable[bool]],
        weighing: asyncio.Lock,
    ) -> None:
        """`weighing`: held by whoever changes a standing."""
        self._weighing = weighing
        self.on_weighed: Callable[[Standing], None] = lambda _: None
        self._settings = settings
        self._keys = keys
        self._domain = domain
        self._examiner = examiner
        self._book = book
        self._entropy = entropy
        self._is_worker_key = is_worker_key
        self._waiting: deque[AuditPackage] = deque()
        self._seen: set[Digest] = set()
        self._come = asyncio.Event()

    async def take(self, sealed: bytes) -> None:
        """One sealed package. Raises what is wrong with it."""
        if len(sealed) > self._settings.max_opt_in:
            raise MalformedMessage("a package above the limit", peer=Peer.CLIENT, rule="AUD-57")
        if len(self._waiting) >= self._settings.opt_ins_kept:
            raise Overloaded("too many answers wait to be judged", retry_after=30.0, rule="AUD-57")
        plain, _, _ = decapsulate_request(self._keys(), sealed, label=LABEL)
        package = AuditPackage.decode(plain)
        digest = package.receipt.receipt.typed_digest(self._domain)
        if digest in self._seen:
            return  # judged once; more of the same says no more
        if self._of(package.receipt.receipt.operator) >= max(2, self._settings.opt_ins_kept // 8):
            raise Overloaded("too many answers of this worker wait to be judged", retry_after=30.0, rule="AUD-57")
        receipt = package.receipt
        if not await self._is_worker_key(receipt.receipt.operator, receipt.signer(self._domain)):
            raise MalformedMessage("a receipt of no registered worker", peer=Peer.CLIENT, rule="AUD-57")
        self._remember(digest)
        # Nobody foresees these bytes, so neither worker nor client chooses what is judged.
        if selected(Digest(self._entropy.bytes(32)), digest, await self._share(receipt.receipt.operator, package)):
            self._waiting.append(package)
            self._come.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._come.wait()
            while self._waiting:
                try:
                    await self._judge(self._waiting.popleft())
                except BombyxError as error:
                    log.info("an answer handed over was not judged: %s", error)
            self._come.clear()

    async def _judge(self, package: AuditPackage) -> None:
        receipt = package.receipt.receipt
        data = await self._book.manifest(receipt.model)
        if data is None:
            return
        manifest = ModelManifest.decode(data)
        await self._examiner.calm()
        verdict = await self._examiner.examine(package, manifest)
        assert manifest.calibration is not None  # or it could not have been judged
        async with self._weighing:
            standing = await self._book.standing(receipt.operator, receipt.model)
            if standing is None:
                standing = Standing.new(receipt.operator, receipt.model, manifest.name, manifest.calibration)
            standing = standing.opted(verdict)
            await self._book.keep(standing)
            self.on_weighed(standing)

    async def _share(self, worker: Address, package: AuditPackage) -> float:
        standing = await self._book.standing(worker, package.receipt.receipt.model)
        audits = 0 if standing is None else standing.judged + standing.opted_in
        peak = 0.0 if standing is None else standing.weighed.peak
        return adapted(self._settings.share, audits=audits, log10_evidence=peak)

    def _of(self, worker: Address) -> int:
        """How many of its answers wait: one worker's never keep those of others out."""
        return sum(package.receipt.receipt.operator == worker for package in self._waiting)

    def _remember(self, digest: Digest) -> None:
        if len(self._seen) >= 16 * self._settings.opt_ins_kept:
            self._seen.clear()
        self._seen.add(digest)
