# SPDX-License-Identifier: Apache-2.0
"""Requests that come to us."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class HttpRequest(Protocol):
    """One whole request: within limits, unambiguous (RFC 9112 section 6.3). Header names in lower case."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def query(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes: ...

    @property
    def peer(self) -> str: ...


class HttpExchange(Protocol):
    """One request and the way to answer it: `respond` at once, or `start`, `write`..., `end`.

    - Nothing here blocks or raises when the other side is gone: `disconnected` is true and writes go nowhere.
    - `on_disconnect` must be called once, and only if the other side goes before the answer ended.
    - `paused` is true while the other side reads slower than we write; `on_resume` is called when it catches up.
    - `abort` must cut the connection so that the other side sees a truncated answer, never a short one.
    """

    on_disconnect: Callable[[], None] | None
    on_resume: Callable[[], None] | None

    @property
    def request(self) -> HttpRequest: ...

    @property
    def paused(self) -> bool: ...

    @property
    def disconnected(self) -> bool: ...

    @property
    def started(self) -> bool: ...

    def respond(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None: ...

    def start(self, status: int, headers: Mapping[str, str]) -> None: ...

    def write(self, data: bytes) -> None: ...

    def end(self, data: bytes = b"") -> None: ...

    def abort(self) -> None: ...

    async def drain(self) -> None: ...


HttpHandler = Callable[[HttpExchange], None]  # may start a task; must not block
