# SPDX-License-Identifier: Apache-2.0
"""A channel as the chain sees it, and a voucher as it is presented there.

Not here: how the two get there and back (`ports.Ledger`). Amounts are x402's: `balance` is everything deposited minus
everything withdrawn or refunded; claims do not lower it, so every cumulative number is compared with it directly.
"""

from __future__ import annotations

from dataclasses import dataclass

from bombyx.protocol.primitives import Amount, Instant
from bombyx.protocol.wire.channel import ChannelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelView:
    """A channel as the chain sees it. Times in seconds; 0 means no withdrawal is running."""

    config: ChannelConfig
    balance: Amount  # deposited minus withdrawn and refunded; claims do not lower it
    total_claimed: Amount  # cumulative
    withdraw_amount: Amount
    withdraw_requested_at: int
    refund_nonce: int = 0  # what the next Refund must name

    @property
    def spendable(self) -> Amount:
        """The highest ceiling the deposit backs: balance minus the pending withdrawal (PAY-4)."""
        return Amount(max(0, self.balance - self.withdraw_amount))

    @property
    def withdrawing(self) -> bool:
        return self.withdraw_requested_at != 0

    def seconds_left(self, now: Instant) -> int:
        """How long claims are still safe. Only meaningful while a withdrawal is running."""
        return self.withdraw_requested_at + self.config.withdraw_delay - now.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One voucher presented: pay out `total_claimed` (<= `ceiling`), cumulative."""

    config: ChannelConfig
    ceiling: Amount
    signature: bytes
    total_claimed: Amount
