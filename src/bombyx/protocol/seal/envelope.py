# SPDX-License-Identifier: Apache-2.0
"""The envelope of `POST /v1/blind`: one sealed body, its key wrapped to each of k candidates.

    varint len || Payment || varint len || Meta || varint k || k x (varint len || wrap) || body

A wrap is an RFC 9458 Encapsulated Request of DEK(16) || SHA-256(Meta) || SHA-256(body) || not_after(8, ms). The body is
nonce(12) || chunked-OHTTP frames of a padded BHTTP request under the DEK. With k = 0 there is no wrap and the body is
a plain `message/ohttp-chunked-req` to the one candidate of Meta; the inner fields `bombyx-meta` and
`bombyx-not-after` bind it.

Always: every wrap names the body and the Meta it came with, so no candidate can write a body for another and no proxy
can change model, caps or path. NOT here: opening (`opening.py`), payment (`protocol/pay`). (docs/spec, SEAL-1 ..
SEAL-4, SEAL-9.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.primitives import Digest, Instant, sha256, tagged_hash
from bombyx.protocol.quick import quick
from bombyx.protocol.seal import bhttp as http
from bombyx.protocol.seal.chunked import REQUEST_LABEL, RESPONSE_LABEL, ChunkSealer, seal_whole
from bombyx.protocol.seal.fields import META_FIELD, NOT_AFTER_FIELD
from bombyx.protocol.seal.hpke import KEY_SIZE, NONCE_SIZE, Randomness, setup_sender
from bombyx.protocol.seal.ohttp import RESPONSE_NONCE_SIZE, Encapsulation, KeyConfig, encapsulate_request
from bombyx.protocol.seal.padding import pad_request
from bombyx.protocol.wire.request import Meta, Payment
from bombyx.protocol.wire.varint import read_varint, write_varint

WRAP_LABEL: Final = b"message/bombyx-key request v1"
SALT_LABEL: Final = b"bombyx salt v1"
MAX_CANDIDATES: Final = 8
MAX_WRAP: Final = 2048  # bytes; a hybrid wrap has 1231
MAX_BODY: Final = 36 << 20  # bytes; images travel inside prompts
MAX_ENVELOPE: Final = MAX_BODY + Payment.MAX_SIZE + Meta.MAX_SIZE + MAX_CANDIDATES * (MAX_WRAP + 4) + 64
WRAPPED_SIZE: Final = KEY_SIZE + 32 + 32 + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseKeys:
    """What opens, or seals, the answer of one candidate. Both ends derive the same from the wrap."""

    enc: bytes = field(repr=False)
    secret: bytes = field(repr=False)  # Export of the chunked response label
    salt: bytes = field(repr=False)  # Export of SALT_LABEL: blinds every digest of content outside the seal (RCT-5)

    @classmethod
    def of(cls, capsule: Encapsulation) -> ResponseKeys:
        secret = capsule.context.export(RESPONSE_LABEL, RESPONSE_NONCE_SIZE)
        return cls(enc=capsule.enc, secret=secret, salt=capsule.context.export(SALT_LABEL, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRequest:
    """A request as its client keeps it: what it sent, and the keys of every answer it may get."""

    meta: Meta
    meta_bytes: bytes = field(repr=False)
    wraps: tuple[bytes, ...] = field(repr=False)  # empty: a plain chunked request
    body: bytes = field(repr=False)
    keys: tuple[ResponseKeys, ...] = field(repr=False)  # in the order of meta.candidates

    @property
    def meta_hash(self) -> Digest:
        return sha256(self.meta_bytes)

    @property
    def payload_hash(self) -> Digest:
        """What a payment's MAC covers: everything after Meta."""
        return payload_hash(self.wraps, self.body)

    def envelope(self, payment: bytes) -> bytes:
        """The body of `POST /v1/blind`, with the encoded Payment in front."""
        return encode_envelope(payment, self.meta_bytes, self.wraps, self.body)

    def keys_of(self, candidate: Digest) -> ResponseKeys:
        return self.keys[self._place(candidate)]

    def request_hash(self, candidate: Digest) -> Digest:
        """What the candidate's receipt must name."""
        wrap = self.wraps[self._place(candidate)] if self.wraps else b""
        return request_hash(self.meta_bytes, wrap, self.body)

    def _place(self, candidate: Digest) -> int:
        try:
            return self.meta.candidates.index(candidate)
        except ValueError:
            raise MalformedMessage(
                "a candidate this request was not sealed to", peer=Peer.PROXY, rule="SEAL-3"
            ) from None


