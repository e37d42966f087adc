# SPDX-License-Identifier: Apache-2.0
"""One codec for every CBOR message: a frozen dataclass that derives `Message` says its fields, this file does the rest.

Wire form: `tag(TAG, {field name: value})` in deterministic CBOR (RFC 8949 section 4.2). Each message type has a tag of
its own, so that no signed or hashed message can be read as another.

Always: decode(encode(m)) == m; encode(decode(b)) == b, hence every other spelling of a message is refused; unknown,
missing or ill-typed fields are refused; sizes are bounded before anything is decoded (docs/spec, WIRE-1 .. WIRE-4).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Self, Union, cast, get_args, get_origin, get_type_hints

import cbor2

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Digest, sha256

MAX_MESSAGE = 1 << 20  # bytes; the largest message (an Evidence bundle with endorsements) is about 60 kB
MAX_ITEMS = 1 << 18  # elements of one list; output ids of a long answer. What bounds memory is MAX_SIZE, a byte an item

_AS_IS: Final = frozenset({bytes, str, int, bool, types.NoneType})  # what needs no look: the encoder is a hot path
Converter = Callable[[Any], Any]


class Message:
    """Base of every CBOR message. Subclasses are frozen dataclasses with a class constant `TAG`."""

    TAG: ClassVar[int] = 0
    MAX_SIZE: ClassVar[int] = MAX_MESSAGE
    __slots__ = ()

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor2.dumps(cbor2.CBORTag(self.TAG, _fields_of(self)), canonical=True)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes. Raises `MalformedMessage` for anything else."""
        if len(data) > cls.MAX_SIZE:
            raise MalformedMessage(f"{cls.__name__} of {len(data)} bytes, at most {cls.MAX_SIZE}", rule="WIRE-2")
        message = cls._from_value(_loads(cls.__name__, data))
        if message.encode() != data:
            raise MalformedMessage(f"{cls.__name__} is not in its canonical encoding", rule="WIRE-1")
        return message

    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes: the message's name."""
        return sha256(self.encode())

    @classmethod
    def _from_value(cls, value: Any) -> Self:
        if not isinstance(value, cbor2.CBORTag) or value.tag != cls.TAG:
            raise MalformedMessage(f"expected {cls.__name__} (tag {cls.TAG})", rule="WIRE-1")
        body = value.value
        plan: dict[str, Converter] = _plan(cls)  # type: ignore[arg-type]  # mypy: Self is not seen as hashable
        if not isinstance(body, Mapping) or set(body) != set(plan):
            raise MalformedMessage(f"{cls.__name__} has the wrong fields", rule="WIRE-3")
        try:
            return cls(**{name: convert(body[name]) for name, convert in plan.items()})
        except MalformedMessage:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            raise MalformedMessage(f"{cls.__name__}: {error}", rule="WIRE-3") from None


def _loads(name: str, data: bytes) -> Any:
    try:
        return cbor2.loads(data)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, EOFError, MemoryError):
        raise MalformedMessage(f"{name} is not CBOR", rule="WIRE-1") from None


def _fields_of(message: Any) -> dict[str, Any]:
    names = _names(type(message))  # type: ignore[arg-type]  # mypy: a class is not seen as hashable
    return {name: _plain(getattr(message, name)) for name in names}


@functools.cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def _plain(value: Any) -> Any:
    if type(value) in _AS_IS:
        return value
    if isinstance(value, Message):
        return cbor2.CBORTag(value.TAG, _fields_of(value))
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no wire form")


@functools.cache
def _plan(cls: type[Message]) -> dict[str, Converter]:
    hints = get_type_hints(cls)
    return {f.name: _converter(hints[f.name]) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _converter(hint: Any) -> Converter:
    origin: Any = get_origin(hint)
    if origin is tuple:
        return functools.partial(_read_tuple, _converter(get_args(hint)[0]))
    if origin in (Union, types.UnionType):
        inner = [arg for arg in get_args(hint) if arg is not type(None)]
        return functools.partial(_read_optional, _converter(inner[0]))
    if issubclass(hint, Message):
        return cast(Converter, hint._from_value)
    if issubclass(hint, enum.Enum):
        return cast(Converter, hint)
    if hint is bool:
        return functools.partial(_read_exact, bool, bool)
    for base in (bytes, str, int):
        if issubclass(hint, base):
            return functools.partial(_read_exact, base, hint)
    raise TypeError(f"{hint} has no wire form")


def _read_exact(base: type, make: Callable[[Any], Any], value: Any) -> Any:
    if not isinstance(value, base) or (base is int and isinstance(value, bool)):
        raise MalformedMessage(f"expected {base.__name__}, got {type(value).__name__}", rule="WIRE-3")
    if isinstance(value, int) and value < 0:
        raise MalformedMessage("negative numbers have no place on the wire", rule="WIRE-3")
    return make(value)


def _read_tuple(item: Converter, value: Any) -> tuple[Any, ...]:
    # cbor2 reads what stands inside a tag as immutable values: tuples, not lists
    if not isinstance(value, (list, tuple)) or len(value) > MAX_ITEMS:
        raise MalformedMessage(f"expected a list of at most {MAX_ITEMS}", rule="WIRE-3")
    return tuple(item(entry) for entry in value)


def _read_optional(item: Converter, value: Any) -> Any:
    return None if value is None else item(value)
