# SPDX-License-Identifier: Apache-2.0
"""Evidence of a thousand to one: other validators are asked to look (spec AUD-60).

They are handed a few of our own failed canary answers, as any client hands over an answer (AUD-57): each judges them
itself, asks that worker more, and accuses by what its own canaries find. Not here: how a package travels (`compose`).

Always: answers of epochs whose canaries have all been asked, so that who reads them learns of no canary that is still
to come; an alarm is durable before it leaves; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Final

from bombyx.errors import BombyxError
from bombyx.ports import Clock
from bombyx.protocol.audit.case import Case, CaseState, Ending, ValidationParameters
from bombyx.protocol.audit.verdict import ALARM
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.roles.validator.asking import Others
from bombyx.roles.validator.book import Alarmed, Book
from bombyx.roles.validator.standing import Standing

ANSWERS: Final = 3  # handed over; a jury wants as many failures
ALARMS: Final = 8  # about one worker and model, ever: evidence that hovers about the bound is no news
TRIES: Final = 8  # to reach everybody; each pause is twice the one before
LOOK_SECONDS: Final = 15.0
SETTLE_SECONDS: Final = 20.0  # after an epoch's end; a case in this time makes an alarm superfluous
TELL_SECONDS: Final = 30.0  # for one validator
TOLD_AT_ONCE: Final = 4
BLOCK: Final = 64  # epochs, back from the newest, that are looked through
_PUNISHED = (Ending.SLASHED, Ending.STRUCK)
log = logging.getLogger("bombyx.validator")


class Alarms:
    """Looks at standings from time to time."""

    def __init__(
        self,
        *,
        book: Book,
        clock: Clock,
        parameters: ValidationParameters,
        others: Others,
        under_way: Container[int],
        cases: Callable[[], Iterable[Case]],
        decoy: Address | None,
    ) -> None:
        """`under_way`: epochs still asked; `cases`: as the chain has them; `decoy`: a worker no alarm is about."""
        self._book = book
        self._clock = clock
        self._parameters = parameters
        self._others = others
        self._under_way = under_way
        self._cases = cases
        self._decoy = decoy
        self._due: dict[tuple[Address, Digest], float] = {}  # when the next try is
        self._telling = asyncio.Semaphore(TOLD_AT_ONCE)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except BombyxError as error:
                log.warning("other validators were not told: %s", error)

    async def look(self) -> None:
        """Raise what is to be raised, and go on with what has not reached everybody."""
        for standing in await self._book.standings():
            if standing.operator != self._decoy:
                await self._look(standing)

    async def _look(self, standing: Standing) -> None:
        known = await self._book.alarmed(standing.operator, standing.model)
        alarmed = await self._after(known, standing)
        if alarmed != known:
            await self._book.keep_alarmed(standing.operator, standing.model, alarmed)
        due = self._due.get((standing.operator, standing.model), 0.0)
        if alarmed.answers and alarmed.tries < TRIES and self._clock.monotonic() >= due:
            await self._hand_over(standing, alarmed)

    async def _after(self, known: Alarmed, standing: Standing) -> Alarmed:
        """What was known, after a look at the evidence as it is now."""
        high = standing.weighed.log10 >= ALARM
        if not high and (known.times or standing.weighed.peak < ALARM):
            return replace(known, high=False)
        if known.high or known.times >= ALARMS:
            return known
        answers = await self._failed(standing)
        if not answers:
            return known  # nothing to show yet
        log.warning("worker %s: alarm %d, %d answers for others to look at", standing.operator, known.times + 1,
                    len(answers))  # fmt: skip
        self._due.pop((standing.operator, standing.model), None)
        return Alarmed(times=known.times + 1, high=True, answers=answers)

    async def _failed(self, standing: Standing) -> tuple[tuple[int, int], ...]:
        """The newest failed answers that may be shown."""
        last = self._parameters.epoch_of(int(int(self._clock.now()) / 1_000 - SETTLE_SECONDS)) - 1
        found: list[tuple[int, int]] = []
        for epoch in (await self._book.epochs())[: -BLOCK - 1 : -1]:
            if epoch > last or epoch in self._under_way or self._public(standing, epoch):
                continue
            plan, verdicts = await self._book.plan(epoch), await self._book.verdicts(epoch)
            for index, _, _ in await self._book.answers(epoch, standing.operator):
                own = plan is not None and plan.canaries[index].model == standing.model
                if own and index in verdicts and verdicts[index].failed:
                    found.append((epoch, index))
            if len(found) >= ANSWERS:
                break
        return tuple(found[:ANSWERS])

    def _public(self, standing: Standing, epoch: int) -> bool:
        """Whoever watches the chain has heard: a case about it is open, or convicted it."""
        return any(
            case.state is not CaseState.CLOSED or (case.ending in _PUNISHED and case.accusation.to_epoch >= epoch)
            for case in self._cases()
            if (case.accused, case.accusation.model) == (standing.operator, standing.model)
        )

    # --- telling ---

    async def _hand_over(self, standing: Standing, alarmed: Alarmed) -> None:
        packages = await self._packages(standing.operator, alarmed)
        waiting = [one for one in await self._others.taking() if one not in alarmed.told]
        took = await asyncio.gather(*(self._tell(one, packages) for one in waiting))
        told = tuple(one for one, yes in zip(waiting, took, strict=True) if yes)
        tries = alarmed.tries + 1 if len(told) < len(waiting) else TRIES
        await self._book.keep_alarmed(
            standing.operator, standing.model, replace(alarmed, tries=tries, told=alarmed.told + told)
        )
        self._due[standing.operator, standing.model] = self._clock.monotonic() + LOOK_SECONDS * 2**alarmed.tries
        if len(told) < len(waiting):
            log.warning("worker %s: %d validators not told in try %d", standing.operator, len(waiting) - len(told),
                        tries)  # fmt: skip

    async def _packages(self, operator: Address, alarmed: Alarmed) -> list[AuditPackage]:
        return [
            AuditPackage.decode(package)
            for epoch in sorted({epoch for epoch, _ in alarmed.answers})
            for index, _, package in await self._book.answers(epoch, operator)
            if (epoch, index) in alarmed.answers
        ]

    async def _tell(self, validator: Address, packages: list[AuditPackage]) -> bool:
        """Whether it took all of them. What it has twice it judges once (AUD-57)."""
        async with self._telling:
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    for package in packages:
                        await self._others.tell(validator, package)
            except BombyxError as error:
                log.info("validator %s was not told: %s", validator, error)
                return False
            except TimeoutError:
                log.info("validator %s was not told in time", validator)
                return False
        return True