def seal_request(
    *, meta: Meta, bhttp: bytes, recipients: Sequence[KeyConfig], randomness: Randomness, not_after: Instant
) -> SealedRequest:
    """Seal `bhttp` (padded by the caller: `padding.pad_request`) once and wrap its key to each of `recipients`."""
    _check_recipients(meta, recipients)
    meta_bytes = meta.encode()
    key, nonce = randomness.bytes(KEY_SIZE), randomness.bytes(NONCE_SIZE)
    body = nonce + seal_whole(ChunkSealer(key, nonce), bhttp)
    _check_body(len(body))
    wrapped = key + sha256(meta_bytes) + sha256(body) + int(not_after).to_bytes(8)
    made = [encapsulate_request(config, wrapped, randomness, label=WRAP_LABEL) for config in recipients]
    return SealedRequest(
        meta=meta,
        meta_bytes=meta_bytes,
        wraps=tuple(wrap for wrap, _ in made),
        body=body,
        keys=tuple(ResponseKeys.of(capsule) for _, capsule in made),
    )


def seal_plain(
    *, meta: Meta, request: http.Request, recipient: KeyConfig, randomness: Randomness, not_after: Instant
) -> SealedRequest:
    """One candidate: a chunked OHTTP request, byte for byte the draft's, bound to Meta by two inner fields."""
    _check_recipients(meta, (recipient,))
    meta_bytes = meta.encode()
    bound = ((META_FIELD, sha256(meta_bytes).hex().encode()), (NOT_AFTER_FIELD, str(int(not_after)).encode()))
    inner = pad_request(http.encode_request(request.with_headers(bound)))
    header = recipient.header()
    enc, context = setup_sender(recipient.kem, recipient.public_key, REQUEST_LABEL + b"\x00" + header, randomness)
    body = header + enc + seal_whole(ChunkSealer.under(context), inner)
    _check_body(len(body))
    keys = ResponseKeys.of(Encapsulation(enc=enc, context=context))
    return SealedRequest(meta=meta, meta_bytes=meta_bytes, wraps=(), body=body, keys=(keys,))


def request_hash(meta_bytes: bytes, wrap: bytes, body: bytes) -> Digest:
    """The request a receipt speaks of: Meta, the chosen wrap and the body, all as ciphertext or public."""
    return request_hash_of(sha256(meta_bytes), wrap, sha256(body))


def request_hash_of(meta: Digest, wrap: bytes, body: Digest) -> Digest:
    """`request_hash` for whoever has hashed Meta and body before."""
    return tagged_hash("bombyx request v1", meta, sha256(wrap), body)


def payload_hash(wraps: Sequence[bytes], body: bytes) -> Digest:
    """SHA-256 of what follows Meta in an envelope."""
    return sha256(_encode_wraps(wraps), body)


