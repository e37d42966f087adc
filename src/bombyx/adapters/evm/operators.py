# SPDX-License-Identifier: Apache-2.0
"""The registry's operators, whole: the contract keeps digests of their lines, the lines are in its events (LEDGER-5).

Always: a line is what its digest in the contract says, in address order, so that everybody draws from the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bombyx.adapters.evm import calls
from bombyx.adapters.evm.abi import Reader
from bombyx.adapters.evm.follower import Follower
from bombyx.adapters.evm.reading import ChainReader
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.primitives import Digest, keccak256
from bombyx.protocol.wire.eip712 import word

PAGE: Final = 256  # operators in one answer


class Operators:
    """Of one chain."""

    def __init__(self, chain: ChainReader, follower: Follower) -> None:
        self._chain = chain
        self._follower = follower
        self._listed: dict[OperatorRole, tuple[Operator, ...]] = {}
        self._lines: dict[Digest, Operator] = {}  # by `_key`

    async def of(self, role: OperatorRole) -> tuple[Operator, ...]:
        """Lines are cached by their digests; a list of several pages is kept while the registry logs nothing."""
        known = self._listed.get(role, ())
        if len(known) >= PAGE and not await self._stirred() and role in self._listed:
            return known
        self._listed[role] = found = await self._read(role)
        return found

    async def _stirred(self) -> bool:
        changed = (await self._follower.look()).changed
        if changed:
            self._listed.clear()
        return changed

    async def _read(self, role: OperatorRole) -> tuple[Operator, ...]:
        count = Reader(await self._chain.answer(self._chain.book.registry, calls.member_count(role), 32)).uint(0)
        found: list[calls.Line] = []
        for start in range(0, count, PAGE):
            found += calls.lines(
                await self._chain.answer(self._chain.book.registry, calls.operators(role, start, PAGE))
            )
        missing = [line for line in found if _key(line) not in self._lines]
        if missing:
            await self._read_lines(role, missing)
        whole = (self._lines.get(_key(line)) for line in found)
        return tuple(sorted((one for one in whole if one is not None), key=lambda one: one.address))

    async def _read_lines(self, role: OperatorRole, missing: Sequence[calls.Line]) -> None:
        topics = [str(calls.OPERATOR_UPDATED), None, "0x" + word(calls.ROLES[role]).hex()]
        first, last = (choose(line.updated_at for line in missing) for choose in (min, max))
        wanted = {_key(line) for line in missing}
        for log in await self._chain.logs(self._chain.book.registry, topics, first, last):
            operator = calls.operator_of_log(log, role)
            key = _operator_key(operator)
            if key in wanted:
                self._lines[key] = operator


def _key(line: calls.Line) -> Digest:
    return keccak256(line.operator, line.receipt_address, line.pay_authorizer, line.digest)


def _operator_key(operator: Operator) -> Digest:
    details = calls.details_digest(operator)
    return keccak256(operator.address, operator.receipt_address, operator.pay_authorizer, details)
