# SPDX-License-Identifier: Apache-2.0
"""A proxy whose policy trusts publishers: whom it links, and whom it lets go (ATT-14)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.unit.proxy.kit import ProxyNet, key
from tests.unit.proxy.scripted import ScriptedWorker

from bombyx.adapters.simulator import WORKER_IMAGE, development_policy
from bombyx.errors import Unavailable
from bombyx.ports import ReferenceKind

IMAGE = WORKER_IMAGE.compose_hash
PUBLISHERS = [key(f"publisher {n}") for n in range(3)]


@pytest.fixture
async def trusting() -> AsyncIterator[ProxyNet]:
    """No image is named; two of three publishers must agree."""
    made = ProxyNet()
    names = tuple(one.address for one in PUBLISHERS)
    policy = replace(development_policy(made.platform), reference_values=(), publishers=names, publishers_agree=2)
    made.change(policy=policy)
    await made.start()
    yield made
    await made.stop()


async def vouch(net: ProxyNet, count: int) -> None:
    for one in PUBLISHERS[:count]:
        await net.ledger.propose_reference(ReferenceKind.MEASUREMENT, IMAGE, "", signer=one)


async def test_one_publishers_word_links_nobody(trusting: ProxyNet) -> None:
    """ATT-14."""
    await vouch(trusting, 1)
    worker = ScriptedWorker(trusting, "worker a")
    with pytest.raises(TimeoutError):
        await _linked(worker)
    assert not trusting.proxy.roster.workers
    await worker.stop()


async def test_a_worker_is_let_go_once_its_image_is_revoked_and_not_before(
    trusting: ProxyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATT-14: a chain that is away for a moment is no revocation."""
    await vouch(trusting, 2)
    worker = await ScriptedWorker(trusting, "worker a").start()
    desk, roster = trusting.proxy._desk, trusting.proxy.roster
    assert desk is not None
    await desk.recheck()
    seated = roster.workers[worker.operator.address]
    assert seated.seats
    with monkeypatch.context() as away:
        away.setattr(trusting.ledger, "references_agreed", _away)
        with pytest.raises(Unavailable):
            await desk.recheck()
    assert seated.seats
    await trusting.ledger.revoke_reference(ReferenceKind.MEASUREMENT, IMAGE, signer=PUBLISHERS[0])
    await desk.recheck()
    assert not seated.seats
    await worker.stop()


async def _away(*_: object) -> bool:
    raise Unavailable("the chain is away")


async def _linked(worker: ScriptedWorker) -> None:
    await worker.prepare()
    await worker.dial()
    worker.hello()
    await asyncio.wait_for(worker.welcomes.get(), 1)
