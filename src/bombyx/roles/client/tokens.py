# SPDX-License-Identifier: Apache-2.0
"""Token tables, by the digest a model manifest names: fetched once, decoded once (spec RCT-6)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from bombyx.errors import MalformedMessage, Unavailable
from bombyx.ports import ProxyTransport
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.client.blobs import Blobs

DECODED: Final = 4  # tables held; one of 262 000 tokens takes about 15 MB


class TokenTables:
    """A few decoded tables."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._tables: OrderedDict[Digest, TokenTable] = OrderedDict()

    async def get(self, digest: Digest, transport: ProxyTransport) -> TokenTable:
        """Raises `Unavailable` when nobody gives it: without it, billed ids cannot be checked, so nothing is sent."""
        known = self._tables.get(digest)
        if known is not None:
            self._tables.move_to_end(digest)
            return known
        try:
            table = TokenTable.decode(await self._blobs.get(digest, transport))
        except MalformedMessage as error:
            raise Unavailable(f"the token table of the model is unusable: {error.code}", rule="RCT-6") from None
        self._tables[digest] = table
        while len(self._tables) > DECODED:
            self._tables.popitem(last=False)
        return table
