# SPDX-License-Identifier: Apache-2.0
"""Two byte framings: records of a response (proxy to client) and frames of a worker link (proxy to worker and back).

A response body (`application/vnd.bombyx.response`) is a sequence of `type(1) || varint(length) || payload`. The
payloads of its DATA records, concatenated, are exactly one chunked-OHTTP response. A link is a sequence of
`u32 length || u32 stream || u8 type || payload`, any number in one WebSocket message (spec LINK-1 .. LINK-6).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, TypeVar

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Digest, RequestId
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.varint import read_varint, write_varint

MAX_RECORD: Final = 1 << 20  # bytes
MAX_LINK_FRAME: Final = 1 << 20  # bytes
MAX_BLOB: Final = 16 << 20  # bytes of one published blob; the token table of 262 000 tokens has about 4 MiB
MAX_BLOBS: Final = 64  # of one worker
BLOB_PART_SIZE: Final = 65_536  # bytes; as with requests, one large blob must not stall the streams of a link
_HEADER: Final = struct.Struct(">IIB")
E = TypeVar("E", bound=IntEnum)


class Record(IntEnum):
    """Types of response records, in the order a client sees them."""

    HEAD = 1  # ResponseHead: which candidate answers
    DATA = 2  # bytes of the chunked-OHTTP response; one record is one chunk (the first also holds the nonce)
    RECEIPT = 3  # SignedReceipt
    END = 4  # Settlement: the proxy's account of the charge; nothing follows
    HINT = 5  # UTF-8 JSON problem: the proxy's unsealed word on why the stream stops here


class LinkType(IntEnum):
    """Types of link frames. Stream 0 is the link itself."""

    CHALLENGE = 1  # proxy -> worker: LinkChallenge
    HELLO = 2  # worker -> proxy: LinkHello (again on key rotation)
    WELCOME = 3  # proxy -> worker: LinkWelcome
    WANT = 4  # proxy -> worker: digests (32 bytes each) of offered blobs it does not have
    BLOB_PART = 5  # worker -> proxy: a piece of the blob wanted next
    BLOB_END = 6  # worker -> proxy: its last piece
    REQUEST_PART = 16  # proxy -> worker: a piece of a request
    REQUEST_END = 17  # proxy -> worker: the last piece
    DATA = 32  # worker -> proxy: one chunk of the response
    RECEIPT = 33  # worker -> proxy: SignedReceipt
    END = 34  # worker -> proxy: nothing follows on this stream
    REFUSE = 35  # worker -> proxy: LinkRefusal, instead of any DATA
    CANCEL = 48  # proxy -> worker
    WINDOW = 49  # proxy -> worker: u32 more bytes of DATA may be sent
    VOUCHER = 50  # proxy -> worker: Payment outside a request (raises the ceiling)
    DRAIN = 51  # either: no new requests, please
    LOAD = 52  # worker -> proxy: LinkLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead(Message):
    """Which of the candidates answers."""

    TAG: ClassVar[int] = 27020
    candidate: Digest


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement(Message):
    """What the proxy booked for this request. The client computes the same, or freezes the channel."""

    TAG: ClassVar[int] = 27021
    request_id: RequestId
    channel: Digest
    worker_charge: int
    charge: int  # worker_charge and commission
    charged_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChallenge(Message):
    TAG: ClassVar[int] = 27022
    v: int
    proxy: Address
    chain_id: int
    nonce: Digest
    at: int  # proxy's clock, ms; a hint


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHello(Message):
    """A worker introduces itself.

    `signature`: the operator's, over tagged_hash("bombyx link v1", challenge nonce, proxy, bundle digest).
    """

    TAG: ClassVar[int] = 27023
    v: int
    bundle: bytes  # canonical EvidenceBundle
    price_sheet: bytes  # canonical PriceSheet
    blobs: tuple[Digest, ...]  # further blobs it can give, e.g. token tables; the proxy asks for those it lacks (WANT)
    hardware: str
    capacity: int  # requests at once
    nonce: Digest
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkWelcome(Message):
    """The proxy's proof of its id: its key signs tagged_hash("bombyx welcome v1", worker nonce, bundle digest)."""

    TAG: ClassVar[int] = 27024
    v: int
    proxy: Address
    commission_bps: int
    channel_config: bytes  # canonical ChannelConfigMessage of the proxy -> worker channel; empty until there is one
    window: int  # initial DATA credit per stream, bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRefusal(Message):
    """Why a worker did not start: a code of `bombyx.errors`, and a sentence without content."""

    TAG: ClassVar[int] = 27025
    MAX_SIZE: ClassVar[int] = 2048
    code: str
    message: str
    retry_after_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLoad(Message):
    TAG: ClassVar[int] = 27026
    active: int
    queued: int
    capacity: int


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRequest(Message):
    """What a worker receives: no byte of the client's payer. `payment` is the proxy's own."""

    TAG: ClassVar[int] = 27027
    MAX_SIZE: ClassVar[int] = 40 << 20
    payment: Payment | None
    meta: bytes  # canonical Meta, byte for byte as the client sealed it
    wrap: bytes  # RFC 9458 Encapsulated Request for this worker
    body: bytes  # nonce(12) || chunked-OHTTP frames


def write_record(kind: Record, payload: bytes) -> bytes:
    return bytes([kind]) + write_varint(len(payload)) + payload


class RecordReader:
    """Incremental reader of response records. Feed bytes, iterate records; keeps at most one record."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished record: not 0 at the end means it was cut."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Record, bytes]]:
        self._buffer += data
        while True:
            parsed = self._next()
            if parsed is None:
                return
            yield parsed

    def _next(self) -> tuple[Record, bytes] | None:
        if len(self._buffer) < 2:
            return None
        kind = _enum(Record, self._buffer[0])
        head = read_varint(self._buffer, 1)
        if head is None:
            return None
        length, start = head
        if length > MAX_RECORD:
            raise MalformedMessage(f"record of {length} bytes, at most {MAX_RECORD}", rule="LINK-2")
        if len(self._buffer) < start + length:
            return None
        payload = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return kind, payload


def write_link_frame(kind: LinkType, stream: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload), stream, kind) + payload


def read_link_frames(message: bytes) -> Iterator[tuple[LinkType, int, bytes]]:
    """All frames of one WebSocket message. A frame never spans messages."""
    position, end = 0, len(message)
    while position < end:
        if end - position < _HEADER.size:
            raise MalformedMessage("link message ends inside a frame header", rule="LINK-1")
        length, stream, kind = _HEADER.unpack_from(message, position)
        position += _HEADER.size
        if length > MAX_LINK_FRAME or position + length > end:
            raise MalformedMessage(f"link frame of {length} bytes does not fit", rule="LINK-1")
        yield _enum(LinkType, kind), stream, message[position : position + length]
        position += length


def _enum(kind: type[E], value: int) -> E:
    try:
        return kind(value)
    except ValueError:
        raise MalformedMessage(f"{kind.__name__} has no type {value}", rule="LINK-2") from None
