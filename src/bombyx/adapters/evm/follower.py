# SPDX-License-Identifier: Apache-2.0
"""What one contract logged since it was last looked at: from the last block that was processed on (spec LEDGER-10).

A follower saves questions, it decides nothing: whoever hears that something happened asks the contract's views. Always:
as many blocks as a reorg may take, and some more, are read again; where deeper ones were replaced, or nothing is known
of what was read before, it says so, and everything must be looked at; the place is stored before it is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bombyx.adapters.evm.reading import ChainReader
from bombyx.adapters.evm.rpc import as_bytes, as_int
from bombyx.errors import Unavailable
from bombyx.ports import Store, Write
from bombyx.protocol.primitives import Address, Digest

TABLE: Final = "evm_seen"  # chain id, contract, event -> where we are
MORE: Final = 4  # blocks read again beyond the reorg depth: of nodes behind one address, one may be behind
Log = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """`logs`: of all blocks read now, some for the second time. `changed`: not what was read of them before.
    `certain`: False where logs cannot tell what happened since."""

    logs: tuple[Log, ...]
    changed: bool
    certain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    read: int  # the newest block that was read
    anchor: int  # a block that no reorg of the usual depth replaces
    anchor_hash: Digest


class Follower:
    """One contract's events, of one kind or of all. `store`: where the place outlives the process; None: it begins
    anew."""

    def __init__(
        self, chain: ChainReader, contract: Address, event: Digest | None = None, *, store: Store | None = None
    ) -> None:
        self._chain = chain
        self._contract = contract
        self._topics = [str(event)] if event is not None else []
        self._depth = chain.book.reorg_depth
        self._key = chain.book.chain_id.to_bytes(8) + contract + (event or Digest.zero())
        self._store = store
        self._place: _Place | None = None
        self._known: frozenset[tuple[int, bytes, int]] = frozenset()

    async def look(self) -> News:
        """Raises `Unavailable`; then nothing is taken as read."""
        head, place = await self._chain.height(), self._place or await self._stored()
        certain = place is not None and await self._stands(place, head)
        first = place.read - self._depth - MORE + 1 if certain and place is not None else head + 1
        logs = await self._chain.logs(self._contract, self._topics, max(0, first), head) if certain else []
        found = frozenset(map(_name, logs))
        changed = found != frozenset(name for name in self._known if name[0] >= first)
        await self._go_to(head)
        self._known = found
        return News(logs=tuple(logs), changed=changed or not certain, certain=certain)

    async def _stands(self, place: _Place, head: int) -> bool:
        """Whether what was read before is part of the chain still."""
        return head >= place.anchor and await self._chain.hash_at(place.anchor) == place.anchor_hash

    async def _go_to(self, head: int) -> None:
        number = max(0, head - self._depth)
        found = await self._chain.hash_at(number)
        if found is None:  # nothing to hold on to: the next look begins at the old place again
            return
        place = _Place(read=head, anchor=number, anchor_hash=found)
        if self._store is not None:
            row = json.dumps([place.read, place.anchor, str(place.anchor_hash)]).encode()
            await self._store.write([Write(table=TABLE, key=self._key, value=row)])
        self._place = place

    async def _stored(self) -> _Place | None:
        row = await self._store.read(TABLE, self._key) if self._store is not None else None
        try:
            read, anchor, name = json.loads(row or b"null")
            return _Place(read=int(read), anchor=int(anchor), anchor_hash=Digest.parse(name))
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None


def _name(log: Log) -> tuple[int, bytes, int]:
    """Block, its hash, place in it: two of the same event in one block, or in two that replace each other, differ."""
    return as_int(log.get("blockNumber")), as_bytes(log.get("blockHash"), 32), as_int(log.get("logIndex"))


def topic(log: Log, position: int) -> Digest:
    topics = log.get("topics")
    if not isinstance(topics, list) or len(topics) <= position:
        raise Unavailable("the chain's answer holds no event", rule="LEDGER-2")
    return Digest(as_bytes(topics[position], 32))
