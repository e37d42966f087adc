# SPDX-License-Identifier: Apache-2.0
"""The file under `SqliteStore`: a log of batches in front of a table of rows, both in one SQLite database.

A commit appends one row to the log, however many rows its batch has: one statement, one page or two, one fsync. Rows
that were changed lie in memory, too, and are folded into the table together, by two statements that run without the
interpreter's lock: so the event loop runs on, and a row that was put and deleted meanwhile is hardly any work.

Not here: threads and waiting (`sqlite.py`). One thread writes; `newest` may be asked from another.

Always: what `append` returned from survives a crash; the log read back in order over the table gives every row, also
where another process has the file open.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bombyx.errors import Unavailable

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process' lock
FOLD_ROWS: Final = 4_096  # changed rows that make a fold due: about 10 ms in which no commit goes through
FOLD_BYTES: Final = 4 << 20
CHECKPOINT_PAGES: Final = 4_000
_MAX_KEY, _MAX_VALUE = (1 << 11) - 1, (1 << 21) - 1  # bytes of a row that `_spans` can describe

Where = tuple[str, bytes]  # table, key
Change = tuple[str, bytes, bytes | None]

_ROWS: Final = (
    "CREATE TABLE IF NOT EXISTS rows (name TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY (name, key)) WITHOUT ROWID"
)
_LOG: Final = "CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, batch BLOB NOT NULL)"
_APPEND: Final = "INSERT INTO log (batch) VALUES (?)"
_READ_LOG: Final = "SELECT id, batch FROM log ORDER BY id"
_PUT: Final = "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (name, key) DO UPDATE SET value = excluded.value"
_DELETE: Final = "DELETE FROM rows WHERE name = ? AND key = ?"
# ?2 holds keys and values one behind the other; ?3 is a JSON list that says where: offset, size of key, size of value
_PUT_MANY: Final = (
    "INSERT INTO rows SELECT ?1, substr(?2, (value >> 32) + 1, (value >> 21) & 2047),"
    " substr(?2, (value >> 32) + 1 + ((value >> 21) & 2047), value & 2097151) FROM json_each(?3)"
    " WHERE true ON CONFLICT (name, key) DO UPDATE SET value = excluded.value"
)
_DELETE_MANY: Final = (
    "DELETE FROM rows WHERE name = ?1 AND key IN"
    " (SELECT substr(?2, (value >> 32) + 1, (value >> 21) & 2047) FROM json_each(?3))"
)
_HEAD: Final = struct.Struct(">BHi")  # sizes of table name, key and value; -1: deleted


class SqliteFile:
    """One database, opened for one writer."""

    def __init__(self, path: Path) -> None:
        """Raises `sqlite3.Error` or `OSError`."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # its log and index take the same mode
        self.reader = connect(path)
        self._writer = connect(path)
        self._writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._changed: dict[Where, bytes | None] = {}
        self._size = 0
        self._last = 0  # number of the newest batch we know; numbers are never given twice
        self._missed = False  # another process has appended between two of ours
        self._appended = False  # since the last fold: whoever only looks folds nothing
        self._read_log()

    def append(self, rows: Sequence[Change]) -> None:
        """Make these rows durable, all or none. Raises `Unavailable`."""
        batch = pack(rows)
        try:
            number = self._writer.execute(_APPEND, (batch,)).lastrowid or 0
        except (sqlite3.Error, OverflowError) as error:
            raise Unavailable(f"the store cannot write: {error}") from None
        self._missed |= number != self._last + 1
        self._last, self._appended = number, True
        self._size += len(batch)
        self._changed.update({(name, key): value for name, key, value in rows})  # at once, for whoever reads

    @property
    def fold_due(self) -> bool:
        return len(self._changed) >= FOLD_ROWS or self._size >= FOLD_BYTES

    def fold(self) -> None:
        """Bring the table up to date and empty the log, but for its newest batch, which keeps the count. Raises
        `sqlite3.Error`; then nothing has changed."""
        if not self._appended:
            return
        writer = self._writer
        try:
            # No fsync: should the fold be lost, the log is still there, as both changed in one transaction.
            writer.execute("PRAGMA synchronous = NORMAL")
            writer.execute("BEGIN IMMEDIATE")
            if self._missed or writer.execute("SELECT max(id) FROM log").fetchone() != (self._last,):
                self._read_log()  # another process has written, too: its rows are folded with ours
            for statement, values in _statements(self._changed):
                writer.execute(statement, values)
            writer.execute("DELETE FROM log WHERE id < ?", (self._last,))
            writer.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
            raise
        finally:
            writer.execute("PRAGMA synchronous = FULL")
        self._changed, self._size = {}, 0
        self._missed = self._appended = False

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # what is in the log is safe there
            self.fold()
        self.reader.close()
        self._writer.close()

    # What the table does not say yet. Asked before the table is: a fold in between changes nothing.

    def newest(self, where: Where) -> tuple[bytes | None] | None:
        """(value,) of a row that was changed since the last fold, (None,) of one that is gone; None: ask the table."""
        changed = self._changed
        return (changed[where],) if where in changed else None

    def newer(self, table: str, prefix: bytes) -> dict[bytes, bytes | None]:
        """Rows of a table that were changed since the last fold."""
        found = list(self._changed.items())
        return {key: value for (name, key), value in found if name == table and key.startswith(prefix)}

    def _read_log(self) -> None:
        batches = self._writer.execute(_READ_LOG).fetchall()
        self._last = batches[-1][0] if batches else 0
        self._size = sum(len(batch) for _, batch in batches)
        self._changed = {(name, key): value for _, batch in batches for name, key, value in unpack(batch)}


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(_ROWS)
    connection.execute(_LOG)
    return connection


