# SPDX-License-Identifier: Apache-2.0
"""What every adapter of `ports.Leases` promises, together with the Store that checks them (LEASE-1 .. LEASE-5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from tests.postgres import postgres_server

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.memory_leases import LeaseTable, MemoryLeases
from bombyx.adapters.postgres import PostgresStore
from bombyx.adapters.postgres_leases import PostgresLeases
from bombyx.errors import HeldElsewhere, LeaseLost
from bombyx.ports import Lease, Leases, Store, Write

LIFE = 0.4  # seconds


@dataclass
class Place:
    """One store, and processes that share it."""

    store: Store
    join: Callable[[str, float], Awaitable[Leases]]
    joined: list[Leases] = field(default_factory=list)

    async def holder(self, name: str = "a", seconds: float = 30.0) -> Leases:
        made = await self.join(name, seconds)
        self.joined.append(made)
        return made


@pytest.fixture(params=["memory", "postgres"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    if request.param == "memory":
        table = LeaseTable(SystemClock())

        async def join(name: str, seconds: float) -> Leases:
            return MemoryLeases(table, name.encode(), reached_at=f"http://{name}", seconds=seconds)

        made = Place(MemoryStore(table), join)
    else:
        url = await postgres_server().database()

        async def join(name: str, seconds: float) -> Leases:
            holder = name.encode() + SystemEntropy().bytes(15)
            return await PostgresLeases.join(url, holder, reached_at=f"http://{name}", seconds=seconds)

        made = Place(await PostgresStore.open(url), join)
    yield made
    for leases in made.joined:
        await leases.leave()
    await made.store.close()


def row(key: bytes, lease: Lease | None, value: bytes | None = b"x") -> Write:
    return Write(table="t", key=key, value=value, lease=lease)


async def test_a_name_has_one_holder_and_others_hear_where(place: Place) -> None:
    """LEASE-1."""
    a, b = await place.holder("a"), await place.holder("b")
    await a.acquire(b"n")
    with pytest.raises(HeldElsewhere) as refused:
        await b.acquire(b"n")
    assert refused.value.holder == "http://a"
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 30
    await b.acquire(b"m")


async def test_of_many_that_ask_at_once_one_gets_it(place: Place) -> None:
    """LEASE-1."""
    holders = [await place.holder(f"h{n}") for n in range(6)]
    for name in (b"%d" % n for n in range(20)):
        asked = await asyncio.gather(*(h.acquire(name) for h in holders), return_exceptions=True)
        assert sum(isinstance(answer, Lease) for answer in asked) == 1
        assert sum(isinstance(answer, HeldElsewhere) for answer in asked) == 5


async def test_a_released_name_is_free_at_once_and_its_token_is_dead(place: Place) -> None:
    """LEASE-2, LEASE-3."""
    a, b = await place.holder("a"), await place.holder("b")
    first = await a.acquire(b"n")
    await place.store.write([row(b"k", first, b"1")])
    await a.release([first])
    with pytest.raises(LeaseLost):
        await place.store.write([row(b"k", first, b"2")])
    second = await b.acquire(b"n")
    assert second.token > first.token
    await a.release([first])  # late, and harmless
    await place.store.write([row(b"k", second, b"3")])
    assert await place.store.read("t", b"k") == b"3"


async def test_who_does_not_renew_is_succeeded_and_cannot_write_any_more(place: Place) -> None:
    """LEASE-3: the store refuses what the old holder still believes it may write, whole batches of it."""
    a, b = await place.holder("a", LIFE), await place.holder("b")
    old, mine = await a.acquire(b"n"), await a.acquire(b"m")
    with pytest.raises(HeldElsewhere):
        await b.acquire(b"n")
    await asyncio.sleep(LIFE * 1.5)
    new = await b.acquire(b"n")
    with pytest.raises(LeaseLost) as lost:
        await place.store.write([row(b"other", mine), row(b"k", old), row(b"free", None)])
    assert lost.value.lost == {(b"n", old.token)}
    assert await place.store.scan("t") == []
    await place.store.write([row(b"k", new, b"new"), row(b"gone", new, None)])
    await place.store.write([row(b"other", mine)])  # lapsed, and nobody took it
    assert await a.renew() == {b"n"}
    assert await a.renew() == frozenset()
    assert await b.renew() == frozenset()


async def test_who_renews_keeps_everything(place: Place) -> None:
    """LEASE-4."""
    a, b = await place.holder("a", LIFE), await place.holder("b")
    await a.acquire(b"n")
    await a.acquire(b"m")
    for _ in range(6):
        await asyncio.sleep(LIFE / 3)
        assert await a.renew() == frozenset()
    for name in (b"n", b"m"):
        with pytest.raises(HeldElsewhere):
            await b.acquire(name)


async def test_who_leaves_makes_nobody_wait(place: Place) -> None:
    """LEASE-5."""
    a, b = await place.holder("a"), await place.holder("b")
    lease = await a.acquire(b"n")
    await a.leave()
    await b.acquire(b"n")
    with pytest.raises(LeaseLost):
        await place.store.write([row(b"k", lease)])


async def test_a_lost_lease_takes_its_own_callers_down_and_nobody_elses(place: Place) -> None:
    """LEASE-3: callers that share a commit share no fate."""
    a = await place.holder("a")
    kept, given = await a.acquire(b"kept"), await a.acquire(b"given")
    await a.release([given])
    jobs = [place.store.write([row(b"%d" % n, kept if n % 2 else given)]) for n in range(40)]
    ends = await asyncio.gather(*jobs, return_exceptions=True)
    assert [isinstance(end, LeaseLost) for end in ends] == [n % 2 == 0 for n in range(40)]
    assert len(await place.store.scan("t")) == 20


async def test_old_and_new_token_of_a_name_in_one_commit(place: Place) -> None:
    """LEASE-3: a lease that came back does not revive what was written under the one before."""
    a = await place.holder("a")
    old = await a.acquire(b"n")
    await a.release([old])
    new = await a.acquire(b"n")
    ends = await asyncio.gather(
        place.store.write([row(b"k", new, b"new")]), place.store.write([row(b"k", old, b"old")]), return_exceptions=True
    )
    assert ends[0] is None
    assert isinstance(ends[1], LeaseLost)
    assert await place.store.read("t", b"k") == b"new"
