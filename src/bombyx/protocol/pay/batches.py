# SPDX-License-Identifier: Apache-2.0
"""Claims on their way to the chain, in batches that one bad claim cannot hold up (spec PAY-15).

A batch is all or none. Always: every claim is offered until it went through or was refused alone; a refused batch is
halved, so a claim the chain will not take costs its neighbours a few more transactions and never their money.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bombyx.protocol.pay.view import Claim

BATCH: Final = 64  # claims; what every ledger takes in one call (LEDGER-1)

Batch = tuple[Claim, ...]


class Batches:
    """Take one, present it, and say so when it was refused."""

    def __init__(self, claims: Iterable[Claim], *, size: int = BATCH) -> None:
        whole = tuple(claims)
        self._waiting: list[Batch] = [whole[start : start + size] for start in range(0, len(whole), size)]

    def take(self) -> Batch | None:
        return self._waiting.pop(0) if self._waiting else None

    def refused(self, batch: Batch) -> Claim | None:
        """Offer its halves next; gives the claim when it was alone, for then it is the one."""
        if len(batch) == 1:
            return batch[0]
        middle = len(batch) // 2
        self._waiting[:0] = [batch[:middle], batch[middle:]]
        return None
