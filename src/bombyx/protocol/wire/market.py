# SPDX-License-Identifier: Apache-2.0
"""What is on offer: PriceSheet, Offer, Directory (spec MKT, PAY-12).

A proxy's word: the client checks each digest itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.codec import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice(Message):
    """Token base units per million units of each class, for one model."""

    TAG: ClassVar[int] = 27016
    model: Digest
    input: int
    cached_input: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSheet(Message):
    """A worker operator's prices. Named by digest in Meta and receipts, so that nobody changes them afterwards."""

    TAG: ClassVar[int] = 27004
    MAX_SIZE: ClassVar[int] = 65_536
    v: int
    operator: Address
    grain: int  # units are rounded up to multiples of this before they leave the seal
    prices: tuple[ModelPrice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Message):
    """One worker as a proxy lists it. `bundle`, `price_sheet` and `models` are fetched by digest and checked."""

    TAG: ClassVar[int] = 27005
    v: int
    operator: Address
    bundle: Digest
    candidates: tuple[Digest, ...]  # SHA-256 of each key configuration in the keyset, in order
    models: tuple[Digest, ...]
    price_sheet: Digest
    hardware: str  # what it calls itself, e.g. "cpu", "h100"; the appraisal says what is proven
    not_after: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory(Message):
    """A proxy's list of the workers linked to it, at one moment."""

    TAG: ClassVar[int] = 27006
    MAX_SIZE: ClassVar[int] = 16 << 20
    v: int
    proxy: Address
    commission_bps: int
    at: Instant
    offers: tuple[Offer, ...]
