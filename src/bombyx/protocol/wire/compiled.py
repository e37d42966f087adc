# SPDX-License-Identifier: Apache-2.0
"""A message class' encoder and reader, written out once from its fields: what `codec.py` promises, at a fifth the cost.

As `dataclasses` does for `__init__`, the source of two functions is put together and compiled. The encoder joins what
never changes (heads, field names in canonical order) with the values; the reader converts what `cbor2` found. What is
canonical, as nearly everything is, `scanning.py` reads by itself.

Not here: whether foreign bytes are canonical. `codec.py` encodes what was read and compares, so that every spelling but
one is refused. Always: only names of fields enter the source, never a byte of a message.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import struct
import types
from collections.abc import Callable
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import cbor2

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Sized

MAX_ITEMS = 1 << 18  # elements of one list; output ids of a long answer. What bounds memory is MAX_SIZE, a byte an item

Encoder = Callable[[Any], bytes]
Reader = Callable[[Any], Any]
_UINT, _BYTES, _TEXT, _LIST, _MAP, _TAG = 0x00, 0x40, 0x60, 0x80, 0xA0, 0xC0  # major types (RFC 8949 section 3.1)
_NULL, _FALSE, _TRUE = b"\xf6", b"\xf4", b"\xf5"


@functools.cache
def encoder(cls: Any) -> Encoder:
    """A function from a message of this class to its canonical bytes."""
    hints = fields_of(cls)
    known: dict[str, Any] = {"join": b"".join, "front": front_of(cls)}
    parts = ["front"]
    for place, name in enumerate(sorted(hints, key=text)):  # RFC 8949 section 4.2.1: by their encoded bytes
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Sized):
            known[f"name{place}"] = text(name) + _head(_BYTES, hint.SIZE)
            parts.append(f"name{place}, m.{name}")
            continue
        known[f"name{place}"], known[f"write{place}"] = text(name), _encoder_of(hint)
        parts.append(f"name{place}, write{place}(m.{name})")
    encode: Encoder = _compiled(f"lambda m: join(({', '.join(parts)},))", known)
    return encode


@functools.cache
def reader(cls: Any) -> Reader:
    """A function from what `cbor2` read to a message of this class. Raises `MalformedMessage`."""
    known: dict[str, Any] = {"make": cls}
    given = []
    for place, (name, hint) in enumerate(fields_of(cls).items()):
        known[f"read{place}"] = _reader_of(hint)
        given.append(f"{name}=read{place}(b[{name!r}])")
    build = _compiled(f"lambda b: make({', '.join(given)})", known)
    tag, count, title = cls.TAG, len(given), cls.__name__

    def read(value: Any) -> Any:
        if type(value) is not cbor2.CBORTag or value.tag != tag:
            raise MalformedMessage(f"expected {title} (tag {tag})", rule="WIRE-1")
        body = value.value
        if not isinstance(body, _MAPPINGS) or len(body) != count:
            raise MalformedMessage(f"{title} has the wrong fields", rule="WIRE-3")
        try:
            return build(body)
        except MalformedMessage:
            raise
        except KeyError:
            raise MalformedMessage(f"{title} has the wrong fields", rule="WIRE-3") from None
        except (ValueError, TypeError, OverflowError) as error:
            raise MalformedMessage(f"{title}: {error}", rule="WIRE-3") from None

    return read


_MAPPINGS: Final = (dict, cbor2.frozendict)


def _compiled(source: str, known: dict[str, Any]) -> Any:
    return eval(compile(source, "<message>", "eval"), known)  # noqa: S307 - our own field names and nothing else


def _of_message(make: Any, cls: Any) -> Any:
    return make(cls)  # mypy does not see a class as hashable


def fields_of(cls: Any) -> dict[str, Any]:
    """The type of each field, by name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def front_of(cls: Any) -> bytes:
    """What every message of this class begins with."""
    return _head(_TAG, cls.TAG) + _head(_MAP, len(fields_of(cls)))


# --- writing ---------------------------------------------------------------------------------------------------------


def _head(major: int, value: int) -> bytes:
    """Type and length, in the shortest form."""
    if value < 24:
        return bytes((major | value,))
    if value < 1 << 8:
        return bytes((major | 24, value))
    if value < 1 << 16:
        return struct.pack(">BH", major | 25, value)
    if value < 1 << 32:
        return struct.pack(">BI", major | 26, value)
    return struct.pack(">BQ", major | 27, value)


def list_head(count: int) -> bytes:
    """What stands before the `count` elements of a list."""
    return _head(_LIST, count)


