# SPDX-License-Identifier: Apache-2.0
"""Replicas as real processes over a real PostgreSQL: rivals, kills, hangs, database restarts (LEASE-1 .. LEASE-6).

Each ends with the same sum: what the store says was charged is what the client's receipts and checkpoints say.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tests.postgres import postgres_server
from tests.scenarios.replicas import ReplicaProcesses, chat, network_of_replicas, streaming

from bombyx.adapters.ledger_http import HttpLedger
from bombyx.adapters.sqlite import SqliteStore
from bombyx.protocol.primitives import Digest

LEASE = 10.0  # seconds; Timings.lease_life


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[ReplicaProcesses]:
    async with network_of_replicas(tmp_path) as made:
        yield made


async def channel_of(net: ReplicaProcesses, client: str = "client") -> str:
    """The client's channel, from its own books."""
    store = SqliteStore.open(net.state(client) / "client.db")
    rows = await store.scan("client_channel", prefix=b"k")
    await store.close()
    assert len(rows) == 1
    return Digest(rows[0][0][1:33]).hex()


async def paid(net: ReplicaProcesses) -> int:
    return sum(int(receipt["paid"]) for receipt in await net.receipts())


def served(net: ReplicaProcesses, name: str) -> int:
    return net.log(name).count(": complete by")


async def keeper(net: ReplicaProcesses) -> tuple[str, str]:
    """(the replica that served, the other one)."""
    first, second = net.replicas
    return (first, second) if served(net, first) else (second, first)


