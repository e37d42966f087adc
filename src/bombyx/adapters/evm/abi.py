# SPDX-License-Identifier: Apache-2.0
"""The contract ABI as far as our calls go: words, tuples, arrays and bytes, written and read by hand.

It is NOT a general encoder: whoever calls says what is static and what has a tail. Reading is bounded and raises
`Unavailable`: a node that answers rubbish is a node that does not answer (LEDGER-2).
Source: Solidity documentation, "Contract ABI Specification".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from bombyx.errors import Unavailable
from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.eip712 import word

WORD: Final = 32
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tail:
    """A value of dynamic size: its head is an offset, its bytes come after all heads."""

    data: bytes


Part = bytes | Tail


def selector(signature: str) -> bytes:
    """The first four bytes of a call: `selector("settle(address,address)")`."""
    return keccak256(signature.encode())[:4]


def call(signature: str, *parts: Part) -> bytes:
    """Calldata. Static parts are whole words; a static tuple is its words in a row."""
    return selector(signature) + sequence(*parts)


def sequence(*parts: Part) -> bytes:
    """Heads, then tails: the body of a call, a tuple or an array."""
    at = sum(WORD if isinstance(part, Tail) else len(part) for part in parts)
    heads, tails = [], []
    for part in parts:
        if isinstance(part, Tail):
            heads.append(word(at))
            tails.append(part.data)
            at += len(part.data)
        else:
            heads.append(part)
    return b"".join([*heads, *tails])


def blob(data: bytes) -> Tail:
    """`bytes` or `string`."""
    return Tail(word(len(data)) + data + bytes(-len(data) % WORD))


def array(items: Sequence[Part]) -> Tail:
    """`T[]`; items are words, or tails where T is dynamic."""
    return Tail(word(len(items)) + sequence(*items))


def struct(*parts: Part) -> Tail:
    """A tuple with a dynamic member."""
    return Tail(sequence(*parts))


class Reader:
    """One encoded sequence. Indices count words from its start."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def word(self, index: int) -> bytes:
        found = self._data[index * WORD : (index + 1) * WORD]
        if len(found) != WORD:
            raise Unavailable(f"the chain's answer is too short: {len(self._data)} bytes", rule="LEDGER-2")
        return found

    def uint(self, index: int) -> int:
        return int.from_bytes(self.word(index))

    def digest(self, index: int) -> Digest:
        return Digest(self.word(index))

    def address(self, index: int) -> Address:
        return Address(self.word(index)[12:])

    def inside(self, index: int) -> Reader:
        """The tail whose offset stands at `index`."""
        offset = self.uint(index)
        if offset > len(self._data):
            raise Unavailable("an offset in the chain's answer leads nowhere", rule="LEDGER-2")
        return Reader(self._data[offset:])

    def blob(self, index: int) -> bytes:
        inner = self.inside(index)
        size = inner.uint(0)
        found = inner._data[WORD : WORD + size]
        if len(found) != size:
            raise Unavailable("the chain's answer is cut short", rule="LEDGER-2")
        return found

    def items(self, index: int, read: Callable[[Reader, int], T], *, width: int = 1) -> list[T]:
        """A `T[]` whose items are `width` static words (or one offset); `read` gets the body and an item's index."""
        inner = self.inside(index)
        count = inner.uint(0)
        body = Reader(inner._data[WORD:])
        if count * width * WORD > len(body._data):
            raise Unavailable("an array in the chain's answer is cut short", rule="LEDGER-2")
        return [read(body, n * width) for n in range(count)]