# --- layout ----------------------------------------------------------------------------------------------------------


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The parts of an envelope, as the proxy sees them. Payment and Meta are canonical bytes, not yet decoded."""

    payment_bytes: bytes = field(repr=False)
    meta_bytes: bytes = field(repr=False)
    wraps: tuple[bytes, ...] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def payload_hash(self) -> Digest:
        return payload_hash(self.wraps, self.body)

    def wrap_of(self, meta: Meta, candidate: Digest) -> bytes:
        """The wrap meant for `candidate`; empty for a plain request."""
        return self.wraps[meta.candidates.index(candidate)] if self.wraps else b""


def encode_envelope(payment: bytes, meta: bytes, wraps: Sequence[bytes], body: bytes) -> bytes:
    front = (write_varint(len(payment)), payment, write_varint(len(meta)), meta)
    return b"".join((*front, _encode_wraps(wraps), body))


def _encode_wraps(wraps: Sequence[bytes]) -> bytes:
    parts = [write_varint(len(wraps))]
    for wrap in wraps:
        parts += (write_varint(len(wrap)), wrap)
    return b"".join(parts)


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope's layout. Raises `MalformedMessage`; copies nothing but the parts."""
    if len(data) > MAX_ENVELOPE:
        raise _bad_envelope(f"{len(data)} bytes, at most {MAX_ENVELOPE}")
    payment, position = _read_part(data, 0, Payment.MAX_SIZE)
    meta, position = _read_part(data, position, Meta.MAX_SIZE)
    count, position = _read_number(data, position, MAX_CANDIDATES)
    wraps: list[bytes] = []
    for _ in range(count):
        wrap, position = _read_part(data, position, MAX_WRAP)
        wraps.append(wrap)
    body = data[position:]
    if not NONCE_SIZE < len(body) <= MAX_BODY:
        raise _bad_envelope(f"a body of {len(body)} bytes, at most {MAX_BODY}")
    return Envelope(payment_bytes=payment, meta_bytes=meta, wraps=tuple(wraps), body=body)


def check_layout(meta: Meta, wraps: Sequence[bytes]) -> None:
    """Meta and wraps speak of the same candidates: as many wraps as candidates, or none for exactly one."""
    check_candidates(meta)
    count = len(meta.candidates)
    if len(wraps) != count and (wraps or count != 1):
        raise _bad_envelope(f"{len(wraps)} wraps for {count} candidates")


def check_candidates(meta: Meta) -> None:
    """At least one, none twice, a price sheet for each."""
    count = len(meta.candidates)
    if not 1 <= count <= MAX_CANDIDATES or len(set(meta.candidates)) != count or len(meta.price_sheets) != count:
        raise _bad_envelope(f"{count} candidates with {len(meta.price_sheets)} price sheets")


def _read_number(data: bytes, position: int, limit: int) -> tuple[int, int]:
    read = read_varint(data, position)
    if read is None or read[0] > limit:
        raise _bad_envelope("it is cut, or a part is larger than it may be")
    return read


def _read_part(data: bytes, position: int, limit: int) -> tuple[bytes, int]:
    if position + 1 < len(data) and (first := data[position]) & 0xC0 == 0x40:  # as nearly all: a length of two bytes
        length, start = (first & 0x3F) << 8 | data[position + 1], position + 2
    else:
        length, start = _read_number(data, position, limit)
    end = start + length
    if end > len(data) or length > limit:
        raise _bad_envelope("it is cut, or a part is larger than it may be")
    return data[start:end], end


def _bad_envelope(what: str) -> MalformedMessage:
    return MalformedMessage(f"an envelope is malformed: {what}", peer=Peer.CLIENT, rule="SEAL-1")


def _check_recipients(meta: Meta, recipients: Sequence[KeyConfig]) -> None:
    if tuple(config.candidate_id() for config in recipients) != meta.candidates or not recipients:
        raise ValueError("Meta names other candidates than those sealed to")
    if len(recipients) > MAX_CANDIDATES:
        raise ValueError(f"{len(recipients)} candidates, at most {MAX_CANDIDATES}")


def _check_body(size: int) -> None:
    if size > MAX_BODY:
        raise MalformedMessage(f"a request of {size} bytes, at most {MAX_BODY}", peer=Peer.APPLICATION, rule="SEAL-1")