async def until_served(net: ReplicaProcesses, seconds: float = 40.0) -> float:
    """Ask until it works; how long that took. Every refusal in between must be one that may be tried again."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        status, text = await chat(net.endpoint)
        if status == 200:
            return loop.time() - started
        assert status in (402, 502, 503), text
        assert loop.time() - started < seconds, text
        await asyncio.sleep(0.5)


async def test_a_clients_requests_are_served_by_one_replica_and_any_knows_the_account(net: ReplicaProcesses) -> None:
    """LEASE-1, LEASE-5."""
    answers = await asyncio.gather(*(chat(net.endpoint) for _ in range(6)))
    assert [status for status, _ in answers] == [200] * 6, answers
    assert sorted(served(net, name) for name in net.replicas) == [0, 6]
    channel = await channel_of(net)
    for name in net.replicas:
        account = await net.account(name, channel)
        assert (account["charged"], account["in_flight"]) == (await paid(net), 0)


async def test_a_stopped_replica_makes_nobody_wait(net: ReplicaProcesses) -> None:
    """LEASE-5: SIGTERM gives everything back; the next request is served by the other one at once."""
    assert (await chat(net.endpoint))[0] == 200
    first, other = await keeper(net)
    await net.kill(first, signal.SIGTERM)
    assert await until_served(net) < LEASE / 2
    assert served(net, other) == 1
    assert (await net.account(other, await channel_of(net)))["charged"] == await paid(net)


@pytest.mark.slow
async def test_a_killed_replica_is_succeeded_when_its_lease_runs_out(net: ReplicaProcesses) -> None:
    """LEASE-3, LEASE-4: cut mid-stream by kill -9; the other settles it at its last receipt, and goes on."""
    assert (await chat(net.endpoint))[0] == 200
    first, other = await keeper(net)
    cut = asyncio.ensure_future(chat(net.endpoint, tokens=400, stream=True))
    await asyncio.sleep(1.5)
    await net.kill(first)
    await asyncio.gather(cut, return_exceptions=True)
    took = await until_served(net)
    assert took < LEASE + 5, took
    channel = await channel_of(net)
    account = await net.account(other, channel)
    assert account["in_flight"] == 0
    settled = await paid(net)
    assert settled <= account["charged"]
    assert (await chat(net.endpoint))[0] == 200
    assert (await net.account(other, channel))["charged"] - account["charged"] == await paid(net) - settled
    # A new life of the first one is a replica like any other.
    await net.start_replica(first)
    assert (await net.account(first, channel))["charged"] == (await net.account(other, channel))["charged"]


@pytest.mark.slow
async def test_a_replica_that_hung_cannot_book_when_it_comes_back(net: ReplicaProcesses) -> None:
    """LEASE-3: SIGSTOP in the middle of an answer, take-over, SIGCONT: what it then tries to write is refused."""
    assert (await chat(net.endpoint))[0] == 200
    first, other = await keeper(net)
    channel = await channel_of(net)
    for _ in range(5):
        async with streaming(net.endpoint):
            os.kill(net.children[first].pid, signal.SIGSTOP)
            if (await net.account(other, channel))["in_flight"]:
                break
            os.kill(net.children[first].pid, signal.SIGCONT)  # it had ended already: the model is quick
    await asyncio.sleep(LEASE + 2)
    async with asyncio.timeout(40):  # housekeeping of the other finds the cut request
        while (account := await net.account(other, channel))["in_flight"]:  # noqa: ASYNC110
            await asyncio.sleep(1)
    os.kill(net.children[first].pid, signal.SIGCONT)
    await asyncio.sleep(4)
    assert "has taken over a channel" in net.log(first)
    after = await net.account(other, channel)
    assert after["charged"] == account["charged"], "the one that came back booked nothing more"
    assert await net.account(first, channel) == after
    assert await until_served(net) < LEASE


@pytest.mark.slow
async def test_the_same_bytes_hammered_at_both_replicas_are_accepted_once(net: ReplicaProcesses) -> None:
    """LEASE-1, PAY-23: a captured request, replayed to both replicas at once, is served by nobody and costs nothing."""
    captured: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", int(net.url("proxy-0").rsplit(":", 1)[1]))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: list[bytes] | None) -> None:
            while data := await source.read(65_536):
                if keep is not None:
                    keep.append(data)
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, up_writer, captured), pump(up_reader, writer, None), return_exceptions=True)

    listener = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    told = json.loads((net.folder / "client.network.json").read_text())
    told["proxies"] = [{"address": told["proxies"][0]["address"], "url": f"http://127.0.0.1:{port}"}]
    (net.folder / "tapped.json").write_text(json.dumps(told))
    where = ("--network", str(net.folder / "tapped.json"), "--state", str(net.state("tapped")), "--port", "0")
    child = await net.start("tapped", "client", *where)
    assert (await chat(str(child.ready["url"])))[0] == 200
    stream = b"".join(captured)
    start = stream.index(b"POST /v1/blind")
    head, _, rest = stream[start:].partition(b"\r\n\r\n")
    length = int(next(x for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")).split(b":")[1])
    body = rest[:length]
    channel = await channel_of(net, "tapped")
    before = await net.account("proxy-0", channel)

    async def post(http: aiohttp.ClientSession, name: str) -> int:
        headers = {"content-type": "application/vnd.bombyx.request"}
        async with http.post(net.url(name) + "/v1/blind", data=body, headers=headers) as got:
            await got.read()
            return got.status

    async with aiohttp.ClientSession() as http:
        for _ in range(5):
            statuses = await asyncio.gather(*(post(http, name) for _ in range(20) for name in net.replicas))
            assert set(statuses) <= {402, 409, 429, 503}, statuses
    await asyncio.sleep(LEASE + 4)  # given back: now the other one may have it, and must not serve it either
    async with aiohttp.ClientSession() as http:
        statuses = await asyncio.gather(*(post(http, name) for _ in range(10) for name in reversed(net.replicas)))
        assert set(statuses) <= {402, 409, 429, 503}, statuses
    after = await net.account("proxy-0", channel)
    assert (after["charged"], after["in_flight"]) == (before["charged"], 0)
    listener.close()


@pytest.mark.slow
async def test_the_database_crashes_under_load_and_every_sum_is_right(net: ReplicaProcesses) -> None:
    """LEASE-4, PAY-17: requests wait or are told to come back; afterwards both sides' books agree to the unit."""
    assert (await chat(net.endpoint))[0] == 200

    async def load() -> list[int]:
        return [(await chat(net.endpoint))[0] for _ in range(8)]

    running = [asyncio.ensure_future(load()) for _ in range(3)]
    await asyncio.sleep(0.7)
    server = postgres_server()
    await asyncio.to_thread(server.stop, signal.SIGQUIT)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(server.start)
    statuses = [status for one in await asyncio.gather(*running) for status in one]
    assert set(statuses) <= {200, 502, 503}
    assert statuses.count(200) > len(statuses) // 2
    assert await until_served(net) < LEASE
    first, _ = await keeper(net)
    account = await net.account(first, await channel_of(net))
    assert (account["charged"], account["in_flight"]) == (await paid(net), 0)


@pytest.mark.slow
async def test_claims_of_two_replicas_pay_each_voucher_once(net: ReplicaProcesses) -> None:
    """LEASE-1, PAY-15: several clients, both replicas stopped: the chain paid exactly what was charged, in all."""
    for number in range(2, 5):
        await net.start_client(f"client-{number}")
    clients = ["client", *(f"client-{number}" for number in range(2, 5))]
    for pair in (clients[:2], clients[2:]) * 2:  # two at a time: the one worker would be full
        answers = await asyncio.gather(*(chat(str(net.children[name].ready["url"])) for name in pair))
        assert [status for status, _ in answers] == [200] * 2, answers
    channels = [await channel_of(net, name) for name in clients]
    charged = [(await net.account("proxy-0", channel))["charged"] for channel in channels]
    for name in net.replicas:
        await net.kill(name, signal.SIGTERM)
    ledger = HttpLedger(str(net.children["devnet"].ready["url"]))
    views = [await ledger.channel(Digest.parse(channel)) for channel in channels]
    await ledger.close()
    assert [int(view.total_claimed) if view else 0 for view in views] == charged
