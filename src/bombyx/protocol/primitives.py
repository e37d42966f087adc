# SPDX-License-Identifier: Apache-2.0
"""The nouns everything else is made of: Digest, Address, Amount, Instant, RequestId, Secret.

Always: a value that exists is well formed (right length, right range); a `Secret` does not print itself.
Sizes and hashes are those of SHA-256 (FIPS 180-4), Keccak-256 (Ethereum yellow paper) and EVM addresses.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import Self, SupportsIndex

import sha3

MAX_AMOUNT = 2**128 - 1  # token base units; x402 batch-settlement uses uint128
_new = bytes.__new__  # a hash has its length already; this is on every request's way, a dozen times
_new_int = int.__new__


class Sized(bytes):
    """Bytes of one fixed length that print as hex."""

    SIZE: int = 0
    __slots__ = ()

    def __new__(cls, value: bytes | bytearray | memoryview) -> Self:
        if len(value) != cls.SIZE:
            raise ValueError(f"{cls.__name__} takes {cls.SIZE} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read hex, with or without 0x."""
        return cls(bytes.fromhex(text.removeprefix("0x")))

    @classmethod
    def zero(cls) -> Self:
        """All zero bytes: "none" where an EVM struct has no room for absence."""
        return cls(bytes(cls.SIZE))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()[:12]}…)"

    def __str__(self) -> str:
        return "0x" + self.hex()


class Digest(Sized):
    """32 bytes: a SHA-256 or Keccak-256 value, or an EVM bytes32."""

    SIZE = 32
    __slots__ = ()


class Address(Sized):
    """20 bytes: an EVM account or contract. `str()` gives the EIP-55 checksum form."""

    SIZE = 20
    __slots__ = ()

    def __str__(self) -> str:
        plain = self.hex()
        check = keccak256(plain.encode()).hex()
        return "0x" + "".join(c.upper() if int(h, 16) >= 8 else c for c, h in zip(plain, check, strict=False))


class RequestId(Sized):
    """16 random bytes that name one request for ever."""

    SIZE = 16
    __slots__ = ()


class Amount(int):
    """Token base units, 0 .. 2^128-1. Never a float, never negative."""

    __slots__ = ()

    def __new__(cls, value: SupportsIndex) -> Self:
        number = _new_int(cls, value)
        if number < 0 or number >> 128:
            raise ValueError(f"an Amount lies in 0 .. 2^128-1, not {int(number)}")
        return number


class Instant(int):
    """Milliseconds since 1970-01-01T00:00:00Z. Arrives as an argument; the protocol has no clock."""

    __slots__ = ()

    def __new__(cls, milliseconds: SupportsIndex) -> Self:
        number = _new_int(cls, milliseconds)
        if not 0 <= number < 2**63:
            raise ValueError(f"an Instant lies in 0 .. 2^63-1 ms, not {int(number)}")
        return number

    @classmethod
    def from_seconds(cls, seconds: float) -> Self:
        return cls(int(seconds * 1000))

    @property
    def seconds(self) -> int:
        """Whole seconds, rounded down."""
        return int(self) // 1000

    def plus(self, *, seconds: float = 0) -> Instant:
        """This moment and `seconds` more (or less)."""
        return Instant(int(self) + int(seconds * 1000))


class Secret:
    """Bytes that must not be printed, logged or compared in variable time. `reveal()` is easy to grep for."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(hashlib.sha256(self._value).digest())

    def __repr__(self) -> str:
        return f"<secret {len(self._value)} bytes>"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


_sha256 = hashlib.sha256


def sha256(first: bytes = b"", *more: bytes) -> Digest:
    """SHA-256 over the concatenation of the parts."""
    h = _sha256(first)
    if more:
        for part in more:
            h.update(part)
    return _new(Digest, h.digest())


def keccak256(*parts: bytes) -> Digest:
    """Keccak-256 (the EVM's) over the concatenation of `parts`."""
    return _new(Digest, sha3.keccak_256(b"".join(parts)).digest())


@functools.lru_cache(maxsize=256)
def _label(tag: str) -> bytes:
    return tag.encode() + b"\x00"


def tagged_hash(tag: str, *parts: bytes) -> Digest:
    """SHA-256(tag || 0x00 || parts): one tag per meaning, so that no hash can be read as another."""
    return sha256(_label(tag), *parts)