def pack(rows: Iterable[Change]) -> bytes:
    """One batch as it lies in the log."""
    head = _HEAD.pack
    parts: list[bytes] = []
    for name, key, value in rows:
        table = name.encode()
        if value is None:
            parts += (head(len(table), len(key), -1), table, key)
        else:
            parts += (head(len(table), len(key), len(value)), table, key, value)
    return b"".join(parts)


def unpack(batch: bytes) -> Iterator[Change]:
    position = 0
    while position < len(batch):
        table, key, value = _HEAD.unpack_from(batch, position)
        begin = position + _HEAD.size
        middle = begin + table
        end = middle + key
        position = end + max(0, value)
        name = batch[begin:middle].decode()
        yield name, batch[middle:end], None if value < 0 else batch[end:position]


def _statements(changed: dict[Where, bytes | None]) -> Iterator[tuple[str, tuple[str | bytes, ...]]]:
    """What brings the table up to date. Few statements: each runs without the interpreter's lock, whatever it does."""
    puts: dict[str, _Many] = {}
    deletes: dict[str, _Many] = {}
    for (name, key), value in changed.items():
        if len(key) > _MAX_KEY or (value is not None and len(value) > _MAX_VALUE):
            yield (_DELETE, (name, key)) if value is None else (_PUT, (name, key, value))
        elif value is None:
            deletes.setdefault(name, _Many()).add(key)
        else:
            puts.setdefault(name, _Many()).add(key, value)
    for statement, tables in ((_PUT_MANY, puts), (_DELETE_MANY, deletes)):
        for name, many in tables.items():
            # never empty: of an empty blob SQLite makes NULL
            yield statement, (name, b"".join((*many.parts, b".")), f"[{','.join(many.spans)}]")


class _Many:
    """Rows of one table, laid out for `_PUT_MANY` or `_DELETE_MANY`."""

    __slots__ = ("_end", "parts", "spans")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.spans: list[str] = []
        self._end = 0

    def add(self, key: bytes, value: bytes = b"") -> None:
        self.spans.append(str(self._end << 32 | len(key) << 21 | len(value)))
        self.parts += (key, value)
        self._end += len(key) + len(value)
