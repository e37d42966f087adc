# SPDX-License-Identifier: Apache-2.0
"""An accuser's reflex when a jury acquits whom it accused: look again, and appeal if it still says guilty (spec VAL-9).

Not here: samples, whose accuser knows better already. Always: once a case, for the appeal's bond; not on the strength
of what was found when the answers came, but of the evidence re-run now, as a juror would: whoever has a faulty machine
learns it here and not from a second jury.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from bombyx.errors import PaymentError
from bombyx.ports import Validation
from bombyx.protocol.audit.case import Case, Verdict
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.juror import Juror

log = logging.getLogger("bombyx.validator")


class Insistence:
    """Over the cases this validator opened in earnest."""

    def __init__(self, *, key: SigningKey, validation: Validation, book: Book, juror: Juror) -> None:
        self._key = key
        self._validation = validation
        self._book = book
        self._juror = juror
        self._sure: set[int] = set()  # cases that a second look bore out
        self._resigned: set[int] = set()  # cases that it did not, or that we cannot pay for

    async def due(self, case: Case, now: int) -> Callable[[], Awaitable[None]] | None:
        """Looking again, where an appeal is ours to make."""
        me = self._key.address
        if case.accuser != me or not case.may_appeal(me, now) or case.id in self._resigned:
            return None
        if await self._book.plant(case.accusation.evidence) is not None:
            return None  # a sample: whatever its jury said, nobody is to be convicted
        return lambda: self._look(case)

    async def _look(self, case: Case) -> None:
        if case.id not in self._sure:
            opinion = await self._juror.judge(case)
            if opinion.verdict is not Verdict.GUILTY:
                self._resigned.add(case.id)
                log.warning("case %d: acquitted, and a second look of ours says %s", case.id, opinion.verdict.name)
                return
            self._sure.add(case.id)
        log.warning("case %d: a jury of %d acquitted, we appeal", case.id, len(case.ballots))
        try:
            await self._validation.appeal(case.id, signer=self._key)
        except PaymentError:
            self._resigned.add(case.id)
            raise
