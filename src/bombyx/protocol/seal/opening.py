# SPDX-License-Identifier: Apache-2.0
"""The enclave opens a request: every check in its order, the body last.

    wrap opens -> Meta's hash -> not_after -> proxy id -> replay -> finished ids -> body's hash -> body

Always: `enc` is written into the replay memory once the wrap opens, whatever follows; nothing of the body is
decrypted before every check passed; whoever holds an `OpenedRequest` holds a request bound to this Meta, this proxy
and this body. NOT here: payment, or whether the model is served. (docs/spec, SEAL-2 .. SEAL-6, SEAL-9.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bombyx.errors import MalformedMessage, Peer, ReplayError, SealError
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, sha256
from bombyx.protocol.seal import bhttp as http
from bombyx.protocol.seal.chunked import REQUEST_LABEL, ChunkOpener, open_whole
from bombyx.protocol.seal.envelope import (
    WRAP_LABEL,
    WRAPPED_SIZE,
    ResponseKeys,
    check_candidates,
    check_layout,
    request_hash,
)
from bombyx.protocol.seal.fields import META_FIELD, NOT_AFTER_FIELD
from bombyx.protocol.seal.hpke import KEY_SIZE, NONCE_SIZE, setup_recipient
from bombyx.protocol.seal.ohttp import Encapsulation, GatewayKey, decapsulate_request, not_ours, split_request
from bombyx.protocol.seal.replay import ReplayGuard
from bombyx.protocol.wire.request import Meta


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRequest:
    """Proof that every check passed. `bhttp` is the client's HTTP request; `keys` seal the answer."""

    meta: Meta
    candidate: Digest  # which of our keys it was sealed to
    bhttp: bytes = field(repr=False)
    keys: ResponseKeys = field(repr=False)
    request_hash: Digest
    not_after: Instant

    @property
    def salt(self) -> bytes:
        """Blinds every digest of content that leaves the seal."""
        return self.keys.salt


def _never(_: RequestId) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Door:
    """What a request is checked against, and the checks all requests share."""

    proxy: Address
    now: Instant
    finished: Callable[[RequestId], bool]

    def admit(self, meta_bytes: bytes, promised: bytes, candidate: Digest, not_after: Instant, *, fresh: bool) -> Meta:
        """Meta, once its hash, the time, the proxy and the replay memory say yes; in that order."""
        _check_meta_hash(promised, meta_bytes)
        meta = _decode_meta(meta_bytes, candidate)
        _check_bounds(meta, not_after, self.proxy, self.now)
        _check_once(meta, fresh, self.finished)
        return meta


def open_request(
    gateway_keys: Iterable[GatewayKey],
    *,
    meta_bytes: bytes,
    wrap: bytes,
    body: bytes,
    proxy: Address,
    now: Instant,
    replays: ReplayGuard,
    finished: Callable[[RequestId], bool] = _never,
) -> OpenedRequest:
    """Open one request. An empty `wrap` means a plain chunked request (k = 1).

    Raises `KeyConfigError` (sealed to another key), `ReplayError`, `MalformedMessage`, `StreamTruncated`,
    `Overloaded` (the replay memory is full) or `SealError` with its rule.
    """
    door = _Door(proxy=proxy, now=now, finished=finished)
    if not wrap:
        return _open_plain(gateway_keys, door, meta_bytes, body, replays)
    return _open_wrapped(gateway_keys, door, meta_bytes, wrap, body, replays)


def _open_wrapped(
    keys: Iterable[GatewayKey], door: _Door, meta_bytes: bytes, wrap: bytes, body: bytes, replays: ReplayGuard
) -> OpenedRequest:
    wrapped, capsule, key = decapsulate_request(keys, wrap, label=WRAP_LABEL)
    candidate = key.config.candidate_id()
    fresh = replays.first_time(candidate, capsule.enc)
    if len(wrapped) != WRAPPED_SIZE:
        raise MalformedMessage(f"a wrap of {len(wrapped)} bytes, not {WRAPPED_SIZE}", peer=Peer.CLIENT, rule="SEAL-3")
    not_after = _instant(int.from_bytes(wrapped[80:88]))
    meta = door.admit(meta_bytes, wrapped[16:48], candidate, not_after, fresh=fresh)
    if sha256(body) != wrapped[48:80]:
        raise SealError("the body is not the one this wrap was made for", peer=Peer.PROXY, rule="SEAL-4")
    opener = ChunkOpener(wrapped[:KEY_SIZE], body[:NONCE_SIZE], peer=Peer.CLIENT)
    return OpenedRequest(
        meta=meta,
        candidate=candidate,
        bhttp=open_whole(opener, body[NONCE_SIZE:], peer=Peer.CLIENT),
        keys=ResponseKeys.of(capsule),
        request_hash=request_hash(meta_bytes, wrap, body),
        not_after=not_after,
    )