_U16, _U32, _U64 = struct.Struct(">BH").pack, struct.Struct(">BI").pack, struct.Struct(">BQ").pack
_SHORT: Final = tuple(_head(_BYTES, size) for size in range(256))
_SMALL: Final = tuple(_head(_UINT, value) for value in range(24))


def _encoder_of(hint: Any) -> Encoder:
    origin: Any = get_origin(hint)
    if origin is tuple:
        return functools.partial(_list, _encoder_of(get_args(hint)[0]))
    if origin in (Union, types.UnionType):
        return functools.partial(_optional, _encoder_of(inner_of(hint)))
    if dataclasses.is_dataclass(hint):
        written: Encoder = _of_message(encoder, hint)
        return written
    if issubclass(hint, enum.Enum):
        as_value = text if issubclass(hint, str) else _number
        return {member: as_value(member.value) for member in hint}.__getitem__
    return _WRITERS[next(base for base in _WRITERS if issubclass(hint, base))]


def _number(value: int) -> bytes:
    if value < 0:
        raise ValueError("negative numbers have no place on the wire")
    if value < 24:
        return _SMALL[value]
    if value < 1 << 8:
        return bytes((24, value))
    if value < 1 << 16:
        return _U16(25, value)
    if value < 1 << 32:
        return _U32(26, value)
    if value < 1 << 64:
        return _U64(27, value)
    return _head(_TAG, 2) + _bytes(value.to_bytes((value.bit_length() + 7) // 8))


def _bytes(value: bytes) -> bytes:
    size = len(value)
    return (_SHORT[size] if size < 256 else _head(_BYTES, size)) + value


def text(value: str) -> bytes:
    encoded = value.encode()
    return _head(_TEXT, len(encoded)) + encoded


def _bool(value: bool) -> bytes:
    return _TRUE if value else _FALSE


def _list(item: Encoder, values: tuple[Any, ...]) -> bytes:
    return list_head(len(values)) + b"".join(map(item, values))


def _optional(item: Encoder, value: Any) -> bytes:
    return _NULL if value is None else item(value)


_WRITERS: Final[dict[type, Encoder]] = {bool: _bool, int: _number, bytes: _bytes, str: text}


# --- reading ---------------------------------------------------------------------------------------------------------


def inner_of(hint: Any) -> Any:
    return next(arg for arg in get_args(hint) if arg is not type(None))


def _reader_of(hint: Any) -> Reader:
    origin: Any = get_origin(hint)
    if origin is tuple:
        return functools.partial(_read_list, _reader_of(get_args(hint)[0]))
    if origin in (Union, types.UnionType):
        return functools.partial(_read_optional, _reader_of(inner_of(hint)))
    if dataclasses.is_dataclass(hint):
        read: Reader = _of_message(reader, hint)
        return read
    if issubclass(hint, enum.Enum):
        base = str if issubclass(hint, str) else int
        return functools.partial(_read_member, base, {member.value: member for member in hint})
    if hint is int:
        return _read_number
    if issubclass(hint, Sized):
        return _reader_of_sized(hint)
    plain = next(base for base in _WRITERS if issubclass(hint, base))
    return functools.partial(_read_exact, plain, None if hint is plain else hint)


def _read_exact(base: type, make: Callable[[Any], Any] | None, value: Any) -> Any:
    if type(value) is not base:
        raise MalformedMessage(f"expected {base.__name__}, got {type(value).__name__}", rule="WIRE-3")
    if isinstance(value, int) and value < 0:
        raise MalformedMessage("negative numbers have no place on the wire", rule="WIRE-3")
    return value if make is None else make(value)


def _reader_of_sized(make: type[Sized]) -> Reader:
    """Digests are most of what is read: the length is looked at once."""
    size, new = make.SIZE, bytes.__new__

    def read(value: Any) -> Any:
        if type(value) is bytes and len(value) == size:
            return new(make, value)
        return _read_exact(bytes, make, value)

    return read


def _read_number(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    _read_exact(int, None, value)
    raise AssertionError


def _read_member(base: type, members: dict[Any, Any], value: Any) -> Any:
    if type(value) is not base or value not in members:
        raise MalformedMessage("a word or number that is not one of those allowed", rule="WIRE-3")
    return members[value]


def _read_list(item: Reader, value: Any) -> tuple[Any, ...]:
    # cbor2 reads what stands inside a tag as immutable values: tuples, not lists
    if not isinstance(value, (list, tuple)) or len(value) > MAX_ITEMS:
        raise MalformedMessage(f"expected a list of at most {MAX_ITEMS}", rule="WIRE-3")
    return tuple(map(item, value))


def _read_optional(item: Reader, value: Any) -> Any:
    return None if value is None else item(value)
