# SPDX-License-Identifier: Apache-2.0
"""Our line of the chain's registry: published at boot, and again if a reorg takes it back (spec LEDGER-5, WRK-1).

Always: only what stood there before us is replaced. A line that is neither ours nor that one is a later boot's, and
stays: the old process that drains must not push its successor out.
"""

from __future__ import annotations

from bombyx.ports import Ledger, Operator
from bombyx.protocol.wire.signing import SigningKey


class Registration:
    """One boot's."""

    def __init__(self, line: Operator, *, ledger: Ledger, signer: SigningKey) -> None:
        self._line = line
        self._ledger = ledger
        self._signer = signer
        self._before: Operator | None = None

    async def publish(self) -> None:
        self._before = await self._found()
        await self._ledger.register(self._line, signer=self._signer)

    async def keep(self) -> bool:
        """Whether it had to be published again."""
        found = await self._found()
        if found == self._line or found not in (None, self._before):
            return False
        await self._ledger.register(self._line, signer=self._signer)
        return True

    async def _found(self) -> Operator | None:
        lines = await self._ledger.operators(self._line.role)
        return next((one for one in lines if one.address == self._line.address), None)
