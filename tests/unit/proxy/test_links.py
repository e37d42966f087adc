# SPDX-License-Identifier: Apache-2.0
"""Who may link, and what a link may carry (LINK-1 .. LINK-6, ATT-6)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import CLOCK, ProxyNet, key
from tests.unit.proxy.scripted import MANIFEST, PRICE, BareClient, Call, ScriptedWorker, answer

from bombyx.adapters.memory_link import memory_link_pair
from bombyx.adapters.simulator.platform import SimulatedPlatform
from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Digest, sha256, tagged_hash
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.records import (
    LinkChallenge,
    LinkHello,
    LinkLoad,
    LinkType,
    read_link_frames,
    write_link_frame,
)
from bombyx.protocol.wire.signing import recover
from bombyx.roles.proxy.links import LinkSession


async def turned_away(worker: ScriptedWorker) -> bool:
    """The proxy closed the link and offers nobody."""
    try:
        async with asyncio.timeout(3):
            while not worker.link._gone.is_set():  # noqa: ASYNC110 - the other side closes
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    return not worker.net.proxy.roster.workers


async def dialled(net: ProxyNet, name: str = "worker a") -> ScriptedWorker:
    worker = ScriptedWorker(net, name)
    await worker.prepare()
    await worker.dial()
    return worker


async def test_a_welcome_proves_the_proxy_and_names_the_channel(net: ProxyNet, hire: Hire) -> None:
    """LINK-2: signed over the worker's nonce and bundle; a deposited channel comes with it."""
    worker = ScriptedWorker(net, "worker a")
    await worker.prepare()
    await worker.dial()
    nonce = Digest(sha256(b"our nonce"))
    worker.hello(nonce=nonce)
    welcome = await asyncio.wait_for(worker.welcomes.get(), 5)
    signed = tagged_hash("bombyx welcome v1", nonce, worker.period.bundle_digest)
    assert recover(signed, welcome.signature) == net.key.address
    (account,) = [w.seats[-1].account for w in net.proxy.roster.workers.values()]
    assert account.channel.config.encode() == welcome.channel_config
    view = await net.ledger.channel(account.channel.id)
    assert view is not None and view.balance == net.proxy.settings.float_limit
    await worker.stop()


@pytest.mark.parametrize(
    ("attack", "changes"),
    [
        ("signed_by_another_operator", {"signer": key("somebody")}),
        ("a_hello_recorded_on_another_link", {"signed_nonce": Digest(bytes(32))}),
        ("signature_for_another_bundle", {"signed_digest": Digest(bytes(32))}),
        ("bundle_is_garbage", {"bundle": b"garbage"}),
        ("price_sheet_is_garbage", {"price_sheet": b"garbage"}),
        ("unknown_version", {"v": 2}),
        ("no_capacity", {"capacity": 0}),
        ("hardware_with_control_characters", {"hardware": "cpu\x1b[2J"}),
        ("a_blob_nobody_named", {"blobs": (Digest(bytes(32)),)}),
        ("signature_is_garbage", {"signature": bytes(65)}),
    ],
)
async def test_a_false_hello_is_turned_away(net: ProxyNet, attack: str, changes: dict[str, Any]) -> None:
    """LINK-2: nobody is offered who did not prove who it is."""
    worker = await dialled(net)
    worker.hello(**changes)
    assert await turned_away(worker), attack
    await worker.stop()


async def test_evidence_under_another_root_is_turned_away(net: ProxyNet) -> None:
    """ATT-6: the proxy appraises by its own policy before it offers a worker."""
    worker = ScriptedWorker(net, "worker a")
    own = net.platform
    net.platform = SimulatedPlatform.create(seed=b"somebody else's platform", now=CLOCK.now())
    await worker.prepare()
    net.platform = own
    await worker.dial()
    worker.hello()
    assert await turned_away(worker)
    await worker.stop()


async def test_an_operator_the_registry_does_not_know_is_turned_away(net: ProxyNet) -> None:
    """ATT-7: evidence alone is not enough."""
    worker = ScriptedWorker(net, "worker a")
    await worker.prepare()
    del net.ledger.chain._operators[worker.operator.address]
    await worker.dial()
    worker.hello()
    assert await turned_away(worker)
    await worker.stop()


async def test_an_unregistered_price_sheet_is_turned_away(net: ProxyNet) -> None:
    """PAY-12: prices are those on chain."""
    worker = await dialled(net)
    dearer = PriceSheet(v=1, operator=worker.operator.address, grain=16, prices=(replace(PRICE, output=10**9),))
    worker.hello(price_sheet=dearer.encode())
    assert await turned_away(worker)
    await worker.stop()


