# SPDX-License-Identifier: Apache-2.0
"""The sealed answer: a chunked-OHTTP response under the chosen wrap's Export, one frame a DATA record.

    DATA 0 = response nonce(16) || frame 0        DATA n = frame n        frame = varint(length or 0) || ciphertext

`ResponseChain` hashes those payloads as they pass; worker, proxy and client each hold one, and a receipt signs its
value.

Always: frames open only in the order they were sealed; nothing follows the final frame; an answer without one is
`StreamTruncated`, never a short answer. (docs/spec, SEAL-7, RCT-2.)
"""

from __future__ import annotations

from typing import Final

from bombyx.errors import MalformedMessage, Peer, SealError, StreamTruncated
from bombyx.protocol.primitives import Digest, sha256, tagged_hash
from bombyx.protocol.seal.chunked import ChunkOpener, ChunkSealer
from bombyx.protocol.seal.envelope import ResponseKeys, SealedRequest
from bombyx.protocol.seal.hpke import TAG_SIZE
from bombyx.protocol.seal.ohttp import RESPONSE_NONCE_SIZE, response_keys
from bombyx.protocol.seal.opening import OpenedRequest
from bombyx.protocol.wire.varint import read_varint

_NOTHING: Final = Digest.zero()


def chain_start(nonce: bytes) -> Digest:
    """The chain before any frame."""
    return tagged_hash("bombyx response v1", nonce)


def chain_next(previous: Digest, frame: bytes) -> Digest:
    """The chain after one more frame (its length and ciphertext, without the nonce of the first)."""
    return sha256(previous, frame)


class ResponseChain:
    """responseHash of a receipt: what `frames` DATA payloads were. `digest` is zero before the first."""

    __slots__ = ("digest", "frames")

    def __init__(self) -> None:
        self.digest = _NOTHING
        self.frames = 0

    def update(self, payload: bytes) -> Digest:
        """Take one DATA payload in. Raises `MalformedMessage` for a first one without room for its nonce."""
        if self.frames == 0:
            if len(payload) <= RESPONSE_NONCE_SIZE:
                raise MalformedMessage("the first frame is shorter than its nonce", peer=Peer.WORKER, rule="SEAL-7")
            self.digest = chain_start(payload[:RESPONSE_NONCE_SIZE])
            payload = payload[RESPONSE_NONCE_SIZE:]
        self.frames += 1
        self.digest = digest = sha256(self.digest, payload)  # `chain_next`, once for each frame there is
        return digest


class ResponseSealer:
    """The worker's end. Every call gives the payload of one DATA record; the first carries the nonce."""

    __slots__ = ("_front", "_sealer", "chain")

    def __init__(self, opened: OpenedRequest, response_nonce: bytes) -> None:
        self._front = bytes(response_nonce)
        self._sealer = ChunkSealer(*response_keys(opened.keys.enc, opened.keys.secret, response_nonce))
        self.chain = ResponseChain()

    def seal(self, chunk: bytes) -> bytes:
        return self._take(self._sealer.seal(chunk))

    def seal_final(self, chunk: bytes = b"") -> bytes:
        return self._take(self._sealer.seal_final(chunk))

    def _take(self, frame: bytes) -> bytes:
        if self._front:
            frame, self._front = self._front + frame, b""
        self.chain.update(frame)
        return frame


class ResponseOpener:
    """The client's end, for the candidate that answers. One DATA payload in, its plaintext out."""

    __slots__ = ("_keys", "_opener", "chain")

    def __init__(self, sealed: SealedRequest, candidate: Digest) -> None:
        self._keys: ResponseKeys = sealed.keys_of(candidate)
        self._opener: ChunkOpener | None = None
        self.chain = ResponseChain()

    @property
    def finished(self) -> bool:
        """Whether the final frame has been opened."""
        return self._opener is not None and self._opener.finished

    def feed(self, payload: bytes) -> bytes:
        """Open one DATA payload. Raises `SealError` for anything but the next frame of this answer."""
        start = 0
        if self._opener is None:
            if len(payload) < RESPONSE_NONCE_SIZE:
                raise MalformedMessage("the first frame is shorter than its nonce", peer=Peer.WORKER, rule="SEAL-7")
            start = RESPONSE_NONCE_SIZE
            keys = response_keys(self._keys.enc, self._keys.secret, payload[:start])
            self._opener = ChunkOpener(*keys, peer=Peer.WORKER)
        head = read_varint(payload, start)
        if head is None or len(payload) - head[1] < TAG_SIZE or head[0] not in (0, len(payload) - head[1]):
            raise MalformedMessage("a DATA record is not one whole frame", peer=Peer.PROXY, rule="SEAL-7")
        chunk = self._opener.open(payload[head[1] :], final=head[0] == 0)
        self.chain.update(payload)
        return chunk

    def finish(self) -> None:
        """The stream has ended. Raises `StreamTruncated` when the final frame has not come."""
        if not self.finished:
            raise StreamTruncated(
                f"the answer stopped after {self.chain.frames} frames, before its final one",
                peer=Peer.PROXY,
                rule="SEAL-7",
            )

    def refuse_more(self) -> None:
        """For a caller that sees further DATA after the end. Always raises."""
        raise SealError("a frame after the final one", peer=Peer.PROXY, rule="SEAL-7")
