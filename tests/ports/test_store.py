# SPDX-License-Identifier: Apache-2.0
"""What every Store promises (`ports.Store`), asked of each adapter; then what SQLite adds: it survives.

What PostgreSQL adds is in `test_postgres.py`, leases in `test_leases.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.postgres import postgres_server, shared_database

from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.postgres import PostgresStore
from bombyx.adapters.sqlite import SqliteStore
from bombyx.adapters.sqlite_file import SqliteFile
from bombyx.errors import Unavailable
from bombyx.ports import Store, Write

Batches = list[list[tuple[bytes, bytes | None]]]


def put(key: bytes, value: bytes | None, table: str = "t") -> Write:
    return Write(table=table, key=key, value=value)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = SqliteStore.open(tmp_path / "state" / "s.db")
    else:
        made = await PostgresStore.open(await postgres_server().database())
    yield made
    await made.close()


async def test_what_was_written_is_read(store: Store) -> None:
    """STORE-1: read sees every finished write; the newest value stands; None deletes."""
    await store.write([put(b"a", b"1"), put(b"b", b"2")])
    await store.write([put(b"a", b"3"), put(b"b", None), put(b"gone", None)])
    assert await store.read("t", b"a") == b"3"
    assert await store.read("t", b"b") is None
    assert await store.read("elsewhere", b"a") is None


async def test_the_last_of_two_writes_to_a_key_in_one_batch_stands(store: Store) -> None:
    """STORE-1."""
    await store.write([put(b"a", b"1"), put(b"a", None), put(b"a", b"2"), put(b"b", b"1"), put(b"b", None)])
    assert await store.scan("t") == [(b"a", b"2")]


async def test_scan_is_in_key_order_within_a_prefix(store: Store) -> None:
    """STORE-2: byte order; prefixes that end in 0xff and the empty one included."""
    keys = [b"", b"\x00", b"a", b"a\xff", b"a\xff\xff", b"a\xff\x00z", b"b", b"\xff", b"\xff\xff"]
    await store.write([put(key, key) for key in reversed(keys)])
    for prefix in [*keys, b"a\xfe", b"c"]:
        wanted = sorted(key for key in keys if key.startswith(prefix))
        assert [key for key, _ in await store.scan("t", prefix=prefix)] == wanted
    assert [key for key, _ in await store.scan("t", limit=2)] == [b"", b"\x00"]
    assert await store.scan("t", limit=0) == []


async def test_many_writers_at_once_all_return_and_nothing_is_lost(store: Store) -> None:
    """STORE-3: group commit; order per key is the order of asking."""
    await asyncio.gather(*(store.write([put(b"%d" % i, b"x"), put(b"same", b"%d" % i)]) for i in range(500)))
    assert len(await store.scan("t")) == 501
    assert await store.read("t", b"same") == b"499"


async def test_a_closed_store_says_so(store: Store) -> None:
    """STORE-4: Unavailable, never a silent loss; closing twice is no fault."""
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await store.write([put(b"a", b"1")])
    with pytest.raises(Unavailable):
        await store.read("t", b"a")
    with pytest.raises(Unavailable):
        await store.scan("t")


@given(
    st.lists(st.lists(st.tuples(st.binary(max_size=3), st.none() | st.binary(max_size=3)), max_size=6), max_size=8),
    st.binary(max_size=2),
)
def test_all_stores_say_the_same(tmp_path_factory: pytest.TempPathFactory, batches: Batches, prefix: bytes) -> None:
    """STORE-1, STORE-2: the double behaves as the real ones."""

    async def play(store: Store) -> list[tuple[bytes, bytes]]:
        table = uuid.uuid4().hex  # PostgreSQL: one database serves every example
        for batch in batches:
            await store.write([put(key, value, table) for key, value in batch])
        found = await store.scan(table, prefix=prefix)
        await store.close()
        return found

    async def postgres(url: str) -> list[tuple[bytes, bytes]]:
        return await play(await PostgresStore.open(url))

    path = tmp_path_factory.mktemp("s") / "s.db"
    told = asyncio.run(play(MemoryStore()))
    assert told == asyncio.run(play(SqliteStore.open(path)))
    assert told == asyncio.run(postgres(shared_database()))


# --- SQLite alone ----------------------------------------------------------------------------------------------------


async def test_rows_are_there_in_the_next_life(tmp_path: Path) -> None:
    """STORE-3."""
    first = SqliteStore.open(tmp_path / "s.db")
    await first.write([put(b"a", b"1")])
    await first.close()
    second = SqliteStore.open(tmp_path / "s.db")
    assert await second.read("t", b"a") == b"1"
    await second.close()


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    """STORE-3."""
    store = SqliteStore.open(tmp_path / "s.db")
    writes = [asyncio.ensure_future(store.write([put(b"%d" % i, b"")])) for i in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    again = SqliteStore.open(tmp_path / "s.db")
    assert len(await again.scan("t")) == 50
    await again.close()


async def test_a_failed_write_reaches_its_callers_and_leaves_nothing(tmp_path: Path) -> None:
    """STORE-3, STORE-4: all rows or none."""
    store = SqliteStore.open(tmp_path / "s.db")
    await store.write([put(b"a", b"1")])
    thief = sqlite3.connect(tmp_path / "s.db")
    thief.execute(
        "CREATE TRIGGER no BEFORE INSERT ON log WHEN instr(NEW.batch, x'62') BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    thief.close()
    with pytest.raises(Unavailable):
        await store.write([put(b"a", b"2"), put(b"b", b"2")])
    assert await store.scan("t") == [(b"a", b"1")]
    thief = sqlite3.connect(tmp_path / "s.db")
    thief.execute("DROP TRIGGER no")
    thief.close()
    await store.write([put(b"c", b"3")])
    assert await store.scan("t") == [(b"a", b"1"), (b"c", b"3")]
    await store.close()


_FEW_KEYS = st.lists(
    st.tuples(st.sampled_from("tu"), st.binary(max_size=2), st.none() | st.binary(max_size=3)), max_size=6
)


@settings(max_examples=25)
@example([([("t", b"", b"")], "fold")])
@given(st.lists(st.tuples(_FEW_KEYS, st.sampled_from(["", "fold", "reopen", "kill"])), max_size=8))
def test_the_log_is_folded_in_at_any_moment_and_nobody_sees_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[tuple[str, bytes, bytes | None]], str]]
) -> None:
    """STORE-1, STORE-3: whether a row lies in the log, in the table or in both, it is the newest that is found."""
    path = tmp_path_factory.mktemp("s") / "s.db"
    file, wanted = SqliteFile(path), dict[tuple[str, bytes], bytes | None]()
    for batch, then in steps:
        file.append(batch)
        wanted |= {(name, key): value for name, key, value in batch}
        if then == "fold":
            file.fold()
        elif then:
            if then == "reopen":
                file.close()
            file = SqliteFile(path)
    table = {(name, key): value for name, key, value in file.reader.execute("SELECT * FROM rows")}
    newer = {(name, key): value for name in "tu" for key, value in file.newer(name, b"").items()}
    assert _there(table | newer) == _there(wanted)
    assert {where: file.newest(where) for where in newer} == {where: (value,) for where, value in newer.items()}
    file.close()


def _there(rows: dict[tuple[str, bytes], bytes | None]) -> dict[tuple[str, bytes], bytes]:
    return {where: value for where, value in rows.items() if value is not None}


async def test_rows_too_large_to_fold_together_are_folded_one_by_one(tmp_path: Path) -> None:
    """STORE-1: a key of 3 kB, a value of 3 MB, an empty one."""
    store = SqliteStore.open(tmp_path / "s.db")
    rows = sorted([(b"k" * 3_000, b"v"), (b"large", bytes(3 << 20)), (b"none", b"")])
    await store.write([put(key, value) for key, value in rows])
    await store.close()
    store = SqliteStore.open(tmp_path / "s.db")
    assert await store.scan("t") == rows
    await store.write([put(key, None) for key, _ in rows])
    await store.close()
    store = SqliteStore.open(tmp_path / "s.db")
    assert await store.scan("t") == []
    await store.close()


def test_what_another_process_wrote_meanwhile_is_folded_in_too(tmp_path: Path) -> None:
    """STORE-3: none of its rows is emptied out of the log unread."""
    first, second = SqliteFile(tmp_path / "s.db"), SqliteFile(tmp_path / "s.db")
    first.append([("t", b"a", b"1")])
    second.append([("t", b"b", b"2")])
    first.fold()
    assert first.reader.execute("SELECT key FROM rows").fetchall() == [(b"a",), (b"b",)]
    first.append([("t", b"a", b"3")])
    second.append([("t", b"b", b"4")])
    first.append([("t", b"c", b"5")])
    second.fold()
    first.close()
    second.close()
    last = SqliteFile(tmp_path / "s.db")
    assert last.reader.execute("SELECT key, value FROM rows").fetchall() == [(b"a", b"3"), (b"b", b"4"), (b"c", b"5")]
    last.close()


def test_a_process_that_only_looks_never_brings_back_what_it_saw(tmp_path: Path) -> None:
    """STORE-3: as many batches as it saw have come and gone since; it closes, and every newer row stands."""
    owner = SqliteFile(tmp_path / "s.db")
    owner.append([("t", b"a", b"old")])
    looker = SqliteFile(tmp_path / "s.db")
    assert looker.newest(("t", b"a")) == (b"old",)
    owner.append([("t", b"a", b"new")])
    owner.fold()
    looker.close()
    owner.append([("t", b"b", b"1")])
    after = SqliteFile(tmp_path / "s.db")
    assert after.newest(("t", b"b")) == (b"1",)
    assert after.reader.execute("SELECT value FROM rows").fetchall() == [(b"new",)]
    assert after.newest(("t", b"a")) in (None, (b"new",))
    after.close()
    owner.close()


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """STORE-4."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        SqliteStore.open(tmp_path / "file" / "s.db")


