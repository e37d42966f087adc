# SPDX-License-Identifier: Apache-2.0
"""Puts an operator into its role's set: deposit, allocation, membership, as far as they are missing.

Not here: leaving, withdrawing (`bombyx stake`). Always: nothing is deposited beyond what was asked for or is demanded.
"""

from __future__ import annotations

from typing import Final

from bombyx.ports import OperatorRole, Stakes
from bombyx.protocol.primitives import Amount
from bombyx.protocol.wire.signing import SigningKey

WAD: Final = 10**18


async def enter_set(stakes: Stakes, role: OperatorRole, amount: int, key: SigningKey) -> None:
    """Stake `amount` (0: what the set demands) for `role` and join. Raises `PaymentError` for an operator that was
    ejected and may not come back yet."""
    view = await stakes.stake(key.address)
    if role in view.member:
        return
    wanted = amount or int((await stakes.info()).minimum.get(role, Amount(0)))
    if view.deposited < wanted:
        await stakes.deposit(Amount(wanted - view.deposited), signer=key)
    if view.allocated.get(role, Amount(0)) < wanted:
        await stakes.allocate(role, WAD, signer=key)
    await stakes.join(role, signer=key)
