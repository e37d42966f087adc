# SPDX-License-Identifier: Apache-2.0
"""Requests on their way in: pieces of each stream, one bound over all of them.

Always: the bytes held never exceed the bound; a request above its own bound is refused before more of it is kept.
"""

from __future__ import annotations

from bombyx.errors import BadRequest, Overloaded, Peer

Key = tuple[int, int]  # link, stream


class Uploads:
    """Unfinished requests of all links of one worker."""

    __slots__ = ("_held", "_limit", "_newest", "_parts")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._parts: dict[Key, bytearray] = {}
        self._newest: dict[Key, float] = {}  # when the last part came, monotonic seconds

    @property
    def held(self) -> int:
        """Bytes kept now."""
        return self._held

    def holds(self, key: Key) -> bool:
        return key in self._parts

    def add(self, key: Key, part: bytes, most: int, now: float) -> None:
        have = len(self._parts.get(key, b""))
        if have + len(part) > most:
            raise BadRequest(f"a request of more than {most} bytes", status=413, peer=Peer.CLIENT, rule="LINK-3")
        if self._held + len(part) > self._limit:
            raise Overloaded("too many bytes of unfinished requests", retry_after=1.0, rule="LINK-3")
        self._parts.setdefault(key, bytearray()).extend(part)
        self._held += len(part)
        self._newest[key] = now

    def stalled(self, before: float) -> list[Key]:
        """Requests of which nothing has come since `before`."""
        return [key for key, newest in self._newest.items() if newest < before]

    def take(self, key: Key) -> bytes:
        part = self._parts.pop(key)
        self._newest.pop(key, None)
        self._held -= len(part)
        return bytes(part)

    def drop(self, key: Key) -> bool:
        """Forget a request. True when there was one."""
        part = self._parts.pop(key, None)
        self._newest.pop(key, None)
        if part is None:
            return False
        self._held -= len(part)
        return True
