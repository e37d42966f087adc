# SPDX-License-Identifier: Apache-2.0
"""A model's token table: turns output ids into the bytes they stand for. It is NOT a tokenizer and never makes ids.

A client that holds the table named by the model manifest checks that the text it got is that of the ids it pays for.
Which relations between text and ids are honest (RCT-6):

    equal             the text is exactly the bytes of the ids; special tokens (end of turn) stand for no bytes
    cut at stop       finish "stop": the ids go on with one of the request's stop strings, which the engine cut away;
                      the last id is the one that completed the stop string, so no id can hide behind it
    tail dropped      the ids end inside a UTF-8 character, which the engine did not show (finish "length")
    replaced          the engine shows U+FFFD where the ids are not UTF-8

Always: an id outside the table is refused; a table whose parts do not fit together is refused when it is read.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Final, Self

from bombyx.errors import MalformedMessage
from bombyx.protocol.wire.codec import Message

MAX_TOKENS: Final = 1_048_576  # the largest vocabulary in use has about 262 000
MAX_TOKEN: Final = 65_535  # bytes of one token; what a u16 holds


class Relation(StrEnum):
    """How a text is the text of its ids."""

    EQUAL = "equal"
    CUT_AT_STOP = "cut at stop"
    TAIL_DROPPED = "tail dropped"
    REPLACED = "replaced"


@dataclass(frozen=True, kw_only=True)  # no slots: the offsets below are computed once and kept beside the fields
class TokenTable(Message):
    """Every token's bytes, in id order. Its digest stands in `ModelManifest.tokenizer`."""

    TAG: ClassVar[int] = 27013
    MAX_SIZE: ClassVar[int] = 16 * 1024 * 1024

    v: int
    joined: bytes  # the bytes of all tokens, one after another
    lengths: bytes  # u16 big-endian per token
    special: bytes  # one bit per token, lowest bit first: stands for no bytes in the text
    strip_leading_space: bool  # sentencepiece: the text may lack the first token's leading space

    def __post_init__(self) -> None:
        if len(self.lengths) % 2 or len(self.lengths) > 2 * MAX_TOKENS:
            raise MalformedMessage("TokenTable: lengths are not a bounded list of u16", rule="WIRE-3")
        if len(self.special) != (self.size + 7) // 8:
            raise MalformedMessage("TokenTable: not one special bit per token", rule="WIRE-3")
        if self._offsets[-1] != len(self.joined):
            raise MalformedMessage("TokenTable: the lengths do not add up to the bytes", rule="WIRE-3")

    @classmethod
    def build(cls, tokens: Sequence[bytes], special: Iterable[int], *, strip_leading_space: bool = False) -> Self:
        """The table of `tokens`, of which those with an id in `special` stand for nothing."""
        if len(tokens) > MAX_TOKENS or any(len(token) > MAX_TOKEN for token in tokens):
            raise MalformedMessage("TokenTable: too many tokens, or one too long", rule="WIRE-2")
        bits = bytearray((len(tokens) + 7) // 8)
        for token in special:
            bits[token >> 3] |= 1 << (token & 7)
        return cls(
            v=1,
            joined=b"".join(tokens),
            lengths=struct.pack(f">{len(tokens)}H", *map(len, tokens)),
            special=bytes(bits),
            strip_leading_space=strip_leading_space,
        )

    @property
    def size(self) -> int:
        """How many tokens there are; ids are 0 .. size-1."""
        return len(self.lengths) // 2

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        return (0, *itertools.accumulate(struct.unpack(f">{self.size}H", self.lengths)))

    def is_special(self, token: int) -> bool:
        """Does this id stand for no bytes?"""
        self._check(token)
        return bool(self.special[token >> 3] >> (token & 7) & 1)

    def piece(self, token: int) -> bytes:
        """The bytes one id adds to the text."""
        if self.is_special(token):
            return b""
        return self.joined[self._offsets[token] : self._offsets[token + 1]]

    def name(self, token: int) -> bytes:
        """The bytes written in the table, for special tokens too."""
        self._check(token)
        return self.joined[self._offsets[token] : self._offsets[token + 1]]

    def detokenise(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Raises `MalformedMessage` for an id the table does not have."""
        return b"".join(map(self.piece, ids))

    def relation(self, text: str, ids: Sequence[int], finish: str, stop: Sequence[str] = ()) -> Relation | None:
        """How `text` is the text of `ids`; None when it is not. `stop` are the stop strings of the request."""
        raw = self.detokenise(ids)
        found = _relation(text, raw)
        if found is None and self.strip_leading_space and raw.startswith(b" "):
            found = _relation(text, raw[1:])
        if found is None and finish == "stop" and self._is_cut(text, ids, raw, stop):
            found = Relation.CUT_AT_STOP
        return found

    def matches(self, text: str, ids: Sequence[int], finish: str, stop: Sequence[str] = ()) -> bool:
        """Is `text` the text of `ids`?"""
        return self.relation(text, ids, finish, stop) is not None

    def _is_cut(self, text: str, ids: Sequence[int], raw: bytes, stop: Sequence[str]) -> bool:
        shown = text.encode("utf-8", "surrogatepass")
        if not ids or not raw.startswith(shown):
            return False
        before_last = len(raw) - len(self.piece(ids[-1]))
        for word in stop:
            cut = word.encode("utf-8", "surrogatepass")
            # The stop string must end inside the last token: an engine stops at once, later ids would be invented.
            if cut and raw.startswith(cut, len(shown)) and len(shown) + len(cut) > before_last:
                return True
        return False

    def _check(self, token: int) -> None:
        if not 0 <= token < self.size:
            raise MalformedMessage(f"token id outside the table of {self.size}", rule="RCT-6")


def _relation(text: str, raw: bytes) -> Relation | None:
    shown = text.encode("utf-8", "surrogatepass")
    if raw == shown:
        return Relation.EQUAL
    if raw.startswith(shown) and _is_started_character(raw[len(shown) :]):
        return Relation.TAIL_DROPPED
    if "\ufffd" in text and raw.decode("utf-8", "replace") == text:
        return Relation.REPLACED
    return None


def _is_started_character(tail: bytes) -> bool:
    """Is `tail` the beginning, but not the whole, of one UTF-8 character?"""
    if not 1 <= len(tail) <= 3 or any(byte & 0xC0 != 0x80 for byte in tail[1:]):
        return False
    size = 2 if tail[0] >> 5 == 0b110 else 3 if tail[0] >> 4 == 0b1110 else 4 if tail[0] >> 3 == 0b11110 else 0
    return len(tail) < size
