# SPDX-License-Identifier: Apache-2.0
"""A real client and real workers around a real proxy, over loopback sockets (spec SES, LINK, PAY)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest
from tests.unit.proxy.kit import CLOCK, ENTROPY, MONEY, ProxyNet, key, manifest

from bombyx.adapters.engine_scripted import END, TOKENS, Script, ScriptedEngine
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.websocket import WebSocketDialer
from bombyx.ports import Engine
from bombyx.protocol.wire.records import MAX_LINK_FRAME
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.client.core import Client
from bombyx.roles.client.settings import ClientKeys, ClientSettings, ProxyLine
from bombyx.roles.worker.runtime import Worker, WorkerPorts
from bombyx.roles.worker.settings import Price, ProxyPeer, ServedModel, WorkerSettings


@dataclass
class Network:
    """A proxy, workers, a client."""

    net: ProxyNet = field(default_factory=ProxyNet)
    workers: list[Worker] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def worker(
        self, name: str, script: Script | None = None, *, table: TokenTable = TOKENS, engine: Engine | None = None
    ) -> Worker:
        engine = engine or ScriptedEngine(script or Script(words=40))
        described = replace(manifest(), tokenizer=table.digest())
        model = ServedModel(manifest=described, engine=engine, token_table=table.encode())
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


async def test_a_worker_that_booted_anew_is_believed_at_once(network: Network) -> None:
    """ATT-6: its new keys stand on chain before its evidence does; a registry read half a minute ago is read again."""
    client = await network.client(directory_seconds=0.0)
    for _ in range(2):
        worker = await network.worker("worker a")
        answer = await client.request("POST", "/v1/chat/completions", {}, ask("Say something."))
        assert answer.status == 200, await answer.read()
        await answer.read()
        await answer.finished()
        await worker.stop()
        await asyncio.sleep(0.1)


def large_table() -> TokenTable:
    """As many tokens as the largest vocabularies in use have; the scripted engine uses the first few hundred."""
    pieces = [TOKENS.piece(token) if token != END else b"<end>" for token in range(TOKENS.size)]
    pieces += [f"token number {number}".encode() for number in range(262_144 - len(pieces))]
    return TokenTable.build(pieces, special=[END])


async def test_a_table_of_262_144_tokens_reaches_the_client_and_is_checked(network: Network) -> None:
    """LINK-7, RCT-6: such a table fits no link frame; it travels in pieces, once, whatever the number of workers."""
    table = large_table()
    assert len(table.encode()) > 4 * MAX_LINK_FRAME
    first = await network.worker("worker a", table=table)
    second = await network.worker("worker b", table=table)
    for session in (*first._sessions, *second._sessions):
        session.introduce()  # a rotation says hello again
    client = await network.client()
    for stream in (False, True):
        answer = await client.request("POST", "/v1/chat/completions", {}, ask("Say something.", stream=stream))
        assert answer.status == 200, await answer.read()
        await answer.read()
        kept = (await answer.finished()).kept
        assert kept is not None and kept.text == "equal"
    assert [session._giving is None for session in (*first._sessions, *second._sessions)] == [False, True]
