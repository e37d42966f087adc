# SPDX-License-Identifier: Apache-2.0
"""One codec for every CBOR message: a frozen dataclass that derives `Message` says its fields, `compiled.py` the rest.

Wire form: `tag(TAG, {field name: value})` in deterministic CBOR (RFC 8949 section 4.2). Each message type has a tag of
its own, so that no signed or hashed message can be read as another.

Always: decode(encode(m)) == m; encode(decode(b)) == b, hence every other spelling of a message is refused; unknown,
missing or ill-typed fields are refused; sizes are bounded before anything is decoded (docs/spec, WIRE-1 .. WIRE-4).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import cbor2

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.compiled import MAX_ITEMS, encoder, reader
from bombyx.protocol.wire.scanning import scanner

__all__ = ["MAX_ITEMS", "MAX_MESSAGE", "Message"]

MAX_MESSAGE = 1 << 20  # bytes; the largest message (an Evidence bundle with endorsements) is about 60 kB


class Message:
    """Base of every CBOR message. Subclasses are frozen dataclasses with a class constant `TAG`."""

    TAG: ClassVar[int] = 0
    MAX_SIZE: ClassVar[int] = MAX_MESSAGE
    __slots__ = ()

    def encode(self) -> bytes:
        """The canonical bytes."""
        kind: Any = type(self)  # Any: mypy does not see a class as hashable
        return encoder(kind)(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises `MalformedMessage` for anything else."""
        if len(data) > cls.MAX_SIZE:
            raise MalformedMessage(f"{cls.__name__} of {len(data)} bytes, at most {cls.MAX_SIZE}", rule="WIRE-2")
        kind: Any = cls
        message: Self | None = scanner(kind)(data) if type(data) is bytes else None
        return cls._read(data) if message is None else message

    @classmethod
    def _read(cls, data: bytes) -> Self:
        """The long way: read it as CBOR, and see whether it is spelled as we spell it."""
        kind: Any = cls
        message: Self = reader(kind)(_loads(cls.__name__, data))
        if encoder(kind)(message) != data:
            raise MalformedMessage(f"{cls.__name__} is not in its canonical encoding", rule="WIRE-1")
        return message

    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes: the message's name."""
        return sha256(self.encode())


def _loads(name: str, data: bytes) -> Any:
    try:
        return cbor2.loads(data)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, EOFError, MemoryError):
        raise MalformedMessage(f"{name} is not CBOR", rule="WIRE-1") from None
