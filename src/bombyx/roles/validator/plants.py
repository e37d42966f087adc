# SPDX-License-Identifier: Apache-2.0
"""Accusations whose right answer their accuser knows: they find jurors who vote without looking (spec AUD-59, VAL-13).

Two kinds. INNOCENT: a worker that did nothing; it costs the bond. GUILTY: a worker of our own, the decoy, that does
answer wrongly; whoever acquits it unseen gets a strike. A decoy that is convicted and not shown to be a sample is
slashed like anybody.

Always: salt and verdict are durable before the chain names the case, and one evidence has one salt for ever, so that a
case whose opening was in doubt can still be shown; what is shown is looked up in the chain's own words (an open
commitment that ours opens), never in memory; nobody but the decoy is planted GUILTY, and the decoy is never accused
in earnest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from bombyx.errors import PaymentError
from bombyx.ports import Entropy, Validation
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.audit.case import Case, CaseState, Verdict, plant_commitment
from bombyx.protocol.audit.commitment import request_digest
from bombyx.protocol.audit.plan import Plan
from bombyx.protocol.audit.verdict import ALARM
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.cases import CaseEvidence
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.accuser import Accuser
from bombyx.roles.validator.book import Book, Planted
from bombyx.roles.validator.standing import Standing

log = logging.getLogger("bombyx.validator")
EPOCHS_ASKED: Final = 3  # while one is asked the next is planned, and answers come late


class Plants:
    """Opens samples through the accuser, and shows them once a jury has said what they are samples of."""

    def __init__(
        self,
        *,
        key: SigningKey,
        validation: Validation,
        book: Book,
        entropy: Entropy,
        accuser: Accuser,
        decoy: Address | None,
    ) -> None:
        self._key = key
        self._validation = validation
        self._book = book
        self._entropy = entropy
        self._accuser = accuser
        self.decoy = decoy
        self.on_asking: Callable[[Sequence[Digest]], None] = lambda _: None
        self._asked: deque[tuple[Digest, ...]] = deque(maxlen=EPOCHS_ASKED)

    def planned(self, plan: Plan) -> None:
        """Tell the decoy which requests are ours, so that it answers nobody else wrongly. Before they leave."""
        if self.decoy is None:
            return
        made = [
            compose(canary.seed, canary.name, canary.most)
            for canary in plan.canaries
            if self.decoy in canary.candidates
        ]
        self._asked.append(tuple(request_digest(one.path, one.body) for one in made))
        self.on_asking([digest for epoch in self._asked for digest in epoch])

    async def innocent(self) -> int | None:
        """Accuse a worker that did nothing: jurors who convict unseen get a strike (VAL-13). It costs a bond."""
        last = await self._accuser.last_epoch()
        honest = [
            one
            for one in await self._book.standings()
            if one.judged and one.weighed.peak < ALARM and one.operator != self.decoy
        ]
        for standing in sorted(honest, key=lambda one: sha256(one.operator, last.to_bytes(8))):
            whole = await self._accuser.whole(standing.operator, standing.model, last)
            if whole is not None and any(epoch.packages for epoch in whole.epochs):
                case = await self._open(standing, whole, last, Verdict.INNOCENT)
                if case is not None:
                    return case
        return None

    async def guilty(self, standing: Standing) -> int | None:
        """Accuse the decoy, where a jury that looks would convict it; jurors who acquit unseen get a strike."""
        assert standing.operator == self.decoy
        last = await self._accuser.last_epoch()
        evidence = await self._accuser.evidence(standing.operator, standing.model, last)
        if evidence is None:
            return None
        case = await self._open(standing, evidence, last, Verdict.GUILTY)
        if case is not None:
            log.warning("case %d is a sample: the decoy is slashed if we are away when it is to be shown", case)
        return case

    async def _open(self, standing: Standing, evidence: CaseEvidence, last: int, verdict: Verdict) -> int | None:
        """At the same moments as in earnest: nothing tells the two apart."""
        if not await self._accuser.our_turn(standing, last, samples=True):
            return None
        digest = sha256(evidence.encode())
        planted = await self._book.plant(digest)
        if planted is None:
            planted = Planted(verdict=verdict, salt=Digest(self._entropy.bytes(Digest.SIZE)))
            await self._book.keep_plant(digest, planted)
        elif planted.verdict is not verdict:
            return None  # the same answers cannot be a sample of both
        return await self._accuser.open(evidence, last, self._commitment(digest, planted))

    async def due(self, case: Case, now: int) -> Callable[[], Awaitable[None]] | None:
        """Showing it, if it is a sample of ours that a jury saw through and that has not been shown.

        As soon as the reveals are over, in the appeal's time already: after it a conviction counts against the decoy,
        and after the veto's it is slashed. A jury that said something else leaves nothing to show (VAL-13)."""
        if case.accuser != self._key.address or case.state not in (CaseState.DECIDED, CaseState.QUEUED):
            return None
        planted = await self._book.plant(case.accusation.evidence)
        if planted is None or case.accusation.plant != self._commitment(case.accusation.evidence, planted):
            return None  # in earnest, or shown already: the chain forgets the commitment then
        if case.outcome is not planted.verdict or now < case.reveal_until:
            return None
        return lambda: self._show(case, planted)

    async def _show(self, case: Case, planted: Planted) -> None:
        try:
            await self._validation.reveal_plant(case.id, planted.verdict, planted.salt, signer=self._key)
        except PaymentError as error:
            log.warning("case %d is a sample, and was not shown: %s", case.id, error)
            return
        log.info("case %d was a sample of %s, and is shown to be one", case.id, planted.verdict.name)

    def _commitment(self, evidence: Digest, planted: Planted) -> Digest:
        return plant_commitment(self._key.address, evidence, planted.verdict, planted.salt)
