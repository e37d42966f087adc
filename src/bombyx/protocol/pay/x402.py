# SPDX-License-Identifier: Apache-2.0
"""x402 version 2 over HTTP, scheme `batch-settlement`: what a payee asks, what a payer presents, what is answered.

Bytes and values only. Not here: whether a voucher is acceptable (`payee.py`), prices, sockets, the chain.

Always: every parser is bounded and raises `MalformedMessage` for what is not x402; `PaymentError` for a payment that is
well formed and of something else than was asked (spec X402-1 .. X402-3, X402-7).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage, PaymentError, Peer
from bombyx.protocol.pay.grant import signed_by
from bombyx.protocol.pay.view import ChannelView
from bombyx.protocol.primitives import MAX_AMOUNT, Address, Amount, Digest, Instant, keccak256
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.eip712 import domain_separator, struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.request import SignedVoucher

VERSION: Final = 2
SCHEME: Final = "batch-settlement"
REQUIRED: Final = "payment-required"  # header names, as servers of ours write them
SIGNATURE: Final = "payment-signature"
RESPONSE: Final = "payment-response"
MAX_HEADER: Final = 16_384  # characters of base64; a deposit with its requirements takes about 4 000
DEPOSIT_FACTOR: Final = 5  # requests of the same size a proposed deposit is good for
MAX_SIGNATURE: Final = 1_024  # bytes; plain accounts sign with 65, the contract's bound is this one
RECEIVE_TYPE: Final = type_hash(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)
_DECIMAL: Final = re.compile(r"[0-9]{1,78}")
_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """An ERC-3009 ReceiveWithAuthorization that anyone may carry to the chain. Times in seconds."""

    amount: Amount
    valid_after: int
    valid_before: int
    salt: Digest
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What came in `PAYMENT-SIGNATURE`. `amount` is what the payer takes the request to cost at most."""

    config: ChannelConfig
    voucher: SignedVoucher
    amount: Amount
    deposit: Deposit | None


# --- what we say -----------------------------------------------------------------------------------------------------


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


# --- what we are told ------------------------------------------------------------------------------------------------


def read_payment(text: str, asking: Asking) -> Presented:
    """Parse `PAYMENT-SIGNATURE` and hold it against what we ask. Cheap: nothing is verified but shapes and names."""
    value = _decoded(text)
    if value.get("x402Version") != VERSION:
        raise MalformedMessage(f"x402Version is {VERSION} here", peer=Peer.CLIENT, rule="X402-3")
    accepted, payload = _object(value, "accepted"), _object(value, "payload")
    _check_accepted(accepted, asking)
    kind = payload.get("type")
    if kind not in ("voucher", "deposit"):
        raise PaymentError("the payload is neither a voucher nor a deposit", peer=Peer.CLIENT, rule="X402-3")
    config = _config(_object(payload, "channelConfig"))
    voucher = _object(payload, "voucher")
    return Presented(
        config=config,
        voucher=SignedVoucher(
            channel=Digest(_hexed(voucher, "channelId", 32)),
            ceiling=int(_amount(voucher, "maxClaimableAmount")),
            signature=_signature(voucher),
        ),
        amount=_amount(accepted, "amount"),
        deposit=_deposit(_object(payload, "deposit")) if kind == "deposit" else None,
    )


def check_deposit(presented: Presented, channel: Digest, asking: Asking, *, now: Instant) -> None:
    """Refuse an authorization that the token would refuse, before anyone pays gas for it (X402-4)."""
    deposit, config = presented.deposit, presented.config
    assert deposit is not None
    least = asking.least_deposit(presented.amount)
    if deposit.amount < least:
        raise PaymentError(f"a deposit of {int(deposit.amount)}, at least {least}", peer=Peer.CLIENT, rule="X402-4")
    # A minute, for the transaction to be mined in.
    if not deposit.valid_after < now.seconds < deposit.valid_before - 60:
        raise PaymentError("the deposit's authorization is not valid now", peer=Peer.CLIENT, rule="X402-4")
    nonce = keccak256(channel, deposit.salt)
    hashed = struct_hash(
        RECEIVE_TYPE,
        word(config.payer),
        word(asking.collector),
        word(deposit.amount),
        word(deposit.valid_after),
        word(deposit.valid_before),
        nonce,
    )
    # Wallets that are contracts sign otherwise; only the chain can judge them, and we would pay for its verdict.
    if not signed_by(config.payer, typed_digest(asking.token_domain, hashed), deposit.signature):
        raise PaymentError("the deposit is not signed by its payer", peer=Peer.CLIENT, rule="X402-4")


