# SPDX-License-Identifier: Apache-2.0
"""What a transaction may cost and how long it may take: fees that follow the market below a cap, and every patience."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bombyx.adapters.evm.rpc import Rpc, RpcError, as_int
from bombyx.errors import Unavailable

GWEI: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Times in seconds, fees in wei a gas."""

    poll: float = 0.25  # how often the chain is asked for a receipt
    look: float = 1.0  # how often the account's nonces are looked at
    gap_after: float = 15.0  # a nonce below ours that no node holds for so long is filled; a block takes 12 on mainnet
    bump_after: float = 20.0  # unmined for so long: send again with a higher fee
    away_after: float = 15.0  # a chain that answers nothing for so long is away
    give_up_after: float = 120.0
    confirmations: int = 0  # blocks on top of the one with the transaction
    bump_percent: int = 25  # nodes take a replacement from 10 % up
    max_fee: int = 500 * GWEI
    min_tip: int = GWEI // 1000

    @property
    def unblock_after(self) -> float:
        """Somebody else's transaction that stands before ours for so long is overruled: whoever sent it is gone."""
        return 3 * self.bump_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    tip: int
    limit: int

    def bumped(self, patience: Patience) -> Fees:
        """A replacement's fees, or the same where the cap is reached."""
        factor = 100 + patience.bump_percent
        limit = min(patience.max_fee, self.limit * factor // 100 + 1)
        return Fees(tip=min(limit, self.tip * factor // 100 + 1), limit=limit)

    def at_least(self, other: Fees) -> Fees:
        return Fees(tip=max(self.tip, other.tip), limit=max(self.limit, other.limit))


async def market_fees(rpc: Rpc, patience: Patience) -> Fees:
    """What the newest block asks, twice over. Raises `Unavailable` where that is above the cap."""
    try:
        block = await rpc.call("eth_getBlockByNumber", "latest", False)
    except RpcError as error:
        raise Unavailable(f"the chain node says {error.message[:200]}", retry_after=1.0, rule="LEDGER-2") from None
    base = as_int(block.get("baseFeePerGas", "0x0")) if isinstance(block, dict) else 0
    try:
        tip = as_int(await rpc.call("eth_maxPriorityFeePerGas"))
    except RpcError:
        tip = GWEI
    tip = max(tip, patience.min_tip)
    if base + tip > patience.max_fee:
        raise Unavailable(f"gas costs {base // GWEI} gwei, above our cap", retry_after=15.0, rule="LEDGER-6")
    return Fees(tip=tip, limit=min(patience.max_fee, 2 * base + tip))
