# SPDX-License-Identifier: Apache-2.0
"""A client whose chain is away for a while: what it read of the registry serves on, and not for ever."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.pay.conftest import HandClock
from tests.unit.worker.test_registration import WORKER, line

from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import Unavailable
from bombyx.ports import Operator, OperatorRole
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.network import ASK_AGAIN, Network
from bombyx.roles.client.settings import ClientSettings


class Away(MemoryLedger):
    """Answers while `here`."""

    here = True
    asked = 0
    silent = 0.0  # seconds until it is clear that nobody answers

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]:
        self.asked += 1
        if not self.here:
            await asyncio.sleep(self.silent)
            raise Unavailable("the chain is away")
        return await super().operators(role)


async def test_a_registry_read_lately_serves_on_while_the_chain_is_away() -> None:
    """CLI-2: for some minutes; a chain that does not answer is not asked for each request; who needs it fresh waits."""
    clock = HandClock()
    ledger = Away(clock)
    network = Network(ClientSettings(), clock=clock, ledger=ledger, blobs=Blobs(MemoryStore()))
    ledger.here = False
    with pytest.raises(Unavailable):
        await network.operators(OperatorRole.WORKER)
    ledger.here = True
    await ledger.register(line("boot"), signer=WORKER)
    known = await network.operators(OperatorRole.WORKER)
    ledger.here = False
    clock.pass_time(31)
    ledger.asked = 0
    ledger.silent = 60.0  # nobody waits for that
    for _ in range(3):
        assert await network.operators(OperatorRole.WORKER) == known
    assert ledger.asked == 1
    ledger.silent = 0.0
    with pytest.raises(Unavailable):
        await network.operators(OperatorRole.WORKER, fresh=True)
    clock.pass_time(ASK_AGAIN + 1)
    ledger.here = True
    await ledger.register(line("later boot"), signer=WORKER)
    assert await network.operators(OperatorRole.WORKER) != known
    ledger.here = False
    clock.pass_time(ClientSettings().registry_stale_seconds + 1)
    with pytest.raises(Unavailable):
        await network.operators(OperatorRole.WORKER)
