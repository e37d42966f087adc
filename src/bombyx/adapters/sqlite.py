# SPDX-License-Identifier: Apache-2.0
"""`ports.Store` on SQLite: write-ahead log, synchronous=FULL, and one writer thread that commits many callers at once.

Group commit: while one fsync runs, further writes queue up; the next transaction takes them all, so their callers share
one fsync. Writes become visible in the order they were asked for. Always: `write` returns after the fsync or raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from bombyx.errors import Unavailable
from bombyx.ports import Write

MAX_BATCH: Final = 1_024  # callers in one transaction
BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process' lock
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS rows (name TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY (name, key)) WITHOUT ROWID"
)
_PUT: Final = "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (name, key) DO UPDATE SET value = excluded.value"
_DELETE: Final = "DELETE FROM rows WHERE name = ? AND key = ?"
_READ: Final = "SELECT value FROM rows WHERE name = ? AND key = ?"
_SCAN: Final = "SELECT key, value FROM rows WHERE name = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
_SCAN_UP: Final = "SELECT key, value FROM rows WHERE name = ? AND key >= ? ORDER BY key LIMIT ?"


@dataclass(frozen=True, slots=True)
class _Job:
    rows: tuple[Write, ...]
    done: asyncio.Future[None]


class SqliteStore:
    """Durable rows in one file. Made by `open`; use from one event loop or several."""

    def __init__(
        self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection, released: Callable[[], None]
    ) -> None:
        self.path = path
        self._released = released
        self._writer = writer
        self._reader = reader
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="bombyx-store-read")
        self._thread = threading.Thread(target=self._run, name="bombyx-store-write", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, *, released: Callable[[], None] = lambda: None) -> SqliteStore:
        """Open or make the file (0600: it holds secrets and receipts). `Unavailable` when that is not possible.

        `released` is called once the file has been let go of.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # its log and index take the same mode
            return cls(path, _connect(path), _connect(path), released)
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(f"cannot open the store {path}: {error}") from error

    async def write(self, rows: Sequence[Write]) -> None:
        if self._closed:
            raise Unavailable("the store is closed")
        if rows:
            job = _Job(tuple(rows), asyncio.get_running_loop().create_future())
            self._jobs.put(job)
            await asyncio.shield(job.done)

    async def read(self, table: str, key: bytes) -> bytes | None:
        found = await self._query(_READ, (table, bytes(key)))
        return found[0][0] if found else None

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]:
        most = -1 if limit is None else limit
        end = _after(prefix)
        if end is None:
            found = await self._query(_SCAN_UP, (table, prefix, most))
        else:
            found = await self._query(_SCAN, (table, prefix, end, most))
        return [(key, value) for key, value in found]

    async def close(self) -> None:
        """Finish what was asked for, then let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reads.shutdown()
        self._reader.close()
        self._writer.close()
        self._released()

    async def _query(self, statement: str, values: tuple[str | bytes | int, ...]) -> list[tuple[bytes, ...]]:
        if self._closed:
            raise Unavailable("the store is closed")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reads, lambda: self._reader.execute(statement, values).fetchall())
        except sqlite3.Error as error:
            raise Unavailable(f"the store cannot be read: {error}") from error

    # --- the writer thread ---

    def _run(self) -> None:
        while True:
            jobs = self._next_batch()
            live = [job for job in jobs if job is not None]
            if live:
                _answer(live, self._commit(live))
            if len(live) < len(jobs):
                return

    def _next_batch(self) -> list[_Job | None]:
        jobs = [self._jobs.get()]
        with contextlib.suppress(Empty):
            while jobs[-1] is not None and len(jobs) < MAX_BATCH:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _commit(self, jobs: list[_Job]) -> Unavailable | None:
        newest = {row[:2]: row for job in jobs for row in job.rows}
        put = [row[:3] for row in newest.values() if row.value is not None]
        gone = [where for where, row in newest.items() if row.value is None]
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany(_PUT, put)
            self._writer.executemany(_DELETE, gone)
            self._writer.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            return Unavailable(f"the store cannot write: {error}")
        return None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(_SCHEMA)
    return connection


def _answer(jobs: list[_Job], failure: Unavailable | None) -> None:
    """Wake every caller, with one hop into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for job in jobs:
        loops.setdefault(job.done.get_loop(), []).append(job.done)
    for loop, futures in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is gone, and its callers with it
            loop.call_soon_threadsafe(_resolve, futures, failure)


def _resolve(futures: list[asyncio.Future[None]], failure: Unavailable | None) -> None:
    for future in futures:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(Unavailable(failure.message))


def _after(prefix: bytes) -> bytes | None:
    """The first key behind all that start with `prefix`; None when there is no such key."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
