# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title What a channel is made of: structs, events and EIP-712 digests of x402 v2 `batch-settlement`
@license Apache-2.0
@notice A module, not a contract: it holds no storage. Names, order and types are the published ones, to the letter.
"""

from . import signatures

# --- types ---

struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32

struct Voucher:
    channel: ChannelConfig
    maxClaimableAmount: uint128

struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[256]
    totalClaimed: uint128

# --- events ---

event ChannelCreated:
    channelId: indexed(bytes32)
    config: ChannelConfig

event ChannelClosed:
    channelId: indexed(bytes32)
    config: ChannelConfig

event Deposited:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128
    newBalance: uint128

event Claimed:
    channelId: indexed(bytes32)
    sender: indexed(address)
    claimAmount: uint128
    newTotalClaimed: uint128

event Settled:
    receiver: indexed(address)
    token: indexed(address)
    sender: indexed(address)
    amount: uint128

event Refunded:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128

event WithdrawInitiated:
    channelId: indexed(bytes32)
    amount: uint128
    finalizeAfter: uint40

event WithdrawFinalized:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128

# --- constants ---

MAX_CLAIMS: constant(uint256) = 100  # in one call; what stock channel managers send
NAME_HASH: constant(bytes32) = keccak256("x402 Batch Settlement")
VERSION_HASH: constant(bytes32) = keccak256("1")
CHANNEL_CONFIG_TYPEHASH: public(constant(bytes32)) = keccak256(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPEHASH: public(constant(bytes32)) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPEHASH: public(constant(bytes32)) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
CLAIM_ENTRY_TYPEHASH: public(constant(bytes32)) = keccak256(
    "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
CLAIM_BATCH_TYPEHASH: public(constant(bytes32)) = keccak256(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)

# --- views ---


@view
@external
def getChannelId(config: ChannelConfig) -> bytes32:
    return self._channel_id(self._domain(), config)


@view
@external
def getVoucherDigest(channelId: bytes32, maxClaimableAmount: uint128) -> bytes32:
    return self._voucher_digest(self._domain(), channelId, maxClaimableAmount)


@view
@external
def getRefundDigest(channelId: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return self._refund_digest(self._domain(), channelId, nonce, amount)


@view
@external
def getClaimBatchDigest(voucherClaims: DynArray[VoucherClaim, MAX_CLAIMS]) -> bytes32:
    domain: bytes32 = self._domain()
    entries: DynArray[bytes32, MAX_CLAIMS] = []
    for row: VoucherClaim in voucherClaims:
        entries.append(self._entry(self._channel_id(domain, row.voucher.channel), row))
    return self._batch(domain, entries)


# --- digests ---


@view
@internal
def _domain() -> bytes32:
    return signatures._separator(NAME_HASH, VERSION_HASH)


@pure
@internal
def _channel_id(domain: bytes32, config: ChannelConfig) -> bytes32:
    return signatures._typed(domain, keccak256(abi_encode(CHANNEL_CONFIG_TYPEHASH, config)))


@pure
@internal
def _voucher_digest(domain: bytes32, channel: bytes32, ceiling: uint128) -> bytes32:
    return signatures._typed(domain, keccak256(abi_encode(VOUCHER_TYPEHASH, channel, ceiling)))


@pure
@internal
def _refund_digest(domain: bytes32, channel: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return signatures._typed(domain, keccak256(abi_encode(REFUND_TYPEHASH, channel, nonce, amount)))


@pure
@internal
def _entry(channel: bytes32, row: VoucherClaim) -> bytes32:
    return keccak256(abi_encode(CLAIM_ENTRY_TYPEHASH, channel, row.voucher.maxClaimableAmount, row.totalClaimed))


@pure
@internal
def _batch(domain: bytes32, entries: DynArray[bytes32, MAX_CLAIMS]) -> bytes32:
    encoded: Bytes[32 * MAX_CLAIMS + 64] = abi_encode(entries)  # offset, length, entries
    root: bytes32 = keccak256(slice(encoded, 64, 32 * len(entries)))
    return signatures._typed(domain, keccak256(abi_encode(CLAIM_BATCH_TYPEHASH, root)))
