# SPDX-License-Identifier: Apache-2.0
"""x402 v2 batch-settlement structs, verbatim, and bombyx's SessionGrant: their EIP-712 digests.

Spec PAY-1 .. PAY-3, PAY-9.

Not here: whether a voucher is acceptable (`protocol/pay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from bombyx.protocol.primitives import Address, Digest, Instant, keccak256
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.eip712 import domain_separator, struct_hash, type_hash, typed_digest, word

CHANNEL_CONFIG_TYPE: Final = type_hash(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,"
    "uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPE: Final = type_hash("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPE: Final = type_hash("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
CLAIM_ENTRY_TYPE: Final = type_hash("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
CLAIM_BATCH_TYPE: Final = type_hash(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
CLOSE_TYPE: Final = type_hash("CloseChannel(bytes32 channelId,address payee)")
SESSION_GRANT_TYPE: Final = type_hash("SessionGrant(bytes32 channelId,address payee,bytes32 keyHash,uint64 notAfter)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig(Message):
    """Who pays whom, in what. `withdraw_delay` in seconds. Its EIP-712 digest is the channel's id."""

    TAG: ClassVar[int] = 27028
    payer: Address
    payer_authorizer: Address
    receiver: Address
    receiver_authorizer: Address
    token: Address
    withdraw_delay: int
    salt: Digest

    def __post_init__(self) -> None:
        if not 0 <= self.withdraw_delay < 1 << 40:
            raise ValueError("withdraw_delay is a uint40")

    def channel_id(self, domain: Digest) -> Digest:
        return typed_digest(
            domain,
            struct_hash(
                CHANNEL_CONFIG_TYPE,
                word(self.payer),
                word(self.payer_authorizer),
                word(self.receiver),
                word(self.receiver_authorizer),
                word(self.token),
                word(self.withdraw_delay),
                self.salt,
            ),
        )


def settlement_domain(chain_id: int, contract: Address) -> Digest:
    """Domain {"x402 Batch Settlement","1",chainId,contract}."""
    return domain_separator("x402 Batch Settlement", "1", chain_id, contract)


def voucher_digest(domain: Digest, channel: Digest, ceiling: int) -> Digest:
    return typed_digest(domain, struct_hash(VOUCHER_TYPE, channel, word(ceiling)))


def refund_digest(domain: Digest, channel: Digest, nonce: int, amount: int) -> Digest:
    return typed_digest(domain, struct_hash(REFUND_TYPE, channel, word(nonce), word(amount)))


def claim_batch_digest(domain: Digest, entries: Sequence[tuple[Digest, int, int]]) -> Digest:
    """What a receiver authorizer signs so that anybody may present its claims: (channel, ceiling, total claimed)."""
    rows = [struct_hash(CLAIM_ENTRY_TYPE, channel, word(ceiling), word(total)) for channel, ceiling, total in entries]
    return typed_digest(domain, struct_hash(CLAIM_BATCH_TYPE, keccak256(*rows)))


def close_digest(domain: Digest, channel: Digest, payee: Address) -> Digest:
    """What a payer signs to ask its payee for a refund of all that is left (PAY-25). Never seen by a contract."""
    return typed_digest(domain, struct_hash(CLOSE_TYPE, channel, word(payee)))


def grant_digest(domain: Digest, channel: Digest, payee: Address, key_hash: Digest, not_after: Instant) -> Digest:
    """`notAfter` is in whole seconds in the struct, as EVM time is."""
    return typed_digest(
        domain, struct_hash(SESSION_GRANT_TYPE, channel, word(payee), key_hash, word(not_after.seconds))
    )
