# SPDX-License-Identifier: Apache-2.0
"""The ledger's values as JSON, for `ledger_http.py`: bytes in hex, messages by their canonical bytes.

Amounts are decimal strings, because JSON numbers end at 2^53 for many readers. Reading raises `MalformedMessage`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from bombyx.errors import MalformedMessage
from bombyx.ports import ChannelView, Claim, LedgerInfo, Operator, OperatorRole
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.evidence import BlockHeader

T = TypeVar("T")
Json = dict[str, Any]


def reading(read: Callable[[], T]) -> T:
    """Run `read`; whatever is missing or ill-typed is a malformed message."""
    try:
        return read()
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise MalformedMessage(f"ledger message: {type(error).__name__}", rule="LEDGER-2") from None


def amount(value: Any) -> Amount:
    """An amount from its decimal string."""
    if not isinstance(value, str) or not value.isdecimal() or len(value) > 39:
        raise ValueError("not an amount")
    return Amount(int(value))


def info_to(info: LedgerInfo) -> Json:
    return {
        "chain_id": info.chain_id,
        "settlement": str(info.settlement),
        "registry": str(info.registry),
        "token": str(info.token),
        "kind": info.kind,
    }


def info_from(value: Json) -> LedgerInfo:
    return LedgerInfo(
        chain_id=int(value["chain_id"]),
        settlement=Address.parse(value["settlement"]),
        registry=Address.parse(value["registry"]),
        token=Address.parse(value["token"]),
        kind=str(value["kind"]),
    )


def header_to(header: BlockHeader) -> str:
    return header.encode().hex()


def header_from(value: str) -> BlockHeader:
    return BlockHeader.decode(bytes.fromhex(value))


def view_to(view: ChannelView) -> Json:
    return {
        "config": view.config.encode().hex(),
        "balance": str(int(view.balance)),
        "total_claimed": str(int(view.total_claimed)),
        "withdraw_amount": str(int(view.withdraw_amount)),
        "withdraw_requested_at": view.withdraw_requested_at,
        "refund_nonce": view.refund_nonce,
    }


def view_from(value: Json) -> ChannelView:
    return ChannelView(
        config=ChannelConfig.decode(bytes.fromhex(value["config"])),
        balance=amount(value["balance"]),
        total_claimed=amount(value["total_claimed"]),
        withdraw_amount=amount(value["withdraw_amount"]),
        withdraw_requested_at=int(value["withdraw_requested_at"]),
        refund_nonce=int(value["refund_nonce"]),
    )


def claim_to(claim: Claim) -> Json:
    return {
        "config": claim.config.encode().hex(),
        "ceiling": str(int(claim.ceiling)),
        "signature": claim.signature.hex(),
        "total_claimed": str(int(claim.total_claimed)),
    }


def claim_from(value: Json) -> Claim:
    return Claim(
        config=ChannelConfig.decode(bytes.fromhex(value["config"])),
        ceiling=amount(value["ceiling"]),
        signature=bytes.fromhex(value["signature"]),
        total_claimed=amount(value["total_claimed"]),
    )


def operator_to(operator: Operator) -> Json:
    return {
        "address": str(operator.address),
        "role": str(operator.role),
        "endpoint": operator.endpoint,
        "receipt_address": str(operator.receipt_address),
        "pay_authorizer": str(operator.pay_authorizer),
        "pay_key_config": operator.pay_key_config.hex(),
        "price_sheet": str(operator.price_sheet),
        "models": [str(model) for model in operator.models],
    }


def operator_from(value: Json) -> Operator:
    return Operator(
        address=Address.parse(value["address"]),
        role=OperatorRole(value["role"]),
        endpoint=str(value["endpoint"]),
        receipt_address=Address.parse(value["receipt_address"]),
        pay_authorizer=Address.parse(value["pay_authorizer"]),
        pay_key_config=bytes.fromhex(value["pay_key_config"]),
        price_sheet=Digest.parse(value["price_sheet"]),
        models=tuple(Digest.parse(model) for model in value["models"]),
    )
