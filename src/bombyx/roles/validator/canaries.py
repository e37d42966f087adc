# SPDX-License-Identifier: Apache-2.0
"""Asks one epoch's canaries at times nobody can foresee, and has each answer judged (spec AUD-50, AUD-53).

Not here: whom to ask and what (`protocol/audit/plan.py`), what an answer is worth (`examine.py`). Always: a plan is
durable and its root on chain before its first canary leaves; an answer is durable before it is weighed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from bombyx.errors import BombyxError, Unavailable
from bombyx.ports import Clock, Entropy, Validation
from bombyx.protocol.audit.case import ValidationParameters
from bombyx.protocol.audit.jury import asked_tokens, canary_nonce
from bombyx.protocol.audit.plan import Plan, Target, make_plan
from bombyx.protocol.audit.rate import adapted, canaries
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.cases import PlannedCanary
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.asking import Asker, Ended, Heard, OnOffer
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.examine import Examiner
from bombyx.roles.validator.register import Register
from bombyx.roles.validator.settings import ValidatorSettings
from bombyx.roles.validator.standing import Standing

log = logging.getLogger("bombyx.validator")


class Rounds:
    """One epoch after the other: while one is asked, the next is planned."""

    def __init__(
        self,
        settings: ValidatorSettings,
        *,
        key: SigningKey,
        parameters: ValidationParameters,
        validation: Validation,
        book: Book,
        examiner: Examiner,
        register: Register,
        asker: Callable[[int], Asker],
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._settings = settings
        self._key = key
        self._parameters = parameters
        self._validation = validation
        self._book = book
        self._examiner = examiner
        self._register = register
        self._asker = asker
        self._clock = clock
        self._entropy = entropy
        self._judging = asyncio.Semaphore(settings.judged_at_once)
        self._asking = asyncio.Semaphore(settings.at_once)
        self.weighing = asyncio.Lock()
        self.under_way: set[int] = set()  # epochs whose canaries are still being asked
        self.on_weighed: Callable[[Standing], None] = lambda _: None
        self.on_planned: Callable[[Plan], None] = lambda _: None

    async def run(self) -> None:
        """For ever; an epoch that cannot be planned is left out, and said."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                epoch = self._parameters.epoch_of(self._clock.now().seconds) + 1
                try:
                    asker = self._asker(epoch)
                    plan = await self._prepare(epoch, asker)
                except BombyxError as error:
                    log.warning("epoch %d is left out: %s", epoch, error)
                    await self._until(epoch)
                    continue
                await self._until(epoch)
                task = asyncio.create_task(self._ask_all(plan, asker))
                running.add(task)
                task.add_done_callback(running.discard)
        finally:
            for task in list(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _until(self, epoch: int) -> None:
        """Into the epoch by a little: a chain's clock moves block by block."""
        begin = self._parameters.epoch_start(epoch) + 0.5
        await self._clock.sleep(max(0.1, begin - int(self._clock.now()) / 1_000))

    # --- planning ---

    async def _prepare(self, epoch: int, asker: Asker) -> Plan:
        """A plan, kept and then committed. One that was kept by an earlier run of ours is asked no more."""
        if await self._book.plan(epoch) is not None:
            raise Unavailable("it was planned before a restart", rule="AUD-50")
        await asker.open()
        try:
            targets = await self._targets(await asker.on_offer())
            if not targets:
                raise Unavailable("nothing on offer that can be audited", rule="AUD-50")
            plan = make_plan(
                epoch,
                targets,
                self._entropy.bytes(32),
                k=self._settings.k,
                single_bps=self._settings.single_bps,
            )
            await self._book.keep_plan(plan)
            await self._validation.commit_plan(epoch, plan.root, len(plan.canaries), signer=self._key)
        except BaseException:
            await asker.close()
            raise
        self.on_planned(plan)
        log.info("epoch %d: %d canaries planned and committed", epoch, len(plan.canaries))
        return plan

    async def _targets(self, offered: Sequence[OnOffer]) -> list[Target]:
        """Every worker of every model that has a calibration and weights of ours to re-run it with."""
        targets: list[Target] = []
        for offer in offered:
            manifest = ModelManifest.decode(offer.manifest)
            if manifest.calibration is None or not self._examiner.knows(manifest):
                continue
            await self._book.keep_manifest(offer.model, offer.manifest)
            targets += [await self._target(offer, operator) for operator in offer.operators]
        return targets

    async def _target(self, offer: OnOffer, operator: Address) -> Target:
        settings = self._settings
        standing = await self._book.standing(operator, offer.model)
        new = standing is None or standing.judged < settings.known_after
        least = settings.canaries_new if new else settings.canaries
        number = canaries(
            _share(settings.audited, standing),
            await self._register.served(operator),
            self._register.validators,
            least=least,
            most=settings.most_canaries,
        )
        if standing is not None and standing.suspicious:
            number = max(2 * settings.canaries_new, min(2 * number, settings.most_canaries))
        return Target(
            operator=operator,
            model=offer.model,
            name=offer.name,
            canaries=number,
            most=settings.most_tokens,
            others=tuple(other for other in offer.operators if other != operator),
        )

    # --- asking ---

    async def _ask_all(self, plan: Plan, asker: Asker) -> None:
        self.under_way.add(plan.epoch)
        try:
            await asyncio.gather(*(self._one(plan, canary, asker) for canary in plan.canaries))
        finally:
            self.under_way.discard(plan.epoch)
            await asker.close()

    async def _one(self, plan: Plan, canary: PlannedCanary, asker: Asker) -> None:
        await self._clock.sleep(self._when(plan, canary))
        async with self._asking:
            heard = await asker.ask(canary, canary_nonce(canary))
        try:
            await self._take(plan, canary, heard)
        except BombyxError as error:
            log.warning("canary %d of epoch %d was not judged: %s", canary.index, plan.epoch, error)

    def _when(self, plan: Plan, canary: PlannedCanary) -> float:
        """Seconds from now: its share of the epoch, and within it any moment."""
        span = self._parameters.epoch_seconds * (1 - self._settings.reserve)
        share = int.from_bytes(self._entropy.bytes(4)) / 2**32
        begin = self._parameters.epoch_start(plan.epoch) - int(self._clock.now()) / 1_000
        return max(0.0, begin + span * (canary.index + share) / len(plan.canaries))

    async def _take(self, plan: Plan, canary: PlannedCanary, heard: Heard) -> None:
        """Keep it, judge it, weigh it: for who answered, and as absent for the canary's other candidates."""
        manifest = await self._manifest(canary)
        verdict: ResponseVerdict | None = None
        if heard.ended is Ended.ANSWERED and heard.operator is not None:
            await self._book.keep_answer(plan.epoch, canary.index, heard.operator, heard.package, heard.bundle)
            async with self._judging:
                await self._examiner.calm()
                verdict = await self._examiner.examine(AuditPackage.decode(heard.package), manifest)
            await self._book.keep_verdict(plan.epoch, canary.index, verdict)
        async with self.weighing:
            for operator in canary.candidates:
                await self._weigh(plan, canary, operator, heard, verdict, manifest)

    async def _weigh(
        self,
        plan: Plan,
        canary: PlannedCanary,
        operator: Address,
        heard: Heard,
        verdict: ResponseVerdict | None,
        manifest: ModelManifest,
    ) -> None:
        assert manifest.calibration is not None  # or it would not have been planned
        standing = await self._book.standing(operator, canary.model)
        if standing is None:
            standing = Standing.new(operator, canary.model, canary.name, manifest.calibration)
        own = heard.operator == operator
        if own or len(canary.candidates) == 1:
            standing = standing.heard(heard)
        standing = standing.weigh(verdict) if own and verdict is not None else standing.without(asked_tokens(canary))
        await self._book.keep(standing)
        self.on_weighed(standing)

    async def _manifest(self, canary: PlannedCanary) -> ModelManifest:
        data = await self._book.manifest(canary.model)
        if data is None:
            raise Unavailable("the model's manifest is lost", rule="AUD-53")
        return ModelManifest.decode(data)


def _share(base: float, standing: Standing | None) -> float:
    """Raised for workers without a record, and with the evidence (JDG-22)."""
    if standing is None:
        return adapted(base, audits=0, log10_evidence=0.0)
    return adapted(base, audits=standing.judged, log10_evidence=standing.weighed.peak)
