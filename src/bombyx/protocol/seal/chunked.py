# SPDX-License-Identifier: Apache-2.0
"""Chunked OHTTP framing (draft-ietf-ohai-chunked-ohttp): `varint(length) || ct` frames, then `varint(0) || ct` of the
last.

The last frame is sealed with the AAD "final", so that a stream cut short cannot pass for a whole one. Used three
times: for the body of an envelope, for plain k = 1 requests and for responses.

Always: one AEAD object a stream, nonce = base XOR counter, so frames cannot be dropped, doubled or swapped unnoticed;
a non-final frame is never empty. (docs/spec, SEAL-7.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bombyx.errors import MalformedMessage, Peer, SealError, StreamTruncated
from bombyx.protocol.seal.hpke import NONCE_SIZE, TAG_SIZE, RecipientContext, SenderContext
from bombyx.protocol.wire.varint import read_varint, write_varint

REQUEST_LABEL: Final = b"message/bhttp chunked request"
RESPONSE_LABEL: Final = b"message/bhttp chunked response"
CHUNK: Final = 16_384  # bytes of plaintext every receiver must take (draft section 3)
MAX_SEALED_CHUNK: Final = 1 << 20  # bytes; what we take
_FINAL: Final = b"final"


class ChunkSealer:
    """Seals one stream, chunk by chunk."""

    __slots__ = ("_aead", "_base", "_counter")

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._aead = AESGCM(key)
        self._base = int.from_bytes(nonce)
        self._counter = 0

    @classmethod
    def under(cls, context: SenderContext) -> ChunkSealer:
        """A stream that takes the context's key and nonces over, as a chunked request does."""
        sealer = cls.__new__(cls)
        sealer._aead, sealer._base = context.as_stream()
        sealer._counter = 0
        return sealer

    def seal(self, chunk: bytes) -> bytes:
        """One non-final frame."""
        if not chunk:
            raise ValueError("a chunk that is not the last is not empty")
        nonce = (self._base ^ self._counter).to_bytes(NONCE_SIZE)
        self._counter += 1
        return write_varint(len(chunk) + TAG_SIZE) + self._aead.encrypt(nonce, chunk, b"")

    def seal_final(self, chunk: bytes = b"") -> bytes:
        """The last frame. Its zero is as wide as the length it stands for, so that it is not told apart by size."""
        nonce = (self._base ^ self._counter).to_bytes(NONCE_SIZE)
        self._counter += 1
        width = len(write_varint(len(chunk) + TAG_SIZE))
        return write_varint(0, width) + self._aead.encrypt(nonce, chunk, _FINAL)


class ChunkOpener:
    """Opens one stream. `open` takes one frame's ciphertext; `ChunkReader` finds frames in a byte stream."""

    __slots__ = ("_aead", "_base", "_counter", "_peer", "finished")

    def __init__(self, key: bytes, nonce: bytes, *, peer: Peer = Peer.UNKNOWN) -> None:
        self._aead = AESGCM(key)
        self._base = int.from_bytes(nonce)
        self._counter = 0
        self._peer = peer
        self.finished = False

    @classmethod
    def under(cls, context: RecipientContext, *, peer: Peer = Peer.UNKNOWN) -> ChunkOpener:
        """The other end of `ChunkSealer.under`."""
        opener = cls.__new__(cls)
        opener._aead, opener._base = context.as_stream()
        opener._counter, opener._peer, opener.finished = 0, peer, False
        return opener

    @property
    def opened(self) -> int:
        """Frames opened so far."""
        return self._counter

    def open(self, ciphertext: bytes | memoryview, *, final: bool) -> bytes:
        """The plaintext of the next frame. Raises `SealError` for any other bytes than those sealed at this place."""
        if self.finished:
            raise SealError("a frame after the final one", peer=self._peer, rule="SEAL-7")
        nonce = (self._base ^ self._counter).to_bytes(NONCE_SIZE)
        try:
            chunk = self._aead.decrypt(nonce, ciphertext, _FINAL if final else b"")
        except InvalidTag:
            raise SealError(f"frame {self._counter} does not open", peer=self._peer, rule="SEAL-7") from None
        if not chunk and not final:
            raise SealError(f"frame {self._counter} is empty but not final", peer=self._peer, rule="SEAL-7")
        self._counter += 1
        self.finished = final
        return chunk


class ChunkReader:
    """Frames out of a byte stream whose end the transport tells: `feed` bytes, then `finish`. Holds one frame at
    most.
    """

    __slots__ = ("_buffer", "_last", "_opener", "_peer")

    def __init__(self, opener: ChunkOpener, *, peer: Peer = Peer.UNKNOWN) -> None:
        self._opener = opener
        self._buffer = bytearray()
        self._last = False
        self._peer = peer

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while not self._last:
            head = read_varint(self._buffer)
            if head is None:
                return
            length, start = head
            if length == 0:
                self._last = True
                del self._buffer[:start]
                break
            if length > MAX_SEALED_CHUNK:
                raise _too_long(length)
            if len(self._buffer) < start + length:
                return
            ciphertext = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            yield self._opener.open(ciphertext, final=False)
        if len(self._buffer) > MAX_SEALED_CHUNK:
            raise _too_long(len(self._buffer))

    def finish(self) -> bytes:
        """The last chunk. Raises `StreamTruncated` when the stream stopped before it."""
        if not self._last or len(self._buffer) < TAG_SIZE:
            raise StreamTruncated("the stream stopped before its final frame", peer=self._peer, rule="SEAL-7")
        return self._opener.open(bytes(self._buffer), final=True)


def seal_whole(sealer: ChunkSealer, plaintext: bytes) -> bytes:
    """All of `plaintext`, in chunks every receiver must take."""
    last = max(0, (len(plaintext) - 1) // CHUNK * CHUNK)
    frames = [sealer.seal(plaintext[at : at + CHUNK]) for at in range(0, last, CHUNK)]
    return b"".join((*frames, sealer.seal_final(plaintext[last:])))


def open_whole(opener: ChunkOpener, sealed: bytes, *, peer: Peer = Peer.UNKNOWN) -> bytes:
    """The plaintext of a complete stream, or an error; never a part of it."""
    view = memoryview(sealed)
    chunks: list[bytes] = []
    position = 0
    while True:
        head = read_varint(view, position)
        if head is None:
            raise StreamTruncated("the stream stopped before its final frame", peer=peer, rule="SEAL-7")
        length, start = head
        if length == 0:
            break
        if length > MAX_SEALED_CHUNK:
            raise _too_long(length)
        if start + length > len(view):
            raise StreamTruncated("the stream stopped inside a frame", peer=peer, rule="SEAL-7")
        chunks.append(opener.open(view[start : start + length], final=False))
        position = start + length
    if len(view) - start < TAG_SIZE:
        raise StreamTruncated("the stream stopped inside its final frame", peer=peer, rule="SEAL-7")
    chunks.append(opener.open(view[start:], final=True))
    return b"".join(chunks)


def _too_long(length: int) -> MalformedMessage:
    return MalformedMessage(f"a frame of {length} bytes, at most {MAX_SEALED_CHUNK}", rule="SEAL-7")
