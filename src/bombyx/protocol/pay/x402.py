# SPDX-License-Identifier: Apache-2.0
"""x402 version 2 over HTTP, scheme `batch-settlement`: what a payee asks, and what it answers.

Values in, JSON out. Not here: what a payer presents (`x402_payment.py`), whether a voucher is acceptable (`payee.py`).

Always: a stock x402 client understands every object made here; what a channel owes is in it only where a `Standing` was
given (spec X402-1, X402-5, X402-7).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import PaymentError
from bombyx.protocol.pay.view import ChannelView
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.eip712 import domain_separator

VERSION: Final = 2
SCHEME: Final = "batch-settlement"
REQUIRED: Final = "payment-required"  # header names, as servers of ours write them
SIGNATURE: Final = "payment-signature"
RESPONSE: Final = "payment-response"
DEPOSIT_FACTOR: Final = 5  # requests of the same size a proposed deposit is good for

# Words of the x402 scheme for a refusal; a stock client acts on the two cumulative ones by taking up our state.
MISMATCH: Final = "invalid_batch_settlement_evm_cumulative_amount_mismatch"
BUSY: Final = "invalid_batch_settlement_evm_channel_busy"
_PREFIX: Final = "invalid_batch_settlement_evm_"
_REASONS: Final[Mapping[str, str]] = {
    "PAY-2": _PREFIX + "channel_not_found",
    "PAY-3": _PREFIX + "voucher_signature",
    "PAY-4": _PREFIX + "cumulative_exceeds_balance",
    "PAY-5": "amount_below_price",
    "PAY-6": "channel_is_being_withdrawn",
    "PAY-14": MISMATCH,
    "PAY-16": "channel_is_closing",
    "LEDGER-1": _PREFIX + "deposit_transaction_failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What stays the same in every 402 of one payee. Times in seconds."""

    chain_id: int
    token: Address
    token_name: str  # the token's EIP-712 domain; payers sign deposits under it
    token_version: str
    collector: Address  # ERC-3009 collector deposits are authorised to
    receiver: Address
    receiver_authorizer: Address
    withdraw_delay: int
    min_deposit: int
    timeout: int = 600  # how long a deposit's authorization shall stay valid
    notice: str = ""  # what a payer should know before it sends anything

    @property
    def network(self) -> str:
        """CAIP-2."""
        return f"eip155:{self.chain_id}"

    @property
    def token_domain(self) -> Digest:
        return domain_separator(self.token_name, self.token_version, self.chain_id, self.token)

    def least_deposit(self, amount: int) -> int:
        """What we carry to the chain for a request of `amount`, at least."""
        return max(self.min_deposit, amount)

    def requirements(self, amount: int) -> dict[str, Any]:
        """One entry of `accepts`."""
        extra: dict[str, Any] = {
            "name": self.token_name,
            "version": self.token_version,
            "assetTransferMethod": "eip3009",
            "receiverAuthorizer": str(self.receiver_authorizer),
            "withdrawDelay": self.withdraw_delay,
            "minDeposit": str(max(self.min_deposit, amount * DEPOSIT_FACTOR)),
        }
        if self.notice:
            extra["notice"] = self.notice
        return {
            "scheme": SCHEME,
            "network": self.network,
            "asset": str(self.token),
            "amount": str(amount),
            "payTo": str(self.receiver),
            "maxTimeoutSeconds": self.timeout,
            "extra": extra,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a channel stands with us: enough for a payer that lost count to take it up again."""

    channel: Digest
    charged: int
    ceiling: int
    signature: bytes  # the payer's own, of the voucher for `ceiling`
    view: ChannelView | None

    def channel_state(self) -> dict[str, Any]:
        view = self.view
        return {
            "channelId": str(self.channel),
            "balance": str(view.balance if view else 0),
            "totalClaimed": str(view.total_claimed if view else 0),
            "withdrawRequestedAt": view.withdraw_requested_at if view else 0,
            "refundNonce": str(view.refund_nonce if view else 0),
            "chargedCumulativeAmount": str(self.charged),
        }

    def voucher_state(self) -> dict[str, Any]:
        return {"signedMaxClaimable": str(self.ceiling), "signature": "0x" + self.signature.hex()}


def payment_required(
    asking: Asking, amount: int, *, url: str, description: str, error: str, standing: Standing | None = None
) -> dict[str, Any]:
    """The PaymentRequired object. With `standing` it corrects a payer that counts differently."""
    requirements = asking.requirements(amount)
    if standing is not None:
        requirements["extra"]["channelState"] = standing.channel_state()
        if standing.signature:
            requirements["extra"]["voucherState"] = standing.voucher_state()
    resource = {"url": url, "description": description, "mimeType": "application/json"}
    return {"x402Version": VERSION, "error": error, "resource": resource, "accepts": [requirements]}


def payment_response(
    asking: Asking, standing: Standing, *, payer: Address, charged: int, transaction: str
) -> dict[str, Any]:
    """The SettleResponse object of one served request. `transaction`: the deposit's, or empty."""
    return {
        "success": True,
        "transaction": transaction,
        "network": asking.network,
        "payer": str(payer),
        "amount": str(charged),
        "extra": {"chargedAmount": str(charged), "channelState": standing.channel_state()},
    }


def header(value: Mapping[str, Any]) -> str:
    """An object as an x402 header carries it."""
    return base64.b64encode(orjson.dumps(value)).decode()


def comment(value: Mapping[str, Any]) -> bytes:
    """A PaymentResponse as a comment of an event stream: parsers of OpenAI streams pass over it."""
    return b": PAYMENT-RESPONSE " + header(value).encode() + b"\n\n"


def reason_of(error: PaymentError) -> str:
    """The scheme's word for a refusal of ours."""
    return _REASONS.get(error.rule or "", _PREFIX + "voucher_payload")
