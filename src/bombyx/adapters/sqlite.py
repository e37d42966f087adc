# SPDX-License-Identifier: Apache-2.0
"""`ports.Store` on SQLite: write-ahead log, synchronous=FULL, and one writer thread that commits many callers at once.

Group commit: while one fsync runs, further writes queue up; the next commit takes them all, so their callers share one
fsync. Writes become visible in the order they were asked for. What a commit puts into the file is `sqlite_file.py`'s.
Always: `write` returns after the fsync or raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from bombyx.adapters.sqlite_file import SqliteFile
from bombyx.errors import Unavailable
from bombyx.ports import Write

MAX_BATCH: Final = 1_024  # callers in one commit
_READ: Final = "SELECT value FROM rows WHERE name = ? AND key = ?"
_SCAN: Final = "SELECT key, value FROM rows WHERE name = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
_SCAN_UP: Final = "SELECT key, value FROM rows WHERE name = ? AND key >= ? ORDER BY key LIMIT ?"


@dataclass(frozen=True, slots=True)
class _Job:
    rows: Sequence[Write]
    done: asyncio.Future[None]


class SqliteStore:
    """Durable rows in one file. Made by `open`; use from one event loop or several."""

    def __init__(self, path: Path, file: SqliteFile, released: Callable[[], None]) -> None:
        self.path = path
        self._file = file
        self._released = released
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="bombyx-store-read")
        self._thread = threading.Thread(target=self._run, name="bombyx-store-write", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, *, released: Callable[[], None] = lambda: None) -> SqliteStore:
        """Open or make the file (0600: it holds secrets and receipts). `Unavailable` when that is not possible.

        `released` is called once the file has been let go of. A process that only looks while another one writes sees
        what was there when it opened the file.
        """
        try:
            return cls(path, SqliteFile(path), released)
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
        self._check_open()
        newest = self._file.newest((table, bytes(key)))
        if newest is not None:
            return newest[0]
        found = await self._query(_READ, (table, bytes(key)))
        return found[0][0] if found else None

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]:
        self._check_open()
        newer = self._file.newer(table, prefix)
        most = -1 if limit is None else limit + len(newer)  # each may delete one that the table still has
        end = _after(prefix)
        if end is None:
            found = await self._query(_SCAN_UP, (table, prefix, most))
        else:
            found = await self._query(_SCAN, (table, prefix, end, most))
        rows = [(key, value) for key, value in found]
        if newer:
            merged = {**dict(rows), **newer}
            rows = sorted((key, value) for key, value in merged.items() if value is not None)
        return rows if limit is None else rows[:limit]

    async def close(self) -> None:
        """Finish what was asked for, then let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reads.shutdown()
        self._file.close()
        self._released()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    async def _query(self, statement: str, values: tuple[str | bytes | int, ...]) -> list[tuple[bytes, ...]]:
        loop, reader = asyncio.get_running_loop(), self._file.reader
        try:
            return await loop.run_in_executor(self._reads, lambda: reader.execute(statement, values).fetchall())
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
            if self._file.fold_due:
                with contextlib.suppress(sqlite3.Error):  # it is tried again after the next commit
                    self._file.fold()

    def _next_batch(self) -> list[_Job | None]:
        jobs = [self._jobs.get()]
        with contextlib.suppress(Empty):
            while jobs[-1] is not None and len(jobs) < MAX_BATCH:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _commit(self, jobs: list[_Job]) -> Unavailable | None:
        try:
            self._file.append([row[:3] for job in jobs for row in job.rows])
        except Unavailable as error:
            return error
        return None


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
