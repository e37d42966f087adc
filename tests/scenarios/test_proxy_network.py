# SPDX-License-Identifier: Apache-2.0
"""A real client and real workers around a real proxy, over loopback sockets (spec SES, LINK, PAY)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest
from tests.unit.proxy.kit import CLOCK, ENTROPY, MONEY, ProxyNet, key, manifest

from bombyx.adapters.engine_scripted import TOKENS, Script, ScriptedEngine
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.websocket import WebSocketDialer
from bombyx.roles.client.core import Client
from bombyx.roles.client.settings import ClientKeys, ClientSettings, ProxyLine
from bombyx.roles.worker.runtime import Worker, WorkerPorts
from bombyx.roles.worker.settings import Price, ProxyPeer, ServedModel, WorkerSettings


@dataclass
class Network:
    """A proxy, workers, a client."""

    net: ProxyNet = field(default_factory=ProxyNet)
    workers: list[Worker] = field(default_factory=list)
    engines: list[ScriptedEngine] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def worker(self, name: str, script: Script | None = None) -> Worker:
        engine = ScriptedEngine(script or Script(words=40))
        described = replace(manifest(), tokenizer=TOKENS.digest())
        model = ServedModel(manifest=described, engine=engine, token_table=TOKENS.encode())
        worker = Worker(
            WorkerSettings(
                proxies=(ProxyPeer(url=self.net.link_url, address=self.net.key.address),),
                prices={model.digest: Price(input=200_000, cached_input=20_000, output=800_000)},
            ),
            WorkerPorts(
                clock=CLOCK,
                entropy=ENTROPY,
                store=MemoryStore(),
                ledger=self.net.ledger,
                device=self.net.enclave(name),
                endorser=self.net.endorser,
                dialer=WebSocketDialer(),
            ),
            operator=key(name),
            models=(model,),
        )
        await worker.start()
        await asyncio.wait_for(worker.ready.wait(), 10)
        self.workers.append(worker)
        self.engines.append(engine)
        return worker

    async def client(self, name: str = "client", **settings: object) -> Client:
        owner, session = key(name), key(name + " session")
        await self.net.ledger.faucet(owner.address, MONEY)
        client = Client(
            ClientSettings(**settings),  # type: ignore[arg-type]
            keys=ClientKeys(owner=owner, session=session),
            proxies=[ProxyLine(address=self.net.key.address, transport=HttpProxyTransport(self.net.url))],
            policy=self.net.proxy.settings.policy,
            clock=CLOCK,
            randomness=ENTROPY,
            store=MemoryStore(),
            ledger=self.net.ledger,
        )
        await client.start()
        self.clients.append(client)
        return client

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        for worker in self.workers:
            await worker.stop()
        await self.net.stop()


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    made = Network()
    await made.net.start()
    yield made
    await made.stop()


def ask(text: str, *, stream: bool = False) -> bytes:
    asked = {"model": "scripted", "messages": [{"role": "user", "content": text}], "stream": stream, "max_tokens": 64}
    return json.dumps(asked).encode()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_goes_all_the_way_and_everybody_is_paid(network: Network, stream: bool) -> None:
    """SES-1: sealed, served, receipted, settled on both hops; the proxy's commission is the difference."""
    for name in ("worker a", "worker b", "worker c"):
        await network.worker(name)
    client = await network.client()
    for _ in range(3):
        answer = await client.request("POST", "/v1/chat/completions", {}, ask("Say something.", stream=stream))
        body = await answer.read()
        assert answer.status == 200, body
        finished = await answer.finished()
        assert finished.kept is not None
    view = network.net.proxy.roster
    assert sum(worker.stats.seen for worker in view.workers.values()) == 3
    assert await network.net.proxy.claim(everything=True) == 1
