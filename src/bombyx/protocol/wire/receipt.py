# SPDX-License-Identifier: Apache-2.0
"""Receipt: what a worker's attested key signs about one answer (spec RCT). EIP-712, because a contract may judge it.

Not here: whether a receipt is true (`protocol/pay/receipts.py` checks). `UsageOpening` travels inside the seal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, keccak256
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.eip712 import domain_separator, type_hash, typed_digest
from bombyx.protocol.wire.signing import SigningKey, recover

RECEIPT_TYPE: Final = type_hash(
    "Receipt(uint8 kind,bytes16 requestId,bytes32 requestHash,bytes32 responseHash,bytes32 model,bytes32 priceSheet,"
    "address operator,uint32 frames,uint64 inputUnits,uint64 cachedUnits,uint64 outputUnits,uint128 charge,"
    "bytes32 usageCommitment,bytes32 auditCommitment,uint8 outcome,uint64 seq,uint64 startedAt,uint64 finishedAt,"
    "bytes32 previous)"
)

# Words of 32 bytes: integers and addresses to the right, bytes16 to the left (EIP-712, "Definition of encodeData").
_WORDS: Final = struct.Struct(
    ">32s 31xB 16s16x 32s32s32s32s 12x20s 28xI 24xQ24xQ24xQ 16x16s 32s32s 31xB 24xQ24xQ24xQ 32s"
)
_BITS: Final = {
    "frames": 32,
    "input_units": 64,
    "cached_units": 64,
    "output_units": 64,
    "charge": 128,
    "seq": 64,
}


class Kind(IntEnum):
    """CHECKPOINT receipts travel inside the stream; one FINAL ends it."""

    CHECKPOINT = 0
    FINAL = 1


class Outcome(IntEnum):
    """How the request ended. RUNNING is the outcome of every checkpoint."""

    RUNNING = 0
    COMPLETE = 1
    CANCELLED = 2
    FAILED = 3
    REFUSED = 4  # the engine answered 4xx: the application's fault


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """Fields as in the EIP-712 struct; instants in ms; `previous`: digest of this answer's last checkpoint, or zero."""

    TAG: ClassVar[int] = 27007
    MAX_SIZE: ClassVar[int] = 2048

    kind: Kind
    request_id: RequestId
    request_hash: Digest
    response_hash: Digest
    model: Digest
    price_sheet: Digest
    operator: Address
    frames: int
    input_units: int
    cached_units: int
    output_units: int
    charge: int  # worker's price, before commission
    usage_commitment: Digest
    audit_commitment: Digest
    outcome: Outcome
    seq: int
    started_at: Instant
    finished_at: Instant
    previous: Digest

    def __post_init__(self) -> None:
        most = self.input_units | self.cached_units | self.output_units | self.seq
        if self.frames >> 32 or most >> 64 or self.charge >> 128:  # a negative number shifts to -1
            wrong = next(name for name, bits in _BITS.items() if getattr(self, name) >> bits)
            raise ValueError(f"{wrong} is a uint{_BITS[wrong]}")  # more would be signed here, refused by a contract

    def typed_digest(self, domain: Digest) -> Digest:
        """What is signed under `domain` (see `receipt_domain`)."""
        return typed_digest(domain, keccak256(self._encoded()))

    def _encoded(self) -> bytes:
        """typeHash || encodeData, every word of it in one go: this is on every answer's way."""
        return _WORDS.pack(
            RECEIPT_TYPE,
            self.kind,
            self.request_id,
            self.request_hash,
            self.response_hash,
            self.model,
            self.price_sheet,
            self.operator,
            self.frames,
            self.input_units,
            self.cached_units,
            self.output_units,
            self.charge.to_bytes(16),
            self.usage_commitment,
            self.audit_commitment,
            self.outcome,
            self.seq,
            self.started_at,
            self.finished_at,
            self.previous,
        )


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReceipt(Message):
    """A receipt and its 65-byte signature."""

    TAG: ClassVar[int] = 27008
    MAX_SIZE: ClassVar[int] = 2304

    receipt: Receipt
    signature: bytes

    @classmethod
    def sign(cls, receipt: Receipt, domain: Digest, key: SigningKey) -> SignedReceipt:
        return cls(receipt=receipt, signature=key.sign(receipt.typed_digest(domain)))

    def signer(self, domain: Digest) -> Address:
        """Who signed. Raises `MalformedMessage` when nobody can have."""
        return recover(self.receipt.typed_digest(domain), self.signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceIds(Message):
    """The output ids of one choice (`index` of the OpenAI answer), as the engine emitted them, and why it stopped."""

    TAG: ClassVar[int] = 27019
    ids: tuple[int, ...]
    finish: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageOpening(Message):
    """Opens `usageCommitment` inside the final frame: exact counts and what was billed (RCT-6)."""

    TAG: ClassVar[int] = 27012
    v: int
    input: int
    cached_input: int
    output: int
    choices: tuple[ChoiceIds, ...]
    verified: bool  # the enclave checked the engine's count against the ids
    note: str  # why not, e.g. "usage unverified: this engine gives no ids"


def receipt_domain(chain_id: int, registry: Address) -> Digest:
    """Domain {"bombyx receipt","1",chainId,registry}."""
    return domain_separator("bombyx receipt", "1", chain_id, registry)
