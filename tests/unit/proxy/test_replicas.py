# SPDX-License-Identifier: Apache-2.0
"""Two replicas of one proxy over one store, in one process: who accepts, who takes over (LEASE-1 .. LEASE-6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from tests.unit.proxy.kit import CLOCK, ProxyNet
from tests.unit.proxy.scripted import PRICE, BareClient, Call, Script, ScriptedWorker, answer

from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.memory_leases import LeaseTable, MemoryLeases
from bombyx.ports import ChannelView
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.pay.price import charge, with_commission
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.wire.records import Record
from bombyx.roles.proxy.settings import ProxySettings, Timings

LIFE = 0.6  # seconds
HALF = charge(PRICE, 16, 0, 16)
WHOLE = charge(PRICE, 16, 0, 32)


@dataclass
class Pair:
    """Replicas `a` and `b`, each with a worker, and one client that can turn to either."""

    a: ProxyNet
    b: ProxyNet
    client: BareClient
    workers: list[ScriptedWorker]

    async def hire(self, net: ProxyNet, name: str, script: Script = answer) -> ScriptedWorker:
        worker = await ScriptedWorker(net, name, script).start()
        self.workers.append(worker)
        return worker

    def turn_to(self, net: ProxyNet) -> None:
        self.client.net = net

    def charged(self, net: ProxyNet) -> tuple[int, int]:
        account = net.proxy._accounts.account(self.client.channel.id)
        return account.charged, account.in_flight


def timings(**changes: float) -> Timings:
    return Timings(**({"lease_renew": LIFE / 3, "lease_idle": 60.0, "housekeeping": 60.0} | changes))


def settings(net: ProxyNet, times: Timings) -> ProxySettings:
    assert net.settings is not None
    policy: AppraisalPolicy = net.settings.policy
    return ProxySettings(policy=policy, timings=times)


async def together(times: Timings) -> Pair:
    table = LeaseTable(CLOCK)
    store = MemoryStore(table)
    a = ProxyNet(store=store, leases=MemoryLeases(table, b"a", reached_at="", seconds=LIFE))
    b = ProxyNet(
        store=store,
        ledger=a.ledger,
        platform=a.platform,
        pay_key=a.pay_key,
        leases=MemoryLeases(table, b"b", reached_at="", seconds=LIFE),
    )
    for net in (a, b):
        net.settings = settings(net, times)
        await net.start()
    return Pair(a, b, await BareClient(a).start(), [])


async def apart(pair: Pair) -> None:
    await pair.client.close()
    for worker in pair.workers:
        await worker.stop()
    for net in (pair.a, pair.b):
        await net.stop()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = await together(timings())
    yield made
    await apart(made)


async def freeze(net: ProxyNet) -> None:
    """As a process that hangs: it renews nothing, and knows nothing of it."""
    keeper = net.proxy._tenancy._keeper  # type: ignore[union-attr]
    assert keeper is not None
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def test_the_other_replica_says_who_keeps_the_channel(pair: Pair) -> None:
    """LEASE-1, LEASE-5: 503 with the URL of the replica that keeps it; nothing is charged or forwarded."""
    worker, other = await pair.hire(pair.a, "worker a"), await pair.hire(pair.b, "worker b")
    assert (await pair.client.ask(worker)).status == 200
    pair.turn_to(pair.b)
    got = await pair.client.ask(other)
    assert (got.status, got.problem["code"], got.problem["replica"]) == (503, "held_elsewhere", pair.a.url)
    assert int(got.headers["Retry-After"]) >= 1
    assert not other.calls
    status, told = await pair.client.get(f"/v1/channel/{pair.client.channel.id.hex()}")
    assert status == 200
    assert f'"charged": {with_commission(WHOLE, 500)}'.encode() in told, "any replica can say what is booked"


async def test_one_payment_sent_to_both_at_once_is_accepted_once(pair: Pair) -> None:
    """LEASE-1: the same bytes, many times, to both; one is served, the store holds one charge."""
    workers = [await pair.hire(pair.a, "worker a"), await pair.hire(pair.b, "worker b")]
    for round_number in range(5):
        sealed = pair.client.seal(workers)
        body = sealed.envelope(pair.client.pay(sealed, workers).encode())

        async def post(net: ProxyNet, body: bytes = body) -> int:
            pair.turn_to(net)
            return (await pair.client.post(body)).status

        statuses = await asyncio.gather(*(post(net) for _ in range(4) for net in (pair.a, pair.b)))
        assert statuses.count(200) == 1, (round_number, statuses)
        assert set(statuses) <= {200, 402, 409, 503}
        pair.client.channel.agree(sealed.meta.request_id, with_commission(WHOLE, 500))
        pair.client.channel.drop_session()
    assert sum(len(worker.calls) for worker in workers) == 5
    keeper = pair.a if pair.client.channel.id in pair.a.proxy._accounts.book else pair.b
    assert pair.charged(keeper) == (5 * with_commission(WHOLE, 500), 0)


async def test_a_channel_that_rests_is_free_for_the_other_replica() -> None:
    """LEASE-5: the other one goes on where the first stopped; the session has to be opened anew."""
    pair = await together(timings(lease_idle=0.1))
    worker, other = await pair.hire(pair.a, "worker a"), await pair.hire(pair.b, "worker b")
    assert (await pair.client.ask(worker)).status == 200
    await asyncio.sleep(LIFE)
    assert pair.client.channel.id not in pair.a.proxy._accounts.book
    pair.turn_to(pair.b)
    got = await pair.client.ask(other)
    assert (got.status, got.problem["rule"]) == (402, "PAY-11")
    pair.client.channel.drop_session()
    assert (await pair.client.ask(other)).status == 200
    assert pair.charged(pair.b) == (2 * with_commission(WHOLE, 500), 0)
    await apart(pair)


async def test_each_replica_pays_workers_from_channels_of_its_own(pair: Pair) -> None:
    """LEASE-6: two processes never sign for one channel."""
    for net in (pair.a, pair.b):
        await pair.hire(net, "worker a" if net is pair.a else "worker b")
    salts = [{c.config.salt for c in net.proxy._wallet._channels.values()} for net in (pair.a, pair.b)]
    assert all(len(one) == 1 for one in salts)
    assert salts[0] != salts[1]


async def halfway(call: Call) -> None:
    call.data()
    call.receipt(output_units=16)
    call.data()
    await asyncio.sleep(60)


async def test_a_replica_that_hung_is_succeeded_mid_stream_and_cannot_book_any_more(pair: Pair) -> None:
    """LEASE-3, LEASE-4: its answer is cut without an END, the successor charges the last receipt, once."""
    worker, other = await pair.hire(pair.a, "worker a", halfway), await pair.hire(pair.b, "worker b")
    sealed = pair.client.seal([worker])
    posting = asyncio.ensure_future(pair.client.post(sealed.envelope(pair.client.pay(sealed, [worker]).encode())))
    while not worker.calls or worker.calls[0].sealer.chain.frames < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await freeze(pair.a)
    await asyncio.sleep(LIFE * 1.2)
    pair.turn_to(pair.b)
    pair.client.channel.drop_session()
    assert (await pair.client.ask(other)).status == 200
    cost = with_commission(HALF, 500) + with_commission(WHOLE, 500)
    assert pair.charged(pair.b) == (cost, 0)
    worker.calls[0].receipt(output_units=32)  # it reaches a replica that may not write it any more
    got = await asyncio.wait_for(posting, 5)
    assert got.cut
    assert Record.END not in got.kinds
    assert worker.calls[0].cancelled.is_set()
    assert pair.client.channel.id not in pair.a.proxy._accounts.book
    assert pair.charged(pair.b) == (cost, 0)
    again = await pair.client.post(sealed.envelope(pair.client.pay(pair.client.seal([other]), [other]).encode()))
    assert again.status in (401, 402, 409), "the cut request is not served a second time"


async def test_what_a_dead_replica_left_is_settled_without_being_asked() -> None:
    """LEASE-6: housekeeping of the living finds cut requests, on both hops."""
    pair = await together(timings(housekeeping=0.2))
    worker = await pair.hire(pair.a, "worker a", halfway)
    sealed = pair.client.seal([worker])
    posting = asyncio.ensure_future(pair.client.post(sealed.envelope(pair.client.pay(sealed, [worker]).encode())))
    while not worker.calls or worker.calls[0].sealer.chain.frames < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await freeze(pair.a)
    await asyncio.sleep(LIFE * 2)
    assert pair.charged(pair.b) == (with_commission(HALF, 500), 0)
    posting.cancel()
    await asyncio.gather(posting, return_exceptions=True)
    await asyncio.sleep(0.5)  # the frozen one notes nothing but its own channels to workers: a debt was left to it
    assert await pair.a.store.scan("proxy_debt") == []
    assert sum(channel.agreed for channel in pair.a.proxy._wallet._channels.values()) == HALF
    await apart(pair)


async def test_a_replica_that_lost_its_slot_pays_from_another(pair: Pair) -> None:
    """LEASE-6: its workers link anew, under channels of the new slot."""
    worker = await pair.hire(pair.a, "worker a")
    await freeze(pair.a)
    await asyncio.sleep(LIFE * 1.2)
    leases = pair.b.leases
    assert leases is not None
    await leases.acquire(b"slot:\x00\x00")  # as a replica that starts
    pair.turn_to(pair.a)
    got = await pair.client.ask(worker)
    assert (got.status, got.problem["code"]) == (503, "lease_lost")
    await asyncio.sleep(0.1)
    assert pair.a.proxy._wallet._holdings.slot == 2
    assert not pair.a.proxy.roster.workers, "workers have to link again"


async def test_a_dead_replicas_debtor_that_withdraws_is_claimed_from_and_others_are_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LEASE-6, PAY-15: not every debtor in every round; one whom the chain tells of at once."""
    pair = await together(timings())
    worker = await pair.hire(pair.a, "worker a")
    assert (await pair.client.ask(worker)).status == 200
    await freeze(pair.a)
    channel, ledger, looked = pair.client.channel.id, pair.b.ledger, list[Digest]()
    view = ledger.channel

    async def look(name: Digest) -> ChannelView | None:
        looked.append(name)
        return await view(name)

    async def nobody() -> frozenset[Digest]:
        return frozenset()

    monkeypatch.setattr(ledger, "channel", look)
    monkeypatch.setattr(ledger, "leaving", nobody)
    await asyncio.sleep(LIFE * 1.2)
    tenancy = pair.b.proxy._tenancy
    assert tenancy is not None
    for _ in range(5):
        await tenancy.adopt()
    assert looked.count(channel) == 1
    await ledger.initiate_withdraw(channel, Amount(1), signer=pair.client.owner)

    async def told() -> frozenset[Digest]:
        return frozenset({channel, Digest(bytes(32))})

    monkeypatch.setattr(ledger, "leaving", told)
    await pair.b.proxy.claim()
    monkeypatch.setattr(ledger, "leaving", nobody)
    await tenancy.adopt()
    assert channel in pair.b.proxy._accounts.book
    assert await pair.b.proxy.claim() == 1
    await apart(pair)
