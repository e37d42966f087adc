# SPDX-License-Identifier: Apache-2.0
"""Kill -9 of each role just before and just after every write it makes in a request's life, on a real chain.

The list is the test's heart: a point is a table and which of its batches. After each kill the role starts again, a
conversation goes well, and every account on chain equals what the receipts say, to the unit. What may differ between
payer and payee is the one request the kill cut: its last receipt may have reached only one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio
from tests.onchain.devnet import need_anvil
from tests.scenarios.audit import settled, tables
from tests.scenarios.procs import MODEL, Processes, network_of_processes
from tests.scenarios.test_kills import Reading, ask, read

from bombyx.errors import Unavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

DIES_WITHIN = 30.0  # seconds


@dataclass(frozen=True)
class Point:
    """Where to die. `leave`: the application goes in the middle; `boot`: which process to start for it to happen."""

    role: str
    what: str
    table: str
    batch: int
    leave: bool = False
    boot: str = ""


POINTS = [
    Point("proxy", "a request is reserved", "proxy_payee", 1),
    Point("proxy", "the worker's payment is signed", "proxy_payer", 1),
    Point("proxy", "the first receipt is kept", "proxy_receipt", 1),
    Point("proxy", "the final receipt is kept", "proxy_receipt", 2),
    Point("proxy", "the request is settled", "proxy_payee", 2),
    Point("proxy", "its own claim is booked", "proxy_payee", 3),
    Point("proxy", "its claim's transaction is written down", "evm_sent", 1),
    Point("proxy", "its claim's transaction is forgotten", "evm_sent", 2),
    Point("proxy", "a cancelled request is settled", "proxy_payee", 2, leave=True),
    Point("proxy", "a new worker's channel is opened", "proxy_payer", 1, boot="worker-0"),
    Point("worker", "a request is reserved", "worker_book", 1),
    Point("worker", "the first receipt is written", "worker_receipts", 1),
    Point("worker", "the final receipt is written", "worker_receipts", 2),
    Point("worker", "a cancelled request's final is written", "worker_finished", 1, leave=True),
    Point("worker", "its own claim is booked", "worker_book", 3),
    Point("worker", "its claim's transaction is written down", "evm_sent", 1),
    Point("worker", "this boot's receipt key is named", "worker_root_keys", 1, boot="worker-0"),
    Point("client", "a payment is signed", "client_channel", 1),
    Point("client", "the receipt and the charge are written", "client_receipt", 1),
    Point("client", "an answer is left", "client_channel", 2, leave=True),
    Point("client", "the channel is made", "client_channel", 1, boot="fresh"),
    Point("client", "the first payment is signed", "client_channel", 2, boot="fresh"),
    Point("client", "the deposit's transaction is written down", "evm_sent", 1, boot="fresh"),
    Point("client", "the deposit's transaction is forgotten", "evm_sent", 2, boot="fresh"),
]
# Written in one batch with a table above, or of no worth: copies of what is public, the secret of a draw.
BESIDE = {"client_receipt_time", "client_content", "worker_running", "worker_finished"}
WORTHLESS = {"client_blob", "client_secret", "worker_receipt_time", "evm_seen"}
OFTEN = {
    f"BOMBYX_{role}_CLAIM_{name}": value
    for role in ("PROXY", "WORKER")
    for name, value in (("THRESHOLD", "1"), ("EVERY", "0.3"))
}
CASES = [(point, when) for point in POINTS for when in ("before", "after")]


class Networks:
    """One network a role, started when first needed, one at a time."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack = AsyncExitStack()
        self._net: Processes | None = None

    async def of(self, role: str) -> Processes:
        if self._net is None or self._net.mortal != role:
            await self.close()
            self._net = await self._stack.enter_async_context(
                network_of_processes(
                    self._factory.mktemp(f"kill-{role}"),
                    chain="evm",
                    chain_arguments=("--block-time", "0.3"),
                    environment=dict(OFTEN),
                    mortal=role,
                )
            )
            await ask(self._net)
        return self._net

    async def close(self) -> None:
        await self._stack.aclose()
        self._net = None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def networks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Networks]:
    need_anvil()
    found = Networks(tmp_path_factory)
    yield found
    await found.close()


async def leave(net: Processes) -> None:
    """An application that goes in the middle of its answer."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 400, "stream": True}
    try:
        async with aiohttp.ClientSession() as http, http.post(f"{net.endpoint}/chat/completions", json=body) as answer:
            async for _ in answer.content.iter_chunked(200):
                break
    except aiohttp.ClientError:
        pass


async def start(net: Processes, role: str) -> None:
    """The role's next life, where the others look for it."""
    if role == "proxy":
        await net.start_proxy(port=net.port)
    elif role == "worker":
        await net.start_worker("worker-0")
    else:
        await net.start_client()


async def provoke(net: Processes, point: Point) -> None:
    """What makes the role write, until it dies of it."""
    if point.role == "worker" and point.boot:
        await net.kill("worker-0")
        with pytest.raises(Unavailable):  # it dies while it starts
            await net.start_worker("worker-0")
        return
    name = "worker-0" if point.role == "worker" else point.role
    dead = asyncio.create_task(net.children[name].process.wait())
    if point.boot == "worker-0":
        await net.kill("worker-0")
        booting = asyncio.create_task(net.start_worker("worker-0"))
    else:
        booting = None
    for _ in range(6):
        if point.leave:
            await leave(net)
        elif booting is None:
            await read(net, Reading(), "Name a river.", 8)
        await asyncio.wait([dead], timeout=DIES_WITHIN if booting else 3.0)
        if dead.done():
            break
    if booting is not None:
        booting.cancel()
        await asyncio.gather(booting, return_exceptions=True)
    assert await asyncio.wait_for(dead, 1.0) == -9, f"{name} did not die: {net.log(name)[-800:]}"


async def fresh_client(net: Processes, name: str) -> None:
    await net.kill("client")
    net.client_state = name
    net.clients.append(name)
    await net.start_client()


@pytest.mark.parametrize(
    ("point", "when"), [pytest.param(p, when, id=f"{p.role}: {when} {p.what}") for p, when in CASES]
)
async def test_killed(networks: Networks, point: Point, when: str) -> None:
    """PAY-17, RCT-3, PAY-15: nothing promised is lost, nothing is paid twice, the books go on."""
    net = await networks.of(point.role)
    if point.boot == "fresh":
        await fresh_client(net, f"client-{when}-{point.table}-{point.batch}")
    cut = len((await settled(net, clients=tuple(net.clients))).cut())
    net.orders.write_text(f"{when}:{point.table}:{point.batch}")
    await provoke(net, point)
    net.orders.unlink()
    await start(net, point.role)
    if point.role == "proxy" and point.boot == "worker-0":
        await start(net, "worker")
    assert (await ask(net)).text
    accounts = await settled(net, clients=tuple(net.clients))
    assert len(accounts.cut()) - cut <= 1, f"more than the one cut request: {accounts.cut()}"
    if (point, when) == [case for case in CASES if case[0].role == point.role][-1]:
        _list_is_whole(net)


def _list_is_whole(net: Processes) -> None:
    """PAY-17: every table a role writes to is a point of the list, or of no worth."""
    store = {"proxy": "proxy", "worker": "worker-0", "client": net.clients[-1]}[net.mortal]
    named = {point.table for point in POINTS if point.role == net.mortal}
    found = tables(net.state(store) / f"{net.mortal}.db") | tables(net.state(store) / "chain.db")
    assert found - named <= BESIDE | WORTHLESS
