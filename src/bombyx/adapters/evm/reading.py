# SPDX-License-Identifier: Apache-2.0
"""Questions to a chain: blocks, what contracts answer, what they logged. Nothing here changes anything.

Always: what a node says is checked before it is believed; `RpcError` never leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from bombyx.adapters.evm import calls
from bombyx.adapters.evm.abi import Reader, call
from bombyx.adapters.evm.deploy import AddressBook
from bombyx.adapters.evm.refusals import refusal
from bombyx.adapters.evm.rpc import Rpc, RpcError, as_bytes, as_int
from bombyx.errors import Unavailable
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.evidence import BlockHeader

MIN_SPAN: Final = 16  # blocks; a node that cannot give the logs of so few is broken


class ChainReader:
    """One chain, one address book. `Rpc` may know several nodes."""

    def __init__(self, rpc: Rpc, book: AddressBook) -> None:
        self.rpc = rpc
        self.book = book

    # --- blocks ---

    async def head(self) -> BlockHeader:
        """The newest block that is deep enough to stay."""
        return await self.header(max(0, await self.height() - self.book.reorg_depth))

    async def height(self) -> int:
        return as_int(await self._ask("eth_blockNumber"))

    async def header(self, number: int | None) -> BlockHeader:
        tag = "latest" if number is None else hex(number)
        return _header(await self._ask("eth_getBlockByNumber", tag, False))

    async def hash_at(self, number: int) -> Digest | None:
        """Of the block of that number; None where the node has none, which nodes may say of any block after a reorg."""
        found = await self._ask("eth_getBlockByNumber", hex(number), False)
        return None if found is None else _header(found).hash

    async def newest(self) -> BlockHeader:
        """The newest block, which a reorg may take: what contracts hold deadlines against."""
        return await self.header(None)

    async def block(self, block_hash: Digest) -> BlockHeader | None:
        found = await self._ask("eth_getBlockByHash", str(block_hash), False)
        return None if found is None else _header(found)

    # --- contracts ---

    async def view(self, to: Address, data: bytes) -> Reader:
        """What a contract answers now."""
        return Reader(await self.answer(to, data))

    async def answer(self, to: Address, data: bytes, size: int | None = None, *, at: str = "latest") -> bytes:
        """The same, as bytes, of `size` where one is asked for."""
        try:
            answer = await self.rpc.call("eth_call", {"to": str(to), "data": "0x" + data.hex()}, at)
        except RpcError as error:
            raise refusal(error) from None
        return as_bytes(answer, size)

    async def views(self, asked: Sequence[tuple[Address, bytes]]) -> list[Reader]:
        """Several answers, of one and the same block."""
        answer = await self.answer(self.book.multicall, calls.aggregate(asked))
        return [Reader(one) for one in calls.aggregated(answer)]

    async def logs(
        self, contract: Address, topics: Sequence[str | None], first: int | None = None, last: int | None = None
    ) -> list[Any]:
        """A contract's events in order, of blocks `first` to `last`, or of all there are. A node that finds the range
        too wide is asked for halves of it."""
        if first is None:
            first = self.book.first_block
        if last is None:
            last = await self.height()
        query = {"address": str(contract), "topics": list(topics), "fromBlock": hex(first), "toBlock": hex(last)}
        try:
            found = await self.rpc.call("eth_getLogs", query)
        except RpcError as error:
            if last - first < MIN_SPAN:
                raise Unavailable(f"the chain node gives no events: {error.message}", rule="LEDGER-2") from None
            middle = (first + last) // 2
            lower = await self.logs(contract, topics, first, middle)
            return lower + await self.logs(contract, topics, middle + 1, last)
        if not isinstance(found, list) or not all(isinstance(log, dict) for log in found):
            raise Unavailable("the chain node answers with something that is no list of events", rule="LEDGER-2")
        return found

    # --- the node ---

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self.rpc.call(method, *params)
        except RpcError as error:
            raise Unavailable(f"the chain node says {error.message}", retry_after=1.0, rule="LEDGER-2") from None

    async def _view_uint(self, to: Address, signature: str, *words: bytes) -> int:
        return Reader(await self.answer(to, call(signature, *words), 32)).uint(0)


def _header(raw: Any) -> BlockHeader:
    if not isinstance(raw, dict):
        raise Unavailable("the chain node has no such block", rule="LEDGER-2")
    return BlockHeader(
        number=as_int(raw.get("number")),
        hash=Digest(as_bytes(raw.get("hash"), 32)),
        parent=Digest(as_bytes(raw.get("parentHash"), 32)),
        timestamp=Instant(as_int(raw.get("timestamp")) * 1_000),
    )
