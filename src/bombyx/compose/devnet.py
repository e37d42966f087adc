# SPDX-License-Identifier: Apache-2.0
"""The development chain: a real EVM node with our contracts on it, or the in-memory stand-in, on loopback."""

from __future__ import annotations

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.evm import Rpc, seed, start_node
from bombyx.adapters.ledger_http import serve_ledger
from bombyx.adapters.memory import MemoryLedger
from bombyx.compose.service import Service


async def start_evm(port: int, block_time: float) -> Service:
    """anvil, seeded: contracts at canonical addresses, a token anybody can mint. `Unavailable` without a node."""
    node = await start_node(port=port, block_time=block_time)
    rpc = Rpc([node.url])
    service = Service(facts={"role": "devnet"})
    service.stack.push_async_callback(node.close)
    service.stack.push_async_callback(rpc.close)
    book = await seed(rpc)
    service.facts |= {"url": node.url, "kind": "evm", "chain_id": book.chain_id, "contracts": book.as_dict()}
    return service


async def start_memory(port: int) -> Service:
    """Accounts, channels and operators in this process's memory."""
    ledger = MemoryLedger(SystemClock())
    server = await serve_ledger(ledger, port)
    info = await ledger.info()
    service = Service(
        facts={
            "role": "devnet",
            "url": server.url,
            "kind": info.kind,
            "chain_id": info.chain_id,
            "contracts": None,
        }
    )
    service.stack.push_async_callback(server.close)
    return service
