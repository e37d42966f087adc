# SPDX-License-Identifier: Apache-2.0
"""Calls under way: every transaction signed for a call, kept until the call's fate is known (spec LEDGER-9).

A call's transactions are a family: one sender, one nonce, one call, rising fees, so at most one of them is mined. A
member is in the store before a node sees it: whoever starts after a crash finds what may still be mined, and pushes or
replaces it. Without a store families live as long as the process.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.adapters.evm.fees import Fees
from bombyx.adapters.evm.rlp import encode
from bombyx.errors import BombyxError
from bombyx.ports import Store, Write
from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.signing import SigningKey

log = logging.getLogger("bombyx.chain")
TABLE: Final = "evm_sent"  # chain id, sender, nonce -> the family
UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`to` None creates a contract."""

    to: Address | None
    data: bytes = field(repr=False)
    gas: int

    def asks_the_same(self, to: Address | None, data: bytes) -> bool:
        return (self.to, self.data) == (to, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One signed transaction."""

    raw: bytes = field(repr=False)
    fees: Fees

    @property
    def hash(self) -> Digest:
        return keccak256(self.raw)


def signed(call: Call, *, chain_id: int, nonce: int, fees: Fees, signer: SigningKey) -> Sent:
    """An EIP-1559 transaction."""
    fields: list[Any] = [chain_id, nonce, fees.tip, fees.limit, call.gas, bytes(call.to or b""), 0, call.data, []]
    signature = signer.sign(keccak256(b"\x02", encode(fields)))
    r, s, v = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64]), signature[64] - 27
    return Sent(raw=b"\x02" + encode([*fields, v, r, s]), fees=fees)


@dataclass(slots=True, kw_only=True, eq=False)
class Family:
    """One call and its transactions, the cheapest first."""

    chain_id: int
    sender: Address
    nonce: int
    call: Call
    members: list[Sent]

    @property
    def last(self) -> Sent:
        return self.members[-1]

    @property
    def key(self) -> bytes:
        return _prefix(self.chain_id, self.sender) + self.nonce.to_bytes(8)

    def encode(self) -> bytes:
        row = {
            "to": str(self.call.to) if self.call.to else None,
            "data": self.call.data.hex(),
            "gas": self.call.gas,
            "sent": [[one.raw.hex(), one.fees.tip, one.fees.limit] for one in self.members],
        }
        return json.dumps(row).encode()

    @classmethod
    def decode(cls, key: bytes, row: bytes) -> Family:
        """Raises one of `UNREADABLE` for what `encode` did not write."""
        raw = json.loads(row)
        to = Address.parse(raw["to"]) if raw["to"] else None
        sent = [Sent(raw=bytes.fromhex(one), fees=Fees(tip=tip, limit=limit)) for one, tip, limit in raw["sent"]]
        if not sent:
            raise ValueError("a family without a member")
        return cls(
            chain_id=int.from_bytes(key[:8]),
            sender=Address(key[8:28]),
            nonce=int.from_bytes(key[28:]),
            call=Call(to=to, data=bytes.fromhex(raw["data"]), gas=raw["gas"]),
            members=sent,
        )


class Outbox:
    """The families of one process, in a store that is its own."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    async def keep(self, family: Family) -> None:
        """Durable when it returns."""
        if self._store is not None:
            await self._store.write([Write(table=TABLE, key=family.key, value=family.encode())])

    async def drop(self, family: Family) -> None:
        """Its fate is known. A row that stays all the same is found settled by the next process."""
        if self._store is None:
            return
        try:
            await self._store.write([Write(table=TABLE, key=family.key, value=None)])
        except BombyxError as error:
            log.warning("a settled transaction's row stays: %s", error)

    async def left(self, chain_id: int, sender: Address) -> list[Family]:
        """What an earlier process did not see the end of."""
        if self._store is None:
            return []
        found = []
        for key, row in await self._store.scan(TABLE, prefix=_prefix(chain_id, sender)):
            try:
                found.append(Family.decode(key, row))
            except UNREADABLE:
                log.warning("a transaction's row cannot be read and is left alone")
        return found

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()


def _prefix(chain_id: int, sender: Address) -> bytes:
    return chain_id.to_bytes(8) + sender
