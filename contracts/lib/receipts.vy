# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title A worker's receipt: its EIP-712 digest and who signed it, as src/bombyx/protocol/wire/receipt.py has them
@license Apache-2.0
@notice A module, not a contract: it holds no storage. The domain's contract is the operator registry.
"""

from . import signatures

CHECKPOINT: constant(uint8) = 0
FINAL: constant(uint8) = 1
NAME_HASH: constant(bytes32) = keccak256("bombyx receipt")
VERSION_HASH: constant(bytes32) = keccak256("1")
DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
RECEIPT_TYPEHASH: constant(bytes32) = keccak256(
    "Receipt(uint8 kind,bytes16 requestId,bytes32 requestHash,bytes32 responseHash,bytes32 model,bytes32 priceSheet,address operator,uint32 frames,uint64 inputUnits,uint64 cachedUnits,uint64 outputUnits,uint128 charge,bytes32 usageCommitment,bytes32 auditCommitment,uint8 outcome,uint64 seq,uint64 startedAt,uint64 finishedAt,bytes32 previous)"
)

struct Receipt:
    kind: uint8
    requestId: bytes16
    requestHash: bytes32
    responseHash: bytes32
    model: bytes32
    priceSheet: bytes32
    operator: address
    frames: uint32
    inputUnits: uint64
    cachedUnits: uint64
    outputUnits: uint64
    charge: uint128
    usageCommitment: bytes32
    auditCommitment: bytes32
    outcome: uint8
    seq: uint64
    startedAt: uint64
    finishedAt: uint64
    previous: bytes32

struct SignedReceipt:
    receipt: Receipt
    signature: Bytes[65]

interface Keys:
    def keySince(operator: address, key: address) -> uint64: view


@view
@internal
def _digest(registry: address, receipt: Receipt) -> bytes32:
    separator: bytes32 = keccak256(abi_encode(DOMAIN_TYPEHASH, NAME_HASH, VERSION_HASH, chain.id, registry))
    return signatures._typed(separator, keccak256(abi_encode(RECEIPT_TYPEHASH, receipt)))


@view
@internal
def _key(registry: address, held: SignedReceipt) -> address:
    """@dev The key that signed it, which the operator inside has published; reverts otherwise."""
    key: address = signatures._recovered(self._digest(registry, held.receipt), held.signature)
    if key == empty(address) or staticcall Keys(registry).keySince(held.receipt.operator, key) == 0:
        raw_revert(method_id("NotSignedByOperator()"))
    return key
