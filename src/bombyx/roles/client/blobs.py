# SPDX-License-Identifier: Apache-2.0
"""Things named by their SHA-256: fetched from any proxy, believed by nobody's word but their digest (spec CLI-2).

Always: what `get` returns hashes to what was asked for; memory is bounded; what receipts stand on is kept in the store.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from bombyx.errors import MalformedMessage, Peer, Unavailable
from bombyx.ports import ProxyTransport, Store, Write
from bombyx.protocol.primitives import Digest, sha256

TABLE: Final = "client_blob"
MEMORY: Final = 64 << 20  # bytes


class Blobs:
    """A small memory, then the store, then a proxy."""

    def __init__(self, store: Store, *, memory: int = MEMORY) -> None:
        self._store = store
        self._memory = memory
        self._held: OrderedDict[Digest, bytes] = OrderedDict()
        self._size = 0

    async def get(self, digest: Digest, transport: ProxyTransport) -> bytes:
        """Raises `MalformedMessage` when the proxy gives something else, `Unavailable` when it gives nothing."""
        known = await self.kept(digest)
        if known is not None:
            return known
        status, data = await transport.get(f"/v1/blob/{digest.hex()}")
        if status != 200:
            raise Unavailable(f"the proxy does not have {digest!r} (status {status})", retry_after=1.0)
        if sha256(data) != digest:
            raise MalformedMessage(f"the proxy gave other bytes for {digest!r}", peer=Peer.PROXY, rule="CLI-2")
        self._hold(digest, data)
        return data

    async def kept(self, digest: Digest) -> bytes | None:
        """Without asking anybody."""
        if digest in self._held:
            self._held.move_to_end(digest)
            return self._held[digest]
        stored = await self._store.read(TABLE, digest)
        if stored is not None:
            self._hold(digest, stored)
        return stored

    def row(self, digest: Digest, data: bytes) -> Write:
        """The row that keeps `data` for good."""
        return Write(table=TABLE, key=digest, value=data)

    def _hold(self, digest: Digest, data: bytes) -> None:
        self._held[digest] = data
        self._size += len(data)
        while self._size > self._memory and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._size -= len(dropped)
