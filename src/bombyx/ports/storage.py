# SPDX-License-Identifier: Apache-2.0
"""Where a role keeps what it must not forget, and leases of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to change what `name` stands for. `token` is larger than that of every earlier lease of the name."""

    name: bytes
    token: int


class Write(NamedTuple):
    """One row of a batch. `value` None deletes. `lease`: what the row's owner must still hold for it to be written."""

    table: str
    key: bytes
    value: bytes | None
    lease: Lease | None = None


class Store(Protocol):
    """Durable rows, written before they are acted on.

    - `write` must return only when the whole batch would survive a crash (group commit allowed), all rows or none.
    - `write` must raise `LeaseLost`, and write nothing, when a row's lease has a successor. A store that one process
      alone uses has no leases to check.
    - `read` and `scan` must see every finished write; `scan` is in key order.
    - Must raise `Unavailable` when it cannot promise this.
    """

    async def write(self, rows: Sequence[Write]) -> None: ...

    async def read(self, table: str, key: bytes) -> bytes | None: ...

    async def scan(self, table: str, *, prefix: bytes = b"", limit: int | None = None) -> list[tuple[bytes, bytes]]: ...

    async def close(self) -> None: ...


class Leases(Protocol):
    """Which of several processes over one store has what in hand. One object a process: the holder.

    - A name must have one holder at a time. `acquire` must raise `HeldElsewhere`, with the holder's URL, while another
      process has the name and has renewed within the time to live; the store's clock decides, never a holder's.
    - `acquire` of a name that lapsed must make its older leases worthless at once: the store refuses their rows.
    - `announce` says how this holder is reached: what others hear in `HeldElsewhere`.
    - `renew` keeps everything this holder has, and must return the names that were taken from it since.
    - `leave` gives everything back, so that others need not wait. After it nothing else is called.
    """

    async def acquire(self, name: bytes) -> Lease: ...

    async def announce(self, url: str) -> None: ...

    async def release(self, leases: Sequence[Lease]) -> None: ...

    async def renew(self) -> frozenset[bytes]: ...

    async def leave(self) -> None: ...
