# SPDX-License-Identifier: Apache-2.0
"""Blobs a worker offered and this proxy lacks, on their way over the link: WANT, then BLOB_PART and BLOB_END (LINK-7).

Not here: who may be asked; only a worker whose evidence and signature were checked is.

Always: what is held is bounded before it grows; a blob is taken only under the digest that was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.records import MAX_BLOB


class Fetch:
    """One WANT under way. The blobs come in the order they were asked for."""

    __slots__ = ("_blob", "_got", "_left", "_wanted", "done")

    def __init__(self, wanted: Sequence[Digest], *, limit: int) -> None:
        self._wanted = tuple(wanted)
        self._left = limit
        self._blob = bytearray()
        self._got: list[bytes] = []
        self.done: asyncio.Future[tuple[bytes, ...]] = asyncio.get_running_loop().create_future()

    @property
    def payload(self) -> bytes:
        """Of the WANT frame."""
        return b"".join(self._wanted)

    def part(self, piece: bytes, *, last: bool) -> None:
        """Raises `MalformedMessage` for bytes nobody asked for."""
        self._left -= len(piece)
        if self.done.done() or self._left < 0 or len(self._blob) + len(piece) > MAX_BLOB:
            raise _fault("more bytes of blobs than were asked for or fit")
        self._blob += piece
        if last:
            self._end()

    def _end(self) -> None:
        blob, self._blob = bytes(self._blob), bytearray()
        if sha256(blob) != self._wanted[len(self._got)]:
            raise _fault("a blob that is not the one asked for")
        self._got.append(blob)
        if len(self._got) == len(self._wanted):
            self.done.set_result(tuple(self._got))


def _fault(message: str) -> MalformedMessage:
    return MalformedMessage(message, peer=Peer.WORKER, rule="LINK-7")
