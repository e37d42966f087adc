# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL alone: restarts, crashes, broken connections, take-overs during a commit; and what is never said."""

from __future__ import annotations

import asyncio
import signal
import time

import asyncpg
import pytest
from tests.postgres import PASSWORD, QUOTED, postgres_server

from bombyx.adapters import postgres
from bombyx.adapters.postgres import PostgresStore
from bombyx.adapters.postgres_leases import PostgresLeases
from bombyx.errors import ConfigError, HeldElsewhere, LeaseLost, Unavailable
from bombyx.ports import Write


def put(key: bytes, value: bytes | None = b"x") -> Write:
    return Write(table="t", key=key, value=value)


async def test_processes_that_start_together_make_the_tables_once() -> None:
    """STORE-4."""
    url = await postgres_server().database()
    stores = await asyncio.gather(*(PostgresStore.open(url) for _ in range(8)))
    await stores[0].write([put(b"a")])
    assert await stores[7].read("t", b"a") == b"x"
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_connection_that_broke_is_opened_anew() -> None:
    """STORE-4: a caller notices nothing; once asked for, rows are written."""
    url = await postgres_server().database()
    store = await PostgresStore.open(url)
    await store.write([put(b"a")])
    assert await store.read("t", b"a") == b"x"
    other = await asyncpg.connect(url)
    killed = await other.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await other.close()
    assert killed >= 2
    await store.write([put(b"b")])
    assert [key for key, _ in await store.scan("t")] == [b"a", b"b"]
    await store.close()


async def test_closing_finishes_what_was_asked_for_and_a_cancelled_caller_takes_nothing_back() -> None:
    """STORE-3."""
    url = await postgres_server().database()
    store = await PostgresStore.open(url)
    writes = [asyncio.ensure_future(store.write([put(b"%d" % i)])) for i in range(50)]
    await asyncio.sleep(0)
    writes[0].cancel()
    await store.close()
    await asyncio.gather(*writes[1:])
    again = await PostgresStore.open(url)
    assert len(await again.scan("t")) == 50
    await again.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
async def test_nothing_that_was_acknowledged_is_lost_when_the_database_goes_and_comes_back(how: signal.Signals) -> None:
    """STORE-3: writers see a pause, or `Unavailable`; every row whose write returned is there."""
    server = postgres_server()
    store = await PostgresStore.open(await server.database())
    acknowledged: set[bytes] = set()
    stopping = False

    async def writer(name: int) -> None:
        number = 0
        while not stopping:
            key = b"%d.%d" % (name, number)
            number += 1
            try:
                await store.write([put(key)])
            except Unavailable:
                continue
            acknowledged.add(key)

    writers = [asyncio.ensure_future(writer(name)) for name in range(8)]
    await asyncio.sleep(0.2)
    await asyncio.to_thread(server.stop, how)
    before = len(acknowledged)
    await asyncio.to_thread(server.start)
    await asyncio.sleep(1.0)
    stopping = True
    await asyncio.gather(*writers)
    assert len(acknowledged) > before > 0
    assert acknowledged <= {key for key, _ in await store.scan("t")}
    await store.close()


async def test_a_server_that_stays_away_is_unavailable_after_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """STORE-4."""
    monkeypatch.setattr(postgres, "PATIENCE_SECONDS", 0.5)
    server = postgres_server()
    store = await PostgresStore.open(await server.database())
    await asyncio.to_thread(server.stop)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await store.write([put(b"a")])
    with pytest.raises(Unavailable):
        await store.read("t", b"a")
    assert time.monotonic() - started < 5
    await asyncio.to_thread(server.start)
    await store.write([put(b"a")])
    await store.close()


async def test_a_take_over_waits_for_a_commit_and_a_commit_sees_a_take_over() -> None:
    """LEASE-3: there is no moment in which both the old and the new holder's rows get in."""
    url = await postgres_server().database()
    store = await PostgresStore.open(url)
    a = await PostgresLeases.join(url, b"a" * 16, reached_at="a", seconds=0.01)
    b = await PostgresLeases.join(url, b"b" * 16, reached_at="b", seconds=30)
    old = await a.acquire(b"n")
    await asyncio.sleep(0.05)
    hand = await asyncpg.connect(url)
    async with hand.transaction():  # as a take-over that is slow to commit
        await hand.execute("UPDATE bombyx_lease SET token = token + 1000, holder = $1", b"c" * 16)
        late = asyncio.ensure_future(store.write([Write(table="t", key=b"k", value=b"old", lease=old)]))
        await asyncio.sleep(0.1)
        assert not late.done()
    with pytest.raises(LeaseLost):
        await late
    async with hand.transaction():  # as a commit that is under way
        await hand.execute("SELECT FROM bombyx_lease FOR SHARE")
        taking = asyncio.ensure_future(b.acquire(b"n"))
        await asyncio.sleep(0.1)
        assert not taking.done()
    assert (await taking).token > old.token
    await hand.close()
    for leases in (a, b):
        await leases.leave()
    await store.close()


async def test_rivals_hammering_one_lease_never_write_over_each_other() -> None:
    """LEASE-1, LEASE-3: a counter that each raises by what it read itself ends at exactly the number of raises."""
    url = await postgres_server().database()
    raised = 0

    async def rival(name: bytes) -> None:
        nonlocal raised
        store = await PostgresStore.open(url)
        leases = await PostgresLeases.join(url, name * 16, reached_at="", seconds=0.02)  # lapses all the time
        for _ in range(60):
            try:
                lease = await leases.acquire(b"n")
                held = int(await store.read("t", b"count") or b"0")
                await asyncio.sleep(0.005)
                await store.write([Write(table="t", key=b"count", value=b"%d" % (held + 1), lease=lease)])
                raised += 1
            except (HeldElsewhere, LeaseLost):
                await asyncio.sleep(0.003)
        await leases.leave()
        await store.close()

    await asyncio.gather(*(rival(name) for name in (b"a", b"b", b"c", b"d")))
    store = await PostgresStore.open(url)
    assert int(await store.read("t", b"count") or b"0") == raised > 0
    await store.close()


async def test_a_wrong_password_is_a_setting_and_no_message_holds_one() -> None:
    """STORE-4: an URL holds a password, and is never repeated."""
    url = await postgres_server().database()
    for wrong in (url.replace(QUOTED, "wrong%20word"), url.replace("/d", "/no"), "postgresql://[", "http://x:y@z"):
        with pytest.raises((ConfigError, Unavailable)) as refused:
            await PostgresStore.open(wrong)
        told = f"{refused.value!r} {refused.value.__cause__!r}"
        assert PASSWORD not in told and "wrong" not in told and "127.0.0.1" not in told
