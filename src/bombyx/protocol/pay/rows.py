# SPDX-License-Identifier: Apache-2.0
"""How a payee's and a payer's state looks in a store: keys and values of fixed layout (spec PAY-17).

Rows are small and separate, so that a request writes some hundred bytes, not a whole book. Reading the rows back in
any order gives the same state; that is what makes a crash harmless. Keys: one letter, channel id, then a name.

    k  channel            canonical ChannelConfig, written once
    c  channel            the channel's numbers and its highest voucher
    r  channel, request   a reservation: its cap (payer: and what was agreed so far)
    s  channel, request   a settled request: its charge, and a serial so that the oldest can be forgotten
    g  channel, key hash  a session key that was used: until when it could be presented again
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bombyx.errors import LocalError
from bombyx.protocol.primitives import Digest, RequestId

Row = tuple[bytes, bytes | None]  # value None deletes

CONFIG: Final = b"k"
STATE: Final = b"c"
RESERVED: Final = b"r"
SETTLED: Final = b"s"
KEY: Final = b"g"
FINISHED_KEPT: Final = 4_096  # settled requests remembered per channel; older ones fall to their deadline


class Journal:
    """Rows changed since they were last taken; the newest value of a key wins."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes | None] = {}

    def put(self, kind: bytes, channel: Digest, value: bytes | None, name: bytes = b"") -> None:
        self._rows[kind + channel + name] = value

    def take(self) -> tuple[Row, ...]:
        """Everything that must be written before what happened is acted on."""
        rows, self._rows = tuple(self._rows.items()), {}
        return rows


class Finished:
    """Settled requests of one channel and their charges, the newest 4096. Answers "was this one paid already?"."""

    __slots__ = ("_channel", "_charges", "_journal", "_serial")

    def __init__(self, channel: Digest, journal: Journal) -> None:
        self._channel = channel
        self._journal = journal
        self._charges: dict[RequestId, int] = {}
        self._serial = 0

    def get(self, request_id: RequestId) -> int | None:
        return self._charges.get(request_id)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._charges

    def __len__(self) -> int:
        return len(self._charges)

    def add(self, request_id: RequestId, charge: int) -> None:
        self._serial += 1
        self._charges[request_id] = charge
        self._journal.put(SETTLED, self._channel, charge.to_bytes(16) + self._serial.to_bytes(8), request_id)
        if len(self._charges) > FINISHED_KEPT:
            oldest = next(iter(self._charges))
            del self._charges[oldest]
            self._journal.put(SETTLED, self._channel, None, oldest)

    def load(self, entries: Iterable[tuple[RequestId, bytes]]) -> None:
        """Read rows back, oldest first by serial."""
        for request_id, value in sorted(entries, key=lambda entry: entry[1][16:24]):
            self._charges[request_id] = int.from_bytes(value[:16])
            self._serial = int.from_bytes(value[16:24])


def prefixes(channel: Digest) -> tuple[bytes, ...]:
    """Where all rows of one channel are."""
    return tuple(kind + channel for kind in (CONFIG, STATE, RESERVED, SETTLED, KEY))


def split(rows: Iterable[tuple[bytes, bytes]]) -> dict[Digest, dict[bytes, list[tuple[bytes, bytes]]]]:
    """Rows by channel, then by letter: (what follows the channel, value)."""
    found: dict[Digest, dict[bytes, list[tuple[bytes, bytes]]]] = {}
    for key, value in rows:
        if len(key) < 33 or key[:1] not in (CONFIG, STATE, RESERVED, SETTLED, KEY):
            raise LocalError("a row of a payment book has a key that no book writes", rule="PAY-17")
        found.setdefault(Digest(key[1:33]), {}).setdefault(key[:1], []).append((key[33:], value))
    return found