async def test_a_cancelled_caller_does_not_take_its_rows_back(tmp_path: Path) -> None:
    """STORE-3: once asked for, rows are written; the next ones too."""
    store = SqliteStore.open(tmp_path / "s.db")
    task = asyncio.ensure_future(store.write([put(b"a", b"1")]))
    await asyncio.sleep(0)
    task.cancel()
    await store.write([put(b"b", b"2")])
    assert [key for key, _ in await store.scan("t")] == [b"a", b"b"]
    await store.close()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """STORE-3: a process killed while many writers run loses no row whose write had returned."""
    script = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from bombyx.adapters.sqlite import SqliteStore
        from bombyx.ports import Write

        async def writer(store, name):
            number = 0
            while True:
                await store.write([Write(table="t", key=b"%d.%d" % (name, number), value=b"x")])
                sys.stdout.write(f"{name}.{number}\\n")
                sys.stdout.flush()
                number += 1

        async def main():
            store = SqliteStore.open(Path(sys.argv[1]))
            await asyncio.gather(*(writer(store, name) for name in range(20)))

        asyncio.run(main())
    """)
    path = tmp_path / "s.db"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(300)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    process.stdout.close()
    process.wait()

    async def keys() -> set[bytes]:
        store = SqliteStore.open(path)
        found = {key for key, _ in await store.scan("t")}
        await store.close()
        return found

    assert set(acknowledged) <= asyncio.run(keys())