def _check_accepted(accepted: dict[str, Any], asking: Asking) -> None:
    wanted = {"scheme": SCHEME, "network": asking.network}
    for name, right in wanted.items():
        if accepted.get(name) != right:
            raise PaymentError(f"{name} is {right} here", peer=Peer.CLIENT, rule="X402-3")
    if Address(_hexed(accepted, "asset", 20)) != asking.token:
        raise PaymentError(f"we take token {asking.token}", peer=Peer.CLIENT, rule="X402-3")
    if Address(_hexed(accepted, "payTo", 20)) != asking.receiver:
        raise PaymentError(f"we are paid at {asking.receiver}", peer=Peer.CLIENT, rule="X402-3")


def _decoded(text: str) -> dict[str, Any]:
    if len(text) > MAX_HEADER:
        raise MalformedMessage(f"a payment of {len(text)} characters, at most {MAX_HEADER}", rule="X402-3")
    try:
        value = orjson.loads(base64.b64decode(text.encode("ascii"), validate=True))
    except (UnicodeEncodeError, binascii.Error, orjson.JSONDecodeError):
        raise MalformedMessage("the payment is not base64 of JSON", peer=Peer.CLIENT, rule="X402-3") from None
    if not isinstance(value, dict):
        raise MalformedMessage("the payment is not a JSON object", peer=Peer.CLIENT, rule="X402-3")
    return value


def _config(value: dict[str, Any]) -> ChannelConfig:
    delay = value.get("withdrawDelay")
    if not isinstance(delay, int) or isinstance(delay, bool) or not 0 <= delay < 1 << 40:
        raise MalformedMessage("withdrawDelay is a uint40", peer=Peer.CLIENT, rule="X402-3")
    return ChannelConfig(
        payer=Address(_hexed(value, "payer", 20)),
        payer_authorizer=Address(_hexed(value, "payerAuthorizer", 20)),
        receiver=Address(_hexed(value, "receiver", 20)),
        receiver_authorizer=Address(_hexed(value, "receiverAuthorizer", 20)),
        token=Address(_hexed(value, "token", 20)),
        withdraw_delay=delay,
        salt=Digest(_hexed(value, "salt", 32)),
    )


def _deposit(value: dict[str, Any]) -> Deposit:
    authorization = _object(_object(value, "authorization"), "erc3009Authorization")
    return Deposit(
        amount=_amount(value, "amount"),
        valid_after=_number(authorization, "validAfter", 2**64),
        valid_before=_number(authorization, "validBefore", 2**256),
        salt=Digest(_hexed(authorization, "salt", 32)),
        signature=_signature(authorization),
    )


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise MalformedMessage(f"`{name}` is missing from the payment", peer=Peer.CLIENT, rule="X402-3")
    return found


def _hexed(value: dict[str, Any], name: str, size: int) -> bytes:
    found = value.get(name)
    if not isinstance(found, str) or len(found) != 2 + 2 * size or _HEX.fullmatch(found) is None:
        raise MalformedMessage(f"`{name}` is not 0x and {size} bytes of hex", peer=Peer.CLIENT, rule="X402-3")
    return bytes.fromhex(found[2:])


def _signature(value: dict[str, Any]) -> bytes:
    found = value.get("signature")
    if not isinstance(found, str) or len(found) > 2 + 2 * MAX_SIGNATURE or _HEX.fullmatch(found) is None:
        raise MalformedMessage("a signature is 0x and hex", peer=Peer.CLIENT, rule="X402-3")
    return bytes.fromhex(found[2:])


def _number(value: dict[str, Any], name: str, limit: int) -> int:
    """x402 writes large numbers as decimal strings."""
    found = value.get(name)
    if not isinstance(found, str) or _DECIMAL.fullmatch(found) is None or int(found) >= limit:
        raise MalformedMessage(f"`{name}` is not a decimal number in range", peer=Peer.CLIENT, rule="X402-3")
    return int(found)


def _amount(value: dict[str, Any], name: str) -> Amount:
    return Amount(_number(value, name, MAX_AMOUNT + 1))
