# SPDX-License-Identifier: Apache-2.0
"""A message class' scanner, written out once from its fields: canonical bytes in, the message out, in a tenth the time.

A canonical message leaves no choice: the same names in the same order, every length in its shortest form. So a scanner
compares what must stand there and takes what is between, where a general reader builds a tree that is read, written
again and compared. It is NOT the judge: of anything it does not expect it says nothing (None), and `codec.py` reads
those bytes the long way, which also says what is wrong with them. A test holds the two equal.

Always: what a scanner takes encodes to the very bytes it was given (WIRE-1); only names of fields enter its source.
"""

from __future__ import annotations

import enum
import functools
import struct
import types
from collections.abc import Callable
from typing import Any, Final, Union, get_args, get_origin

from bombyx.protocol.primitives import Amount, Digest, Instant, Sized
from bombyx.protocol.wire.compiled import MAX_ITEMS, fields_of, front_of, inner_of, text

Scan = Callable[[bytes], Any]
Part = Callable[[bytes, int], tuple[Any, int]]  # (what stands at a position, the position after it)

_NULL, _FALSE, _TRUE = 0xF6, 0xF4, 0xF5
_U16, _U32, _U64 = struct.Struct(">H").unpack_from, struct.Struct(">I").unpack_from, struct.Struct(">Q").unpack_from
_new_bytes, _new_int = bytes.__new__, int.__new__


class _Unexpected(Exception):
    """Not what a canonical message has here: the long way decides."""


@functools.cache
def scanner(cls: Any) -> Scan:
    """A function from canonical bytes to a message of this class; None where it is not sure."""
    part = part_of(cls)

    def scan(data: bytes) -> Any:
        try:
            message, end = part(data, 0)
        except (_Unexpected, IndexError, ValueError, TypeError, OverflowError, struct.error):
            return None
        return message if end == len(data) else None

    return scan


@functools.cache
def part_of(cls: Any) -> Part:
    """The scanner of a class, for messages inside of messages."""
    fields = fields_of(cls)
    front = front_of(cls)
    known: dict[str, Any] = {"new": object.__new__, "cls": cls, "front": front, "Unexpected": _Unexpected}
    lines = ["def part(d, p):", f" e = p + {len(front)}", " if d[p:e] != front: raise Unexpected", " p = e"]
    for place, name in enumerate(sorted(fields, key=text)):
        lines += _field(place, text(name), fields[name], known)
        known[f"set{place}"] = _setter(cls, name)
    lines.append(" m = new(cls)")
    lines += [f" set{place}(m, v{place})" for place in range(len(fields))]
    if hasattr(cls, "__post_init__"):
        lines.append(" m.__post_init__()")
    lines.append(" return m, p")
    exec(compile("\n".join(lines), "<scanner>", "exec"), known)  # noqa: S102 - our own field names and nothing else
    part: Part = known["part"]
    return part


def _setter(cls: Any, name: str) -> Callable[[Any, Any], None]:
    """Sets a field of a message that is being made, past its refusal to change."""
    slot = cls.__dict__.get(name)
    if slot is None:  # a class without slots
        return lambda message, value: object.__setattr__(message, name, value)
    setter: Callable[[Any, Any], None] = slot.__set__
    return setter


def _field(place: int, name: bytes, hint: Any, known: dict[str, Any]) -> list[str]:
    """The lines that read one field into v<place> and move p behind it."""
    if isinstance(hint, type) and issubclass(hint, Sized):  # one comparison for name and length, one slice
        head = bytes([0x58, hint.SIZE]) if hint.SIZE >= 24 else bytes([0x40 | hint.SIZE])
        known[f"name{place}"], known[f"cls{place}"], known["bytes_new"] = name + head, hint, _new_bytes
        return [
            f" e = p + {len(name + head)}",
            f" if d[p:e] != name{place}: raise Unexpected",
            f" p = e + {hint.SIZE}",
            f" v{place} = bytes_new(cls{place}, d[e:p])",
        ]
    known[f"name{place}"], known[f"part{place}"] = name, _part(hint)
    if hint is int:  # most are small
        return [
            f" e = p + {len(name)}",
            f" if d[p:e] != name{place}: raise Unexpected",
            f" v{place} = d[e]",
            " p = e + 1",
            f" if v{place} >= 24: v{place}, p = part{place}(d, e)",
        ]
    return [
        f" e = p + {len(name)}",
        f" if d[p:e] != name{place}: raise Unexpected",
        f" v{place}, p = part{place}(d, e)",
    ]


