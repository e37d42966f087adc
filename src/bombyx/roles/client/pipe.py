# SPDX-License-Identifier: Apache-2.0
"""Between the task that opens an answer and the application that reads it: an ordered, bounded queue that can be left.

Always: a writer waits while `limit` pieces lie unread, unless the reader has gone; the end always gets through.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Pipe:
    """One writer, one reader."""

    __slots__ = ("_ended", "_left", "_limit", "_pieces", "_stir")

    def __init__(self, limit: int) -> None:
        self._limit: int | None = limit
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._left = False
        self._stir = asyncio.Event()

    def hold_all(self) -> None:
        """Never make the writer wait: the reader comes when all is there (the writer bounds the size)."""
        self._limit = None

    async def put(self, piece: bytes) -> None:
        while not self._left and self._limit is not None and len(self._pieces) >= self._limit:
            self._stir.clear()
            await self._stir.wait()
        if not self._left:
            self._pieces.append(piece)
            self._stir.set()

    def end(self) -> None:
        self._ended = True
        self._stir.set()

    def leave(self) -> None:
        """The reader has gone: nothing is kept any more."""
        self._left = True
        self._pieces.clear()
        self._stir.set()

    async def get(self) -> bytes | None:
        """The next piece; None at the end."""
        while not self._pieces:
            if self._ended or self._left:
                return None
            self._stir.clear()
            await self._stir.wait()
        piece = self._pieces.popleft()
        self._stir.set()
        return piece
