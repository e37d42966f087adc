# SPDX-License-Identifier: Apache-2.0
"""What is on offer: PriceSheet, Offer, Directory (spec MKT, PAY-12).

A proxy's word: the client checks each digest itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import cbor2

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.codec import MAX_ITEMS, Message
from bombyx.protocol.wire.compiled import list_head


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
    MAX_SIZE: ClassVar[int] = 32 << 20  # 100 000 offers take 28 MB
    v: int
    proxy: Address
    commission_bps: int
    at: Instant
    offers: tuple[Offer, ...]


# A large Directory differs little from the one before. So proxies join offers that are encoded once, and clients decode
# what they have not met: canonical encoding makes equal bytes the same offer.

_OFFERS: Final = cbor2.dumps("offers")
_LAST: Final = cbor2.dumps(
    "commission_bps"
)  # the one field after `offers`; a number, so nothing in it looks like a key
_OFFER: Final = b"\xd9" + Offer.TAG.to_bytes(2) + b"\xa8" + cbor2.dumps("v")  # how every Offer begins


def write_directory(bare: Directory, offers: Sequence[bytes]) -> bytes:
    """`bare`, which lists nobody, with these encoded offers: equal to `encode` of the whole."""
    encoded = bare.encode()
    at = encoded.rindex(_LAST)
    return b"".join((encoded[: at - 1], list_head(len(offers)), *offers, encoded[at:]))


class DirectoryReader:
    """`Directory.decode` for one proxy's directories, one after the other."""

    def __init__(self) -> None:
        self._known: dict[bytes, Offer] = {}

    def read(self, data: bytes) -> Directory:
        """The same as `Directory.decode`, and the same errors; cheap for what stood in the last one."""
        directory = self._in_parts(data) if len(data) <= Directory.MAX_SIZE else None
        if directory is None:  # not what a proxy of ours sends: read it whole, to say what is wrong
            directory = Directory.decode(data)
        return directory

    def _in_parts(self, data: bytes) -> Directory | None:
        """None where it does not fall into canonical parts. If it does, the whole is canonical too."""
        at = data.rfind(_LAST)
        first, *rest = data[: max(at, 0)].split(_OFFER)
        head = list_head(len(rest))
        if not first.endswith(_OFFERS + head) or len(rest) > MAX_ITEMS:
            return None
        try:
            bare = Directory.decode(first.removesuffix(head) + list_head(0) + data[at:])
            known, found = self._known, {}
            for part in rest:
                found[part] = known.get(part) or Offer.decode(_OFFER + part)
        except MalformedMessage:
            return None
        self._known = found
        return replace(bare, offers=tuple(map(found.__getitem__, rest)))
