# SPDX-License-Identifier: Apache-2.0
"""The in-memory chain, served on loopback."""

from __future__ import annotations

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.ledger_http import serve_ledger
from bombyx.adapters.memory import MemoryLedger
from bombyx.compose.service import Service


async def start(port: int) -> Service:
    ledger = MemoryLedger(SystemClock())
    server = await serve_ledger(ledger, port)
    info = await ledger.info()
    service = Service(
        facts={
            "role": "devnet",
            "url": server.url,
            "kind": info.kind,
            "chain_id": info.chain_id,
            "settlement": str(info.settlement),
            "registry": str(info.registry),
        }
    )
    service.stack.push_async_callback(server.close)
    return service
