# SPDX-License-Identifier: Apache-2.0
"""A worker's reflex when a jury convicts it: appeal, once, while there is time (spec VAL-9).

Not here: whether the jury was right; the next one, bigger, says. Always: it pays no more than the appeal's bond.
"""

from __future__ import annotations

import logging
from typing import Final

from bombyx.errors import BombyxError
from bombyx.ports import Clock, Validation
from bombyx.protocol.audit.case import Case, CaseState
from bombyx.protocol.wire.signing import SigningKey

LOOK_SECONDS: Final = 4.0
log = logging.getLogger("bombyx.worker")


class Defence:
    """Watches the cases against one operator."""

    def __init__(self, validation: Validation, operator: SigningKey, clock: Clock) -> None:
        self._validation = validation
        self._operator = operator
        self._clock = clock
        self._first = 1  # every case before it is closed

    async def run(self) -> None:
        """For ever. A chain that does not answer is asked again."""
        while True:
            try:
                await self.look()
            except BombyxError as error:
                log.warning("cases were not looked at: %s", error)
            await self._clock.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        now, _ = await self._validation.now()
        cases = await self._validation.cases(self._first)
        for case in cases:
            if case.may_appeal(self._operator.address, now):
                await self._appeal(case)
        open_ = [case.id for case in cases if case.state is not CaseState.CLOSED]
        self._first = min(open_, default=cases[-1].id + 1 if cases else self._first)

    async def _appeal(self, case: Case) -> None:
        log.warning("case %d: a jury of %d convicted us, we appeal", case.id, len(case.ballots))
        await self._validation.appeal(case.id, signer=self._operator)
