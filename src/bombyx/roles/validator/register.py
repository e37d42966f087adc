# SPDX-License-Identifier: Apache-2.0
"""Which receipt keys the registry ever named as a worker's, as far as this validator has watched (spec AUD-54).

A keyset says whom it works for; only the registry makes that true. A worker that boots anew has a new key, and the old
one's answers stay its answers: so what the registry once said is remembered. Not here: whether an enclave is genuine.
"""

from __future__ import annotations

import logging

from bombyx.errors import BombyxError
from bombyx.ports import Clock, Ledger, OperatorRole, Validation
from bombyx.protocol.primitives import Address
from bombyx.roles.validator.book import Book

log = logging.getLogger("bombyx.validator")
LOOK_SECONDS = 10.0


class Register:
    """Watches the registry's workers."""

    def __init__(self, ledger: Ledger, validation: Validation, book: Book, clock: Clock) -> None:
        self._ledger = ledger
        self._validation = validation
        self._book = book
        self._clock = clock
        self._known: set[tuple[Address, Address]] = set()
        self._keys: dict[Address, Address] = {}  # each worker's newest
        self.validators = 1

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except BombyxError as error:
                log.warning("the registry was not read: %s", error)
            await self._clock.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        for line in await self._ledger.operators(OperatorRole.WORKER):
            named = (line.address, line.receipt_address)
            if named not in self._known:
                await self._book.keep_key(*named)
                self._known.add(named)
            self._keys[line.address] = line.receipt_address
        self.validators = max(1, len(await self._ledger.operators(OperatorRole.VALIDATOR)))

    async def served(self, worker: Address) -> int:
        """Receipts in its newest root: leaving some out costs its stake (VAL-4). 0: it posts none, or not yet."""
        key = self._keys.get(worker)
        root = None if key is None else await self._validation.last_root(worker, key)
        return 0 if root is None else root.count

    async def had_key(self, operator: Address, key: Address) -> bool:
        """Whether `key` was the worker's: named by the registry while we watched, or by roots it posted itself."""
        if (operator, key) in self._known or await self._book.has_key(operator, key):
            return True
        await self.look()
        return (operator, key) in self._known or bool(await self._validation.roots_of(operator, key))
