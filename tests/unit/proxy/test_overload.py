# SPDX-License-Identifier: Apache-2.0
"""More asks than a proxy takes: those turned away hear it at once, those let in are served, then all is well."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import ProxyNet
from tests.unit.proxy.scripted import BareClient, Call, answer

from bombyx.roles.proxy.settings import Limits

ROOM, ASKED, SERVICE = 8, 40, 0.3  # requests at once, requests, seconds


async def slow(call: Call) -> None:
    await asyncio.sleep(SERVICE)
    await answer(call)


async def test_beyond_capacity_is_told_at_once_and_the_rest_is_served(net: ProxyNet, hire: Hire) -> None:
    """PROXY-4: 503 with Retry-After before anything is reserved; whoever is in keeps its time; then it recovers."""
    assert net.settings is not None
    await net.stop()
    net.change(limits=replace(net.settings.limits, open_total=ROOM))
    assert isinstance(net.settings.limits, Limits)
    await net.start()
    worker = await hire("worker a", slow)
    client = await BareClient(net).start()
    try:
        assert (await client.ask(worker)).status == 200  # the session is open
        sealed = [client.seal([worker]) for _ in range(ASKED)]
        bodies = [one.envelope(client.pay(one, [worker]).encode()) for one in sealed]

        async def timed(body: bytes) -> tuple[int, float, str]:
            began = time.monotonic()
            got = await client.post(body)
            return got.status, time.monotonic() - began, got.headers.get("Retry-After", "")

        found = await asyncio.gather(*map(timed, bodies))
        served = [took for status, took, _ in found if status == 200]
        shed = [(took, retry) for status, took, retry in found if status == 503]
        assert len(served) == ROOM
        assert len(shed) == ASKED - ROOM
        assert all(retry for _, retry in shed)
        assert max(took for took, _ in shed) < min(served)  # nobody waits to be turned away
        assert max(served) < 2 * SERVICE + 1  # a second for a busy machine
        assert net.proxy._accounts.account(client.channel.id).in_flight == 0  # what was shed reserves nothing
        assert (await client.ask(worker)).status == 200
    finally:
        await client.close()
