# SPDX-License-Identifier: Apache-2.0
"""A proxy on loopback with one bare client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.unit.proxy.kit import ProxyNet
from tests.unit.proxy.scripted import BareClient, Script, ScriptedWorker, answer

Hire = Callable[..., Awaitable[ScriptedWorker]]


@pytest.fixture
async def net() -> AsyncIterator[ProxyNet]:
    made = ProxyNet()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(net: ProxyNet) -> AsyncIterator[BareClient]:
    made = await BareClient(net).start()
    yield made
    await made.close()


@pytest.fixture
async def hire(net: ProxyNet) -> AsyncIterator[Hire]:
    """Start a scripted worker."""
    hired: list[ScriptedWorker] = []

    async def start(name: str = "worker a", script: Script = answer, *, capacity: int = 64) -> ScriptedWorker:
        worker = await ScriptedWorker(net, name, script, capacity=capacity).start()
        hired.append(worker)
        return worker

    yield start
    for worker in hired:
        await worker.stop()
