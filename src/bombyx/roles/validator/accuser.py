# SPDX-License-Identifier: Apache-2.0
"""Opens a case when a validator's own canaries speak a million to one against a worker (spec AUD-54).

Not here: juries (`juror.py`), samples (`plants.py`). Always: the evidence is every canary of every plan since the block
of epochs began, weighed here exactly as a juror will weigh it; it is durable and served before the case names it;
nobody is accused twice for the same epochs, nor while another case against the same worker and model is open.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from bombyx.errors import BombyxError
from bombyx.ports import Clock, Entropy, Validation
from bombyx.protocol.audit.case import (
    Accusation,
    Case,
    CaseState,
    Ending,
    ValidationParameters,
    Verdict,
)
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.jury import asked_tokens, first_epoch
from bombyx.protocol.audit.verdict import SLASH, find
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.cases import CaseEvidence, EpochEvidence
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.standing import Standing

log = logging.getLogger("bombyx.validator")
_PUNISHED = (Ending.SLASHED, Ending.STRUCK)  # it was found guilty for this already
SPREAD_SECONDS = 12.0  # validators who find the same at the same time do not all pay a bond


class Accuser:
    """Looks at standings after each epoch."""

    def __init__(
        self,
        *,
        key: SigningKey,
        url: str,
        parameters: ValidationParameters,
        validation: Validation,
        book: Book,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._key = key
        self._url = url
        self._parameters = parameters
        self._validation = validation
        self._book = book
        self._clock = clock
        self._entropy = entropy
        self.most = CaseEvidence.MAX_SIZE
        self.opened: list[int] = []
        self.on_convicting: Callable[[Standing], Awaitable[object]] = self.accuse

    async def look(self) -> None:
        """Accuse whom the ended epochs convict. What the chain refuses is said and left."""
        for standing in await self._book.standings():
            if standing.weighed.peak < SLASH:
                continue
            try:
                await self.on_convicting(standing)
            except BombyxError as error:
                log.warning("no case against %s: %s", standing.operator, error)

    async def accuse(self, standing: Standing) -> None:
        """In earnest."""
        last = await self.last_epoch()
        evidence = await self.evidence(standing.operator, standing.model, last)
        if evidence is None or not await self.our_turn(standing, last):
            return
        await self.open(evidence, last, Digest(self._entropy.bytes(Digest.SIZE)))  # a plant that opens to nothing

    async def last_epoch(self) -> int:
        """The last that has ended."""
        now, _ = await self._validation.now()
        return self._parameters.epoch_of(now) - 1

    async def our_turn(self, standing: Standing, last: int, *, samples: bool = False) -> bool:
        """Whether nobody accuses it: asked again after a while that nobody foresees."""
        if await self._spoken_for(standing, last, samples=samples):
            return False
        await self._clock.sleep(SPREAD_SECONDS * self._entropy.bytes(1)[0] / 256)
        return not await self._spoken_for(standing, last, samples=samples)

    async def open(self, evidence: CaseEvidence, last: int, plant: Digest) -> int:
        """Durable and served before the chain names it."""
        data = evidence.encode()
        await self._book.keep_evidence(sha256(data), data)
        accusation = Accusation(
            accused=evidence.accused,
            model=evidence.model,
            evidence=sha256(data),
            uri=self._url,
            from_epoch=first_epoch(last),
            to_epoch=last,
            plant=plant,
        )
        case = await self._validation.open_case(accusation, signer=self._key)
        self.opened.append(case)
        log.warning("case %d against %s", case, evidence.accused)
        return case

    async def _spoken_for(self, standing: Standing, last: int, *, samples: bool) -> bool:
        """Somebody accuses it already; it was convicted for an epoch of this block, or we had our case about it."""
        return any(
            case.state is not CaseState.CLOSED
            or (case.accusation.to_epoch >= first_epoch(last) and self._settled(case, samples=samples))
            for case in await self._validation.cases()
            if (case.accused, case.accusation.model) == (standing.operator, standing.model)
        )

    def _settled(self, case: Case, *, samples: bool) -> bool:
        """A sample that ended counts against the next sample alone: what comes later may be meant in earnest."""
        if case.ending in _PUNISHED:
            return True
        ours = case.accuser == self._key.address and case.ending in (Ending.ACQUITTED, Ending.PLANTED)
        return ours and (samples or case.accusation.plant != Digest.zero())

    async def evidence(self, accused: Address, model: Digest, last: int) -> CaseEvidence | None:
        """The case as it stands after epoch `last`; None where a jury that believed every word would not convict.

        Where it is larger than jurors read, answers that passed are left out: that only helps the accused (AUD-54)."""
        for failed_alone in (False, True):
            case = await self._shown(accused, model, last, failed_alone=failed_alone)
            if case is None or find(await self._weighed(case, failed_alone=failed_alone)) is not Verdict.GUILTY:
                return None
            if len(case.encode()) <= self.most:
                return case
        log.warning("no case against %s: the answers that failed alone are more than jurors read", accused)
        return None

    async def whole(self, accused: Address, model: Digest, last: int) -> CaseEvidence | None:
        """Everything planned since the block of epochs began, and what this worker answered, if jurors read so much."""
        case = await self._shown(accused, model, last, failed_alone=False)
        return case if case is not None and len(case.encode()) <= self.most else None

    async def _shown(self, accused: Address, model: Digest, last: int, *, failed_alone: bool) -> CaseEvidence | None:
        manifest = await self._book.manifest(model)
        if manifest is None:
            return None
        bundles: dict[Digest, bytes] = {}
        planned = [epoch for epoch in await self._book.epochs() if first_epoch(last) <= epoch <= last]
        epochs = [
            await self._epoch(one, accused, model, bundles, failed_alone=failed_alone)
            for one in planned
            if await self._committed(one)
        ]
        return CaseEvidence(
            v=1,
            accuser=self._key.address,
            accused=accused,
            model=model,
            manifest=manifest,
            epochs=tuple(epochs),
            bundles=tuple(bundles.values()),
        )

    async def _committed(self, epoch: int) -> bool:
        return await self._validation.plan_of(self._key.address, epoch) is not None

    async def _epoch(
        self, epoch: int, accused: Address, model: Digest, bundles: dict[Digest, bytes], *, failed_alone: bool
    ) -> EpochEvidence:
        """One epoch as it is shown; what its answers stand on is added to `bundles`."""
        plan = await self._book.plan(epoch)
        assert plan is not None  # it is from the book's own list
        found = await self._book.verdicts(epoch)
        packages = []
        for index, bundle, package in await self._book.answers(epoch, accused):
            passed = index not in found or not found[index].failed
            if plan.canaries[index].model == model and not (failed_alone and passed):
                packages.append(package)
                bundles[bundle] = await self._book.bundle(bundle) or b""
        return EpochEvidence(epoch=epoch, salt=plan.salt, canaries=plan.canaries, packages=tuple(packages))

    async def _weighed(self, case: CaseEvidence, *, failed_alone: bool) -> Evidence:
        """As a juror will weigh it, from what we found of each answer when it came."""
        calibration = ModelManifest.decode(case.manifest).calibration
        assert calibration is not None  # or nothing would have been planned
        weighed = Evidence.none(calibration)
        for one in case.epochs:
            found = await self._book.verdicts(one.epoch)
            answered = {index for index, _, _ in await self._book.answers(one.epoch, case.accused)}
            for canary in one.canaries:
                if canary.model == case.model and case.accused in canary.candidates:
                    own = found.get(canary.index) if canary.index in answered else None
                    shown = own is not None and (own.failed or not failed_alone)
                    weighed = own.into(weighed) if shown and own else weighed.absent(asked_tokens(canary))
        return weighed