async def test_a_worker_that_comes_back_takes_its_own_place(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """MKT-9: a second link of one operator replaces the first; its statistics stay."""
    first = await hire("worker a")
    await client.ask(first)
    second = await hire("worker a")
    (worker,) = net.proxy.roster.workers.values()
    assert worker.stats.seen == 1
    assert (await client.ask(second)).status == 200
    await first.stop()
    await asyncio.sleep(0.05)
    assert len(net.proxy.roster.workers) == 1, "the end of the old link does not take the new one's place"


async def test_a_link_that_says_nothing_is_closed(net: ProxyNet) -> None:
    """LINK-2: a handshake has an end."""
    object.__setattr__(net.proxy.settings.timings, "handshake", 0.1)
    worker = await dialled(net)
    assert await turned_away(worker)
    await worker.stop()


@pytest.mark.parametrize(
    ("attack", "frame"),
    [
        ("load_before_hello", write_link_frame(LinkType.LOAD, 0, LinkLoad(active=0, queued=0, capacity=1).encode())),
        ("data_before_hello", write_link_frame(LinkType.DATA, 1, b"x" * 100)),
        ("a_cut_header", b"\x00\x00"),
        ("a_length_beyond_the_message", b"\x00\x00\xff\xff\x00\x00\x00\x01\x20"),
        ("an_unknown_type", write_link_frame(LinkType.CHALLENGE, 0, b"")),
        ("a_request_from_a_worker", write_link_frame(LinkType.REQUEST_END, 1, b"")),
    ],
)
async def test_bytes_out_of_place_end_the_link(net: ProxyNet, attack: str, frame: bytes) -> None:
    """LINK-6: this link and nothing else."""
    worker = await dialled(net)
    worker.link.send(frame)
    assert await turned_away(worker), attack
    await worker.stop()


async def test_a_worker_that_drains_gets_nothing_new(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """LINK-6: it leaves the directory, and requests for it are told to come back."""
    worker = await hire()
    worker.send(LinkType.DRAIN, 0, b"")
    await asyncio.sleep(0.05)
    assert not (await client.directory()).offers
    assert (await client.ask(worker)).problem["code"] == "no_workers"


async def test_a_full_worker_is_asked_only_where_no_other_is_free(
    net: ProxyNet, client: BareClient, hire: Hire
) -> None:
    """MKT-5: load is what the worker says or what we gave it, whichever is more; then its queue, then nobody."""
    full, free = await hire("worker a"), await hire("worker b")
    full.load(64, 0, 64)
    await asyncio.sleep(0.05)
    for _ in range(5):
        assert (await client.ask(full, free)).status == 200
    assert not full.calls
    free.load(64, 31, 64)
    await asyncio.sleep(0.05)
    assert (await client.ask(full, free)).status == 200
    for worker in (full, free):
        worker.load(64, 32, 64)
    await asyncio.sleep(0.05)
    got = await client.ask(full, free)
    assert (got.status, got.problem["rule"], got.problem["code"]) == (503, "MKT-5", "no_workers")


async def test_a_burst_beyond_a_workers_places_waits_there(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """MKT-5, LINK-5: the worker has a queue; what it makes wait is not turned away, nor held against its speed."""
    places = asyncio.Semaphore(4)

    async def one_after_the_other(call: Call) -> None:
        async with places:
            await asyncio.sleep(0.2)
            await answer(call)

    worker = await hire("worker a", one_after_the_other, capacity=4)
    assert (await client.ask(worker)).status == 200  # the session is open
    answers = await asyncio.gather(*(client.ask(worker) for _ in range(6)))
    assert [got.status for got in answers] == [200] * 6
    stats = net.proxy.roster.workers[worker.operator.address].stats
    assert stats.first_frame < stats.prior[1], "only the waiting of those that were served at once counts"


async def test_silence_in_a_queue_is_not_held_against_the_worker(net: ProxyNet, client: BareClient, hire: Hire) -> None:
    """MKT-7, LINK-4: who waits too long goes to the next candidate; 503 where there is none, and nobody is ejected."""
    object.__setattr__(net.proxy.settings.timings, "first_frame", 0.2)

    async def never(call: Call) -> None:
        await call.cancelled.wait()

    worker = await hire("worker a", never, capacity=1)
    worker.load(1, 0, 1)
    await asyncio.sleep(0.05)
    for _ in range(4):
        got = await client.ask(worker)
        assert (got.status, got.problem["code"]) == (503, "no_workers")
    assert net.proxy.roster.workers[worker.operator.address].stats.seen == 0
    worker.load(0, 0, 1)
    await asyncio.sleep(0.05)
    assert (await client.ask(worker)).status == 503
    assert net.proxy.roster.workers[worker.operator.address].stats.seen == 1


class _Recorder:
    """Takes a session's frames in place of a proxy."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def challenge(self) -> LinkChallenge:
        return LinkChallenge(v=1, proxy=key("p").address, chain_id=1, nonce=Digest(bytes(32)), at=0)

    async def welcome(self, session: LinkSession, hello: LinkHello, nonce: Digest) -> bytes:
        return b""

    def loaded(self, session: LinkSession, load: LinkLoad) -> None:
        self.calls.append(("load", load))

    def draining(self, session: LinkSession) -> None:
        self.calls.append(("drain", None))

    def gone(self, session: LinkSession) -> None:
        self.calls.append(("gone", None))


_FRAMES = st.lists(
    st.tuples(st.sampled_from(list(LinkType)), st.integers(0, 3), st.binary(max_size=40)), max_size=6
).map(lambda frames: b"".join(write_link_frame(*frame) for frame in frames))


@settings(max_examples=150)
@given(st.one_of(_FRAMES, st.binary(max_size=60), st.tuples(_FRAMES, st.binary(max_size=20)).map(b"".join)))
def test_the_fast_reader_agrees_with_the_plain_one(message: bytes) -> None:
    """LINK-1: the hot path refuses exactly the framing that `read_link_frames` refuses, and never raises."""

    async def work() -> None:
        here, _ = memory_link_pair()
        desk = _Recorder()
        session = LinkSession(here, desk, handshake_seconds=5, max_streams=8)
        session.welcomed = True
        seen: list[tuple[int, int, bytes]] = []
        session._on_frame = lambda kind, number, stream, payload: seen.append((kind, number, payload))  # type: ignore[method-assign]
        session._on_message(message)
        try:
            frames = [(int(kind), number, payload) for kind, number, payload in read_link_frames(message)]
        except MalformedMessage as error:
            if error.rule == "LINK-1":
                assert session.closed
        else:
            assert seen == frames
        await session.close()

    asyncio.run(work())


TABLE = b"a token table"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose manifest names the table above."""
    model = replace(MANIFEST, tokenizer=sha256(TABLE))
    monkeypatch.setattr("tests.unit.proxy.scripted.MANIFEST", model)
    monkeypatch.setattr("tests.unit.proxy.scripted.MODEL", model.digest())
    monkeypatch.setattr("tests.unit.proxy.scripted.PRICE", replace(PRICE, model=model.digest()))


@pytest.mark.parametrize(
    ("attack", "frames"),
    [
        ("another_blob_than_asked", [(LinkType.BLOB_END, b"another table")]),
        ("nothing_at_all", [(LinkType.BLOB_END, b"")]),
        ("one_more_than_asked", [(LinkType.BLOB_END, TABLE), (LinkType.BLOB_END, TABLE)]),
        ("more_than_fits", [(LinkType.BLOB_PART, bytes(1 << 20))] * 17),
    ],
)
@pytest.mark.usefixtures("named")
async def test_a_false_blob_is_turned_away(net: ProxyNet, attack: str, frames: list[tuple[LinkType, bytes]]) -> None:
    """LINK-7: a proxy keeps nothing under another name, and no more than it asked for."""
    worker = await dialled(net)
    worker.hello(blobs=(sha256(TABLE),))
    assert await asyncio.wait_for(worker.wanted.get(), 5) == sha256(TABLE)
    for kind, payload in frames:
        await worker.link.drain()
        worker.send(kind, 0, payload)
    assert await turned_away(worker), attack
    await worker.stop()


@pytest.mark.usefixtures("named")
async def test_blobs_nobody_asked_for_end_the_link(net: ProxyNet) -> None:
    """LINK-7: nor are any taken before the evidence convinced."""
    for frame in (LinkType.BLOB_PART, LinkType.BLOB_END):
        worker = await dialled(net)
        worker.send(frame, 0, TABLE)
        assert await turned_away(worker)
        await worker.stop()


@pytest.mark.usefixtures("named")
async def test_a_blob_that_is_here_is_not_asked_for_again(net: ProxyNet, client: BareClient) -> None:
    """LINK-7: a table of megabytes is sent once, not at each rotation and by each worker."""
    worker = await dialled(net)
    worker.hello(blobs=(sha256(TABLE),))
    assert await asyncio.wait_for(worker.wanted.get(), 5) == sha256(TABLE)
    worker.send(LinkType.BLOB_PART, 0, TABLE[:5])
    worker.send(LinkType.BLOB_END, 0, TABLE[5:])
    await asyncio.wait_for(worker.welcomes.get(), 5)
    assert await client.get(f"/v1/blob/{sha256(TABLE).hex()}") == (200, TABLE)
    worker.hello(blobs=(sha256(TABLE),))
    await asyncio.wait_for(worker.welcomes.get(), 5)
    assert worker.wanted.empty()
    await worker.stop()
