# SPDX-License-Identifier: Apache-2.0
"""Our contracts' calls, events and answers, to bytes and back. What each does stands in contracts/*.vy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bombyx.adapters.evm import abi
from bombyx.adapters.evm.rpc import as_bytes
from bombyx.errors import Unavailable
from bombyx.ports import Claim, Operator, OperatorRole
from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.eip712 import word

_CONFIG: Final = "(address,address,address,address,address,uint40,bytes32)"
_CLAIMS: Final = f"(({_CONFIG},uint128),bytes,uint128)[]"
_CONFIG_WORDS: Final = 7
_LINE_WORDS: Final = 7
ROLES: Final = {OperatorRole.PROXY: 1, OperatorRole.WORKER: 2, OperatorRole.VALIDATOR: 3}
WITHDRAW_INITIATED: Final = keccak256(b"WithdrawInitiated(bytes32,uint128,uint40)")
CHANNEL_CREATED: Final = keccak256(f"ChannelCreated(bytes32,{_CONFIG})".encode())
OPERATOR_UPDATED: Final = keccak256(b"OperatorUpdated(address,uint8,address,address,string,bytes,bytes32,bytes32[])")
MAX_CALL_IN_MULTICALL: Final = 8192  # bytes; BatchSettlement.multicall
MAX_CALLS_IN_MULTICALL: Final = 4
MAX_CLAIMS: Final = 100


def config_words(config: ChannelConfig) -> bytes:
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.token)
    return b"".join(word(one) for one in parties) + word(config.withdraw_delay) + config.salt


# --- BatchSettlement -------------------------------------------------------------------------------------------------


def deposit(config: ChannelConfig, amount: int, collector: Address, data: bytes) -> bytes:
    return abi.call(
        f"deposit({_CONFIG},uint128,address,bytes)", config_words(config), word(amount), word(collector), abi.blob(data)
    )


def claim(claims: Sequence[Claim]) -> bytes:
    return abi.call(f"claim({_CLAIMS})", _claim_rows(claims))


def claim_with_signature(claims: Sequence[Claim], authorization: bytes) -> bytes:
    return abi.call(f"claimWithSignature({_CLAIMS},bytes)", _claim_rows(claims), abi.blob(authorization))


def _claim_rows(claims: Sequence[Claim]) -> abi.Tail:
    rows: list[abi.Part] = [
        abi.struct(config_words(one.config) + word(one.ceiling), abi.blob(one.signature), word(one.total_claimed))
        for one in claims
    ]
    return abi.array(rows)


def settle(receiver: Address, token: Address) -> bytes:
    return abi.call("settle(address,address)", word(receiver), word(token))


def multicall(calls: Sequence[bytes]) -> bytes:
    return abi.call("multicall(bytes[])", abi.array([abi.blob(one) for one in calls]))


def initiate_withdraw(config: ChannelConfig, amount: int) -> bytes:
    return abi.call(f"initiateWithdraw({_CONFIG},uint128)", config_words(config), word(amount))


def finalize_withdraw(config: ChannelConfig) -> bytes:
    return abi.call(f"finalizeWithdraw({_CONFIG})", config_words(config))


def refund_with_signature(config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> bytes:
    return abi.call(
        f"refundWithSignature({_CONFIG},uint128,uint256,bytes)",
        config_words(config),
        word(amount),
        word(nonce),
        abi.blob(signature),
    )


def channel_views(channel: Digest) -> tuple[bytes, bytes, bytes]:
    return (
        abi.call("channels(bytes32)", channel),
        abi.call("pendingWithdrawals(bytes32)", channel),
        abi.call("refundNonce(bytes32)", channel),
    )


def config_of_log(log: Any) -> ChannelConfig:
    """The config that a `ChannelCreated` event carries."""
    if not isinstance(log, dict):
        raise Unavailable("the chain's answer holds no event", rule="LEDGER-2")
    read = abi.Reader(as_bytes(log.get("data"), _CONFIG_WORDS * abi.WORD))
    return ChannelConfig(
        payer=read.address(0),
        payer_authorizer=read.address(1),
        receiver=read.address(2),
        receiver_authorizer=read.address(3),
        token=read.address(4),
        withdraw_delay=read.uint(5),
        salt=read.digest(6),
    )


# --- collectors and token --------------------------------------------------------------------------------------------


def deposit_from_allowance(config: ChannelConfig, amount: int) -> bytes:
    return abi.call(f"deposit({_CONFIG},uint128)", config_words(config), word(amount))


def erc3009_data(valid_before: int, salt: int, signature: bytes) -> bytes:
    """collectorData of ERC3009DepositCollector; valid from the start of time."""
    return abi.sequence(word(0), word(valid_before), word(salt), abi.blob(signature))


def approve(spender: Address, amount: int) -> bytes:
    return abi.call("approve(address,uint256)", word(spender), word(amount))


def mint(to: Address, amount: int) -> bytes:
    return abi.call("mint(address,uint256)", word(to), word(amount))


# --- Multicall3 ------------------------------------------------------------------------------------------------------


def aggregate(calls: Sequence[tuple[Address, bytes]]) -> bytes:
    """tryAggregate, all or none."""
    rows: list[abi.Part] = [abi.struct(word(target), abi.blob(data)) for target, data in calls]
    return abi.call("tryAggregate(bool,(address,bytes)[])", word(1), abi.array(rows))


def aggregated(answer: bytes) -> list[bytes]:
    def result(body: abi.Reader, index: int) -> bytes:
        row = body.inside(index)
        if not row.uint(0):
            raise Unavailable("a view of the chain failed", rule="LEDGER-2")
        return row.blob(1)

    return abi.Reader(answer).items(0, result)


# --- OperatorRegistry ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What the registry stores of an operator; the rest is in the event of block `updated_at`."""

    operator: Address
    updated_at: int
    receipt_address: Address
    pay_authorizer: Address
    digest: Digest


