# SPDX-License-Identifier: Apache-2.0
"""A worker's roots, posted beside it for as long as it runs, where the chain has stake and the worker has some."""

from __future__ import annotations

import asyncio

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.evm import EvmLedger
from bombyx.adapters.ledger_http import HttpLedger
from bombyx.compose.service import Service, stakes_of, validation_of
from bombyx.ports import Store
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.roots import Chain, Roots


async def keep_roots(
    service: Service, ledger: HttpLedger | EvmLedger, store: Store, receipt_key: Address, operator: SigningKey
) -> None:
    """Ends with the service. Nothing where the chain has no stake."""
    stakes, validation = stakes_of(ledger), validation_of(ledger)
    if stakes is None or validation is None:
        return
    roots = Roots(Chain(validation=validation, stakes=stakes), store, SystemClock(), operator, receipt_key)
    await roots.start()
    task = asyncio.create_task(roots.run())

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    service.stack.push_async_callback(end)
