# SPDX-License-Identifier: Apache-2.0
"""Doubles of the ports, in memory: MemoryStore and MemoryLedger. They keep every promise but durability.

Not here: the chain's rules (`memory_chain.py`); links in memory (`memory_link.py`); leases (`memory_leases.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from bombyx.adapters.memory_chain import CHAIN_ID, MemoryChain
from bombyx.adapters.memory_leases import LeaseTable
from bombyx.errors import Unavailable
from bombyx.ports import ChannelView, Claim, Clock, LedgerInfo, Operator, OperatorRole, Write
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.evidence import BlockHeader
from bombyx.protocol.wire.signing import SigningKey


class MemoryStore:
    """`ports.Store` in a dictionary. It lives as long as the object does: hand it to a role's next life in a test."""

    def __init__(self, leases: LeaseTable | None = None) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}
        self._leases = leases
        self.closed = False

    async def write(self, rows: Sequence[Write]) -> None:
        self._check_open()
        if self._leases is not None:
            self._leases.check(rows)
        for row in rows:
            table = self._tables.setdefault(row.table, {})
            if row.value is None:
                table.pop(row.key, None)
            else:
                table[row.key] = bytes(row.value)

    async def read(self, table: str, key: bytes) -> bytes | None:
        self._check_open()
        return self._tables.get(table, {}).get(key)

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]:
        self._check_open()
        rows = sorted(row for row in self._tables.get(table, {}).items() if row[0].startswith(prefix))
        return rows if limit is None else rows[:limit]

    async def close(self) -> None:
        self.closed = True

    def reopen(self) -> None:
        """A new life over the same rows."""
        self.closed = False

    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable("the store is closed")


class MemoryLedger:
    """`ports.Ledger` over a `MemoryChain`: the sender of a call is its signer's address."""

    def __init__(self, clock: Clock, *, chain_id: int = CHAIN_ID) -> None:
        self.chain = MemoryChain(clock, chain_id=chain_id)

    async def info(self) -> LedgerInfo:
        return self.chain.info

    async def head(self) -> BlockHeader:
        return self.chain.head()

    async def block(self, block_hash: Digest) -> BlockHeader | None:
        return self.chain.block(block_hash)

    async def balance(self, account: Address) -> Amount:
        return self.chain.balance(account)

    async def faucet(self, account: Address, amount: int) -> Digest:
        """Money from nowhere, for development accounts. Not part of the port: no real chain has it."""
        return self.chain.mint(account, amount)

    async def deposit(self, config: ChannelConfig, amount: Amount, *, signer: SigningKey) -> Digest:
        return self.chain.deposit(signer.address, config, amount)

    async def channel(self, channel: Digest) -> ChannelView | None:
        return self.chain.channel(channel)

    async def claim(self, claims: Sequence[Claim], *, signer: SigningKey) -> Digest:
        return self.chain.claim(signer.address, claims)

    async def claim_signed(self, claims: Sequence[Claim], authorization: bytes, *, signer: SigningKey) -> Digest:
        return self.chain.claim_signed(claims, authorization)

    async def initiate_withdraw(self, channel: Digest, amount: Amount, *, signer: SigningKey) -> Digest:
        return self.chain.initiate_withdraw(signer.address, channel, amount)

    async def finalize_withdraw(self, channel: Digest, *, signer: SigningKey) -> Digest:
        return self.chain.finalize_withdraw(signer.address, channel)

    async def leaving(self) -> frozenset[Digest] | None:
        return None

    async def refund(
        self, channel: Digest, amount: Amount, nonce: int, signature: bytes, *, signer: SigningKey
    ) -> Digest:
        return self.chain.refund(signer.address, channel, amount, nonce, signature)

    async def register(self, operator: Operator, *, signer: SigningKey) -> Digest:
        return self.chain.register(signer.address, operator)

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]:
        return self.chain.operators(role)

    async def references_agreed(self, publishers: Sequence[Address], quorum: int, kind: int, reference: Digest) -> bool:
        return self.chain.references.agreed(publishers, quorum, kind, reference)

    async def propose_reference(self, kind: int, reference: Digest, uri: str, *, signer: SigningKey) -> Digest:
        return self.chain.propose_reference(signer.address, kind, reference, uri)

    async def revoke_reference(self, kind: int, reference: Digest, *, signer: SigningKey) -> Digest:
        return self.chain.revoke_reference(signer.address, kind, reference)

    async def set_publisher_delay(self, seconds: int, *, signer: SigningKey) -> Digest:
        return self.chain.set_publisher_delay(signer.address, seconds)

    async def close(self) -> None:
        """Nothing to let go of."""