def register(operator: Operator) -> bytes:
    return abi.call(
        "register(uint8,address,address,string,bytes,bytes32,bytes32[])",
        word(ROLES[operator.role]),
        word(operator.receipt_address),
        word(operator.pay_authorizer),
        *_details(operator),
    )


def _details(operator: Operator) -> tuple[abi.Part, ...]:
    endpoint, config = abi.blob(operator.endpoint.encode()), abi.blob(operator.pay_key_config)
    return endpoint, config, operator.price_sheet, abi.array([bytes(model) for model in operator.models])


def details_digest(operator: Operator) -> Digest:
    """What `Line.digest` is: keccak256(abi.encode(endpoint, payKeyConfig, priceSheet, models))."""
    return keccak256(abi.sequence(*_details(operator)))


def operators(role: OperatorRole, start: int, count: int) -> bytes:
    return abi.call("operators(uint8,uint256,uint256)", word(ROLES[role]), word(start), word(count))


def member_count(role: OperatorRole) -> bytes:
    return abi.call("memberCount(uint8)", word(ROLES[role]))


def lines(answer: bytes) -> list[Line]:
    def line(body: abi.Reader, index: int) -> Line:
        return Line(
            operator=body.address(index),
            updated_at=body.uint(index + 3),
            receipt_address=body.address(index + 4),
            pay_authorizer=body.address(index + 5),
            digest=body.digest(index + 6),
        )

    return abi.Reader(answer).items(0, line, width=_LINE_WORDS)


def operator_of_log(log: Any, role: OperatorRole) -> Operator:
    """The whole line, from its `OperatorUpdated` event."""
    if not isinstance(log, dict) or not isinstance(log.get("topics"), list) or len(log["topics"]) != 3:
        raise Unavailable("the chain's answer holds no event", rule="LEDGER-2")
    read = abi.Reader(as_bytes(log.get("data")))
    try:
        endpoint = read.blob(2).decode()
    except UnicodeDecodeError:
        endpoint = ""  # the operator's own fault: it cannot be reached
    return Operator(
        address=Address(as_bytes(log["topics"][1], abi.WORD)[12:]),
        role=role,
        endpoint=endpoint,
        receipt_address=read.address(0),
        pay_authorizer=read.address(1),
        pay_key_config=read.blob(3),
        price_sheet=read.digest(4),
        models=tuple(read.items(5, lambda body, index: body.digest(index))),
    )


# --- ReferenceValues -------------------------------------------------------------------------------------------------


def propose(kind: int, reference: Digest, uri: str) -> bytes:
    return abi.call("propose(uint8,bytes32,string)", word(kind), bytes(reference), abi.blob(uri.encode()))


def revoke(kind: int, reference: Digest) -> bytes:
    return abi.call("revoke(uint8,bytes32)", word(kind), bytes(reference))


def set_delay(seconds: int) -> bytes:
    return abi.call("setDelay(uint64)", word(seconds))


def agreed(publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bytes:
    asked = abi.array([word(one) for one in publishers])
    return abi.call("agreed(address[],uint256,uint8,bytes32)", asked, word(quorum), word(kind), bytes(reference))