def _open_plain(
    keys: Iterable[GatewayKey], door: _Door, meta_bytes: bytes, body: bytes, replays: ReplayGuard
) -> OpenedRequest:
    # The binding lies inside, so here the body opens before it is checked. SEAL-9: unbound requests are never served.
    key, header, enc, frames = split_request(keys, body)
    candidate = key.config.candidate_id()
    context = setup_recipient(key.private_key, enc, REQUEST_LABEL + b"\x00" + header)
    inner = _open_frames(ChunkOpener.under(context, peer=Peer.CLIENT), frames, header[0])
    fresh = replays.first_time(candidate, enc)
    promised, not_after = _inner_binding(inner)
    meta = door.admit(meta_bytes, promised, candidate, not_after, fresh=fresh)
    check_layout(meta, ())
    return OpenedRequest(
        meta=meta,
        candidate=candidate,
        bhttp=inner,
        keys=ResponseKeys.of(Encapsulation(enc=enc, context=context)),
        request_hash=request_hash(meta_bytes, b"", body),
        not_after=not_after,
    )


def _open_frames(opener: ChunkOpener, frames: bytes, key_id: int) -> bytes:
    try:
        return open_whole(opener, frames, peer=Peer.CLIENT)
    except SealError:
        if opener.opened == 0:
            raise not_ours(key_id) from None
        raise


def _inner_binding(inner: bytes) -> tuple[bytes, Instant]:
    headers = dict(http.decode_request(inner).headers)
    if META_FIELD not in headers:
        raise SealError("a request not bound to any Meta", peer=Peer.CLIENT, rule="SEAL-9")
    return _hex(headers[META_FIELD]), _instant(_decimal(headers.get(NOT_AFTER_FIELD)))


def _check_meta_hash(promised: bytes, meta_bytes: bytes) -> None:
    if sha256(meta_bytes) != promised:
        raise SealError("META is not the one this request was sealed with", peer=Peer.PROXY, rule="SEAL-2")


def _decode_meta(meta_bytes: bytes, candidate: Digest) -> Meta:
    meta = Meta.decode(meta_bytes)
    check_candidates(meta)
    if candidate not in meta.candidates:
        raise SealError("META does not name the key this was sealed to", peer=Peer.CLIENT, rule="SEAL-3")
    return meta


def _check_bounds(meta: Meta, not_after: Instant, proxy: Address, now: Instant) -> None:
    if now > not_after:
        raise SealError(f"sealed until {int(not_after)}, it is {int(now)}", peer=Peer.PROXY, rule="SEAL-5")
    if meta.proxy != proxy:
        raise SealError(f"sealed for proxy {meta.proxy}, not {proxy}", peer=Peer.PROXY, rule="SEAL-5")


def _check_once(meta: Meta, fresh: bool, finished: Callable[[RequestId], bool]) -> None:
    if not fresh:
        raise ReplayError("this envelope was opened before", peer=Peer.PROXY, rule="SEAL-6")
    if finished(meta.request_id):
        raise ReplayError("this request was answered before", peer=Peer.PROXY, rule="SEAL-6")


def _instant(milliseconds: int) -> Instant:
    try:
        return Instant(milliseconds)
    except ValueError:
        raise MalformedMessage("not_after is no instant", peer=Peer.CLIENT, rule="SEAL-5") from None


def _hex(value: bytes) -> bytes:
    try:
        return bytes.fromhex(value.decode("ascii"))
    except ValueError:
        return b""


def _decimal(value: bytes | None) -> int:
    if value is None or not value.isdigit() or len(value) > 18:
        raise MalformedMessage("bombyx-not-after is no instant", peer=Peer.CLIENT, rule="SEAL-9")
    return int(value)