def _part(hint: Any) -> Part:
    origin = get_origin(hint)
    if origin is tuple:
        item = get_args(hint)[0]
        return _digests if item is Digest else functools.partial(_list, _part(item))
    if origin in (Union, types.UnionType):
        return functools.partial(_optional, _part(inner_of(hint)))
    if hasattr(hint, "TAG"):
        return part_of(hint)
    if issubclass(hint, enum.Enum):
        write = text if issubclass(hint, str) else _small
        return functools.partial(_member, {write(member.value): member for member in hint})
    if issubclass(hint, Sized):
        return functools.partial(_sized, hint)
    return _PLAIN[hint]


def _small(value: int) -> bytes:
    return bytes([value]) if value < 24 else b""  # no message has a larger one; it would be read the long way


# --- what stands at a position ---------------------------------------------------------------------------------------


def _number(d: bytes, p: int, major: int = 0) -> tuple[int, int]:
    """A number in its shortest form, or the length of something."""
    first = d[p] - major
    if 0 <= first < 24:
        return first, p + 1
    if first == 24:
        value, p, least = d[p + 1], p + 2, 24
    elif first == 25:
        (value,), p, least = _U16(d, p + 1), p + 3, 1 << 8
    elif first == 26:
        (value,), p, least = _U32(d, p + 1), p + 5, 1 << 16
    elif first == 27:
        (value,), p, least = _U64(d, p + 1), p + 9, 1 << 32
    else:
        raise _Unexpected  # a number of more than 64 bits among others
    if value < least:
        raise _Unexpected
    return value, p


def _bytes(d: bytes, p: int) -> tuple[bytes, int]:
    size, p = _number(d, p, 0x40)
    return d[p : p + size], p + size


def _sized(make: Any, d: bytes, p: int) -> tuple[Any, int]:
    value, p = _bytes(d, p)
    return make(value), p


def _text(d: bytes, p: int) -> tuple[str, int]:
    size, p = _number(d, p, 0x60)
    return d[p : p + size].decode(), p + size


def _bool(d: bytes, p: int) -> tuple[bool, int]:
    if d[p] not in (_FALSE, _TRUE):
        raise _Unexpected
    return d[p] == _TRUE, p + 1


def _instant(d: bytes, p: int) -> tuple[Instant, int]:
    (value,) = _U64(d, p + 1)
    if d[p] != 0x1B or not 1 << 32 <= value < 1 << 63:  # one of early 1970 is read the long way
        raise _Unexpected
    return _new_int(Instant, value), p + 9


def _amount(d: bytes, p: int) -> tuple[Amount, int]:
    value, p = _number(d, p)
    return _new_int(Amount, value), p


def _member(members: dict[bytes, Any], d: bytes, p: int) -> tuple[Any, int]:
    first = d[p]
    end = p + 1 + (first - 0x60 if 0x60 <= first < 0x78 else 0)
    found = members.get(d[p:end])
    if found is None:
        raise _Unexpected
    return found, end


def _optional(part: Part, d: bytes, p: int) -> tuple[Any, int]:
    return (None, p + 1) if d[p] == _NULL else part(d, p)


def _digests(d: bytes, p: int) -> tuple[tuple[Digest, ...], int]:
    count, p = _number(d, p, 0x80)
    end = p + 34 * count
    if count > MAX_ITEMS or end > len(d) or d[p:end:34] != b"\x58" * count or d[p + 1 : end : 34] != b"\x20" * count:
        raise _Unexpected
    return tuple([_new_bytes(Digest, d[begin : begin + 32]) for begin in range(p + 2, end, 34)]), end


def _list(part: Part, d: bytes, p: int) -> tuple[tuple[Any, ...], int]:
    count, p = _number(d, p, 0x80)
    if count > MAX_ITEMS:
        raise _Unexpected
    found = []
    for _ in range(count):
        value, p = part(d, p)
        found.append(value)
    return tuple(found), p


_PLAIN: Final[dict[Any, Part]] = {
    int: _number, bytes: _bytes, str: _text, bool: _bool, Instant: _instant, Amount: _amount,
}  # fmt: skip
