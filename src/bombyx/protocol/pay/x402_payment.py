# SPDX-License-Identifier: Apache-2.0
"""x402 version 2 over HTTP, scheme `batch-settlement`: what a payer presents in `PAYMENT-SIGNATURE`.

Bytes in, values out. Not here: whether a voucher is acceptable (`payee.py`), the chain.

Always: parsing is bounded and raises `MalformedMessage` for what is not x402, `PaymentError` for a payment that is well
formed and of something else than was asked (spec X402-3, X402-4).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage, PaymentError, Peer
from bombyx.protocol.pay.grant import signed_by
from bombyx.protocol.pay.x402 import SCHEME, VERSION, Asking
from bombyx.protocol.primitives import MAX_AMOUNT, Address, Amount, Digest, Instant, keccak256
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.eip712 import struct_hash, type_hash, typed_digest, word
from bombyx.protocol.wire.request import SignedVoucher

MAX_HEADER: Final = 16_384  # characters of base64; a deposit with its requirements takes about 4 000
MAX_SIGNATURE: Final = 1_024  # bytes; plain accounts sign with 65, the contract's bound is this one
RECEIVE_TYPE: Final = type_hash(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)
_DECIMAL: Final = re.compile(r"[0-9]{1,78}")
_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


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
