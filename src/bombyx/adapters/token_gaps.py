# SPDX-License-Identifier: Apache-2.0
"""Finds the output ids llama.cpp withholds in a stream. NOT a tokenizer: it works from counts and shown bytes.

llama.cpp sends an id with each piece of text, but not the ids of pieces it holds back: those that end inside a UTF-8
character, and those that might be the beginning of a stop string. Its running count still tells how many there were,
and the text that follows tells their bytes. Usually exactly one sequence of that many tokens spells those bytes.

Always: the ids given and found, taken together, spell the text shown so far; `lost` counts ids that could not be found,
`ambiguous` says that more than one sequence would have fitted somewhere.
"""

from __future__ import annotations

from typing import Final

from bombyx.protocol.wire.tokens import TokenTable

MAX_GAP: Final = 256  # bytes between two known tokens; a withheld emoji has up to 28
MAX_MISSING: Final = 64  # tokens in one gap


class TokenIndex:
    """Which ids stand for which bytes. Built once per model."""

    def __init__(self, table: TokenTable, end_of_text: int | None = None) -> None:
        self.table = table
        self.end_of_text = end_of_text
        self._ids: dict[bytes, int] = {}
        for token in range(table.size):
            if piece := table.piece(token):
                self._ids.setdefault(piece, token)

    def readings(self, data: bytes, count: int) -> list[tuple[int, ...]]:
        """Up to two sequences of exactly `count` tokens that spell `data`, longer first tokens first."""
        if len(data) > MAX_GAP or not 0 <= count <= min(len(data), MAX_MISSING):
            return [()] if count == 0 and not data else []
        found: list[tuple[int, ...]] = []
        self._search(data, 0, count, [], found, set())
        return found

    def _search(
        self,
        data: bytes,
        start: int,
        count: int,
        path: list[int],
        found: list[tuple[int, ...]],
        dead: set[tuple[int, int]],
    ) -> None:
        left = len(data) - start
        if len(found) == 2 or (start, count) in dead:
            return
        if count == 0:
            if left == 0:
                found.append(tuple(path))
            return
        before = len(found)
        for end in range(len(data) - count + 1, start, -1):
            token = self._ids.get(data[start:end])
            if token is not None:
                self._search(data, end, count - 1, [*path, token], found, dead)
        if len(found) == before:
            dead.add((start, count))


class GapFiller:
    """Follows one choice of one stream."""

    def __init__(self, index: TokenIndex) -> None:
        self._index = index
        self._ahead = b""  # bytes of known ids the text has not shown yet
        self.count = 0  # tokens the engine says it made, up to here
        self.lost = 0
        self.ambiguous = False

    def take(self, text: bytes, ids: tuple[int, ...], count: int | None) -> tuple[int, ...]:
        """The ids of this event: those withheld before it and those it carries. `count` is the engine's so far."""
        missing = 0 if count is None else count - self.count - len(ids)
        self.count += len(ids) + max(0, missing)
        tail = self._index.table.detokenise(ids)
        if missing <= 0:
            self._advance(self._ahead + tail, text)
            return ids
        gap = text[len(self._ahead) : len(text) - len(tail)]
        if text != self._ahead + gap + tail:
            return self._give_up(ids, missing)
        readings = self._index.readings(gap, missing)
        if not readings:
            return self._give_up(ids, missing)
        self._ahead = b""
        self.ambiguous |= len(readings) > 1
        return readings[0] + ids

    def end(self, total: int, *, by_model: bool) -> tuple[int, ...]:
        """What is still missing when the engine has finished with `total` tokens.

        When the model ended its turn itself (`by_model`), that is the end-of-turn token; a stop string's tokens, or
        half a character's at the output limit, are not known.
        """
        missing, self.count = total - self.count, max(total, self.count)
        if missing <= 0:
            return ()
        if missing == 1 and by_model and self._index.end_of_text is not None:
            return (self._index.end_of_text,)
        self.lost += missing
        return ()

    def _advance(self, known: bytes, text: bytes) -> None:
        self._ahead = known[len(text) :] if known.startswith(text) else b""

    def _give_up(self, ids: tuple[int, ...], missing: int) -> tuple[int, ...]:
        self._ahead = b""
        self.lost += missing
        return ids
