# SPDX-License-Identifier: Apache-2.0
"""What travels beside the seal: Meta (proxy and worker read it), Payment (the proxy reads and strips it).

Spec SEAL-1, SEAL-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from bombyx.protocol.primitives import Address, Digest, Instant, RequestId
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.codec import Message


class Shape(StrEnum):
    """How an answer's frames are laid out in size and time (SEAL-8)."""

    CONSTANT = "constant"
    BUCKET = "bucket"
    OFF = "off"


MIN_FRAME: Final = 64  # bytes of one sealed frame's ciphertext (SEAL-8)
MAX_FRAME: Final = 16_400  # a chunk that every receiver must take (16 384), and its tag
DEFAULT_FRAME: Final = {Shape.CONSTANT: 1_024, Shape.BUCKET: 256, Shape.OFF: 1_024}
MAX_DEADLINE: Final = 300  # seconds from its sending in which a request must end (PROXY-2)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Meta(Message):
    """What the proxy must know to route and price one request; bound into every wrap by its SHA-256."""

    TAG: ClassVar[int] = 27010
    MAX_SIZE: ClassVar[int] = 4096

    v: int
    request_id: RequestId
    model: Digest  # of the ModelManifest
    proxy: Address
    price_sheets: tuple[Digest, ...]  # one per candidate, same order: what the client agreed to pay each
    commission_bps: int
    max_input: int  # units, rounded up to the grain
    max_output: int  # units, rounded up to the grain
    deadline: Instant
    candidates: tuple[Digest, ...]  # SHA-256 of the key configuration each wrap is for; 1 .. 8
    shape: Shape
    frame_size: int  # bytes of one sealed frame's ciphertext, for `constant` and `bucket`


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVoucher(Message):
    """x402 batch-settlement Voucher and its signature. Cumulative: replaces every smaller one (PAY-3)."""

    TAG: ClassVar[int] = 27017
    channel: Digest
    ceiling: int  # maxClaimableAmount
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedGrant(Message):
    """EIP-712 SessionGrant: the payer's authorizer lets a MAC key speak for the channel until `not_after` (PAY-9)."""

    TAG: ClassVar[int] = 27018
    channel: Digest
    payee: Address
    key_hash: Digest
    not_after: Instant
    sealed_key: bytes  # HPKE to the payee's registered key (RFC 9458 Encapsulated Request form)
    signature: bytes


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Payment(Message):
    """PAY of one hop: what authorises the payee to charge up to `cap` for this request."""

    TAG: ClassVar[int] = 27011
    MAX_SIZE: ClassVar[int] = 8192

    v: int
    channel: Digest
    cap: int
    voucher: SignedVoucher | None  # raises the ceiling; required in strict mode and when the window runs out
    grant: SignedGrant | None  # opens a session
    counter: int  # 0 in strict mode; else the MAC's counter
    mac: bytes  # empty in strict mode; else HMAC-SHA256, 32 bytes
