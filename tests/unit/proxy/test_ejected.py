# SPDX-License-Identifier: Apache-2.0
"""A worker that the registry lists no more, as one convicted is, gets nothing more through this proxy."""

from __future__ import annotations

import pytest
from tests.unit.proxy.kit import ProxyNet
from tests.unit.proxy.scripted import ScriptedWorker

from bombyx.errors import Unavailable
from bombyx.ports import Operator, OperatorRole


async def test_an_ejected_worker_is_let_go_and_a_chain_that_is_away_ejects_nobody(
    net: ProxyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKT-13: the other worker keeps its seat."""
    convicted = await ScriptedWorker(net, "worker a").start()
    honest = await ScriptedWorker(net, "worker b").start()
    desk, roster = net.proxy._desk, net.proxy.roster
    assert desk is not None
    desk._registry._fresh = -1.0
    listed = net.ledger.operators

    async def without(role: OperatorRole) -> tuple[Operator, ...]:
        return tuple(line for line in await listed(role) if line.address != convicted.operator.address)

    async def away(role: OperatorRole) -> tuple[Operator, ...]:
        raise Unavailable("the chain is away")

    with monkeypatch.context() as changed:
        changed.setattr(net.ledger, "operators", away)
        with pytest.raises(Unavailable):
            await desk.recheck()
    assert set(roster.workers) == {convicted.operator.address, honest.operator.address}
    monkeypatch.setattr(net.ledger, "operators", without)
    await desk.recheck()
    assert not roster.workers.get(convicted.operator.address)
    assert roster.workers[honest.operator.address].seats
    await convicted.stop()
    await honest.stop()
