# SPDX-License-Identifier: Apache-2.0
"""Replicas of one proxy over PostgreSQL, paid on a real chain with one key, killed in turn (LEASE, LEDGER-9).

After each kill conversations go on, and every account on chain equals what the receipts say, to the unit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.onchain.devnet import need_anvil
from tests.scenarios.audit import settled
from tests.scenarios.replicas import ReplicaProcesses, chat, network_of_replicas, streaming
from tests.scenarios.test_chain_faults import OFTEN
from tests.scenarios.test_replicas import keeper, until_served

from bombyx.adapters.postgres import PostgresStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[ReplicaProcesses]:
    need_anvil()
    async with network_of_replicas(
        tmp_path, chain="evm", chain_arguments=("--block-time", "0.3"), environment=dict(OFTEN)
    ) as made:
        yield made


async def test_replicas_killed_in_turn_while_they_answer_and_claim(net: ReplicaProcesses) -> None:
    """LEASE-3, LEASE-6, PAY-15, PAY-17: whichever dies, its successor settles what it cut, claims what it was owed
    with the same account, and pays the worker what it agreed."""
    books = await PostgresStore.open(net.environment["BOMBYX_PROXY_STORE"])
    try:
        assert (await chat(net.endpoint))[0] == 200
        for turn in range(3):
            first, _ = await keeper(net) if not turn else (net.replicas[turn % 2], "")
            port = int(net.url(first).rsplit(":", 1)[1])
            async with streaming(net.endpoint, tokens=400):
                await asyncio.sleep(0.4)
                await net.kill(first)
            await until_served(net)
            await settled(net, shared=books, within=90)
            await net.start_replica(first, port=port)
            await net.linked(first, 1)
            await until_served(net)
            await settled(net, shared=books, within=90)
    finally:
        await books.close()
