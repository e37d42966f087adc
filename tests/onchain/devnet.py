# SPDX-License-Identifier: Apache-2.0
"""A development node for tests, which does not keep them waiting: a block a second, and one for every transaction.

Blocks are asked for (`evm_mine`), never automatic: anvil's automine loses wake-ups.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bombyx.adapters.evm import AddressBook, ChainNode, EvmLedger, Rpc, seed, start_node
from bombyx.adapters.evm.node import find_anvil
from bombyx.adapters.evm.transactions import Patience
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Instant

QUICK = Patience(poll=0.01, look=0.1, gap_after=0.3)


class MiningRpc(Rpc):
    """Every transaction is in a block by the time the node's answer is back. Counts what it was asked."""

    calls = 0

    async def call(self, method: str, *params: Any) -> Any:
        self.calls += 1
        result = await super().call(method, *params)
        if method == "eth_sendRawTransaction":
            await super().call("evm_mine")
        return result


class NodeClock:
    """The chain's clock: sleeping moves it."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def now(self) -> Instant:
        raise AssertionError("ask the chain for its head")

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await self._rpc.call("evm_increaseTime", int(seconds))
        await self._rpc.call("evm_mine")


def need_anvil() -> None:
    try:
        find_anvil()
    except ConfigError as error:
        pytest.skip(str(error))


@asynccontextmanager
async def seeded(**changes: Any) -> AsyncIterator[tuple[ChainNode, Rpc, AddressBook]]:
    """A fresh node with every contract in its place."""
    need_anvil()
    node = await start_node(**changes)
    rpc = MiningRpc([node.url])
    try:
        yield node, rpc, await seed(rpc)
    finally:
        await rpc.close()
        await node.close()


def ledger_on(rpc: Rpc, book: AddressBook) -> EvmLedger:
    return EvmLedger(rpc, book, patience=QUICK)
