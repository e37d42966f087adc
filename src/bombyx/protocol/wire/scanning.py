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
    source = _Source(cls, front_of(cls))
    for place, name in enumerate(sorted(fields, key=text)):
        source.field(place, name, fields[name])
    return source.compiled()


class _Source:
    """The scanner of one class, line by line: names and values of fixed size are taken together, by one `struct`."""

    def __init__(self, cls: Any, front: bytes) -> None:
        self._cls = cls
        self._lines: list[str] = []
        self._sets: list[str] = []
        self._known: dict[str, Any] = {"cls": cls, "new": object.__new__, "Unexpected": _Unexpected}
        self._known |= {"bytes_new": _new_bytes, "int_new": _new_int, "number": _number}
        self._name = front  # what must stand there next
        self._run: list[tuple[bytes, str, str]] = []  # name, format and variable of each value of fixed size

    def field(self, place: int, name: str, hint: Any) -> None:
        self._name += text(name)
        self._known[f"set{place}"] = _setter(self._cls, name)
        value = made = f"v{place}"
        if isinstance(hint, type) and issubclass(hint, Sized):
            self._known[hint.__name__] = hint
            self._fixed(bytes([0x58, hint.SIZE] if hint.SIZE >= 24 else [0x40 | hint.SIZE]), f"{hint.SIZE}s", value)
            made = f"bytes_new({hint.__name__}, {value})"
        elif hint is Instant:  # one of early 1970 is shorter, and read the long way
            self._known["Instant"] = hint
            self._fixed(b"\x1b", "Q", value)
            self._sets.append(f" if not {1 << 32} <= {value} < {1 << 63}: raise Unexpected")
            made = f"int_new(Instant, {value})"
        elif hint is int:
            self._fixed(b"", "B", value)
            self._take()
            self._lines.append(f" if {value} >= 24: {value}, p = number(d, p, {value})")
        else:
            self._known[f"part{place}"] = _part(hint)
            self._take()
            self._lines.append(f" {value}, p = part{place}(d, p)")
        self._sets.append(f" set{place}(m, {made})")

    def compiled(self) -> Part:
        self._take()
        after = [" m.__post_init__()"] if hasattr(self._cls, "__post_init__") else []
        lines = ["def part(d, p):", *self._lines, " m = new(cls)", *self._sets, *after, " return m, p"]
        exec(compile("\n".join(lines), "<scanner>", "exec"), self._known)  # noqa: S102 - names of our own fields
        part: Part = self._known["part"]
        return part

    def _fixed(self, head: bytes, form: str, value: str) -> None:
        self._run.append((self._name + head, form, value))
        self._name = b""

    def _take(self) -> None:
        """Write down the run so far, with a name behind it whose value has no fixed size."""
        run = [*self._run, (self._name, "", "")] if self._name else self._run
        self._run, self._name = [], b""
        if not run:
            return
        place = len(self._lines)
        layout = struct.Struct(">" + "".join(f"{len(name)}s{form}" for name, form, _ in run))
        self._known[f"unpack{place}"] = layout.unpack_from
        self._known[f"names{place}"] = tuple(name for name, _, _ in run)
        targets = ", ".join(part for _, _, value in run for part in (("_", value) if value else ("_",)))
        self._lines.append(f" {targets}, = found = unpack{place}(d, p)")
        self._lines.append(f" if found[::2] != names{place}: raise Unexpected")
        self._lines.append(f" p += {layout.size}")


def _setter(cls: Any, name: str) -> Callable[[Any, Any], None]:
    """Sets a field of a message that is being made, past its refusal to change."""
    slot = cls.__dict__.get(name)
    if slot is None:  # a class without slots
        return lambda message, value: object.__setattr__(message, name, value)
    setter: Callable[[Any, Any], None] = slot.__set__
    return setter


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


def _number(d: bytes, p: int, first: int) -> tuple[int, int]:
    """A number, or the length of something, whose first byte (without its type) is before `p`: in its shortest form."""
    if first < 24:
        if first < 0:
            raise _Unexpected
        return first, p
    if first == 24:
        value, p, least = d[p], p + 1, 24
    elif first == 25:
        value, p, least = _U16(d, p)[0], p + 2, 1 << 8
    elif first == 26:
        value, p, least = _U32(d, p)[0], p + 4, 1 << 16
    elif first == 27:
        value, p, least = _U64(d, p)[0], p + 8, 1 << 32
    else:
        raise _Unexpected  # a number of more than 64 bits among others
    if value < least:
        raise _Unexpected
    return value, p


def _int(d: bytes, p: int) -> tuple[int, int]:
    return _number(d, p + 1, d[p])


def _bytes(d: bytes, p: int) -> tuple[bytes, int]:
    size, p = _number(d, p + 1, d[p] - 0x40)
    return d[p : p + size], p + size


def _sized(make: Any, d: bytes, p: int) -> tuple[Any, int]:
    value, p = _bytes(d, p)
    return make(value), p


def _text(d: bytes, p: int) -> tuple[str, int]:
    size, p = _number(d, p + 1, d[p] - 0x60)
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
    value, p = _int(d, p)
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
    count, p = _number(d, p + 1, d[p] - 0x80)
    end = p + 34 * count
    if count > MAX_ITEMS or end > len(d) or d[p:end:34] != b"\x58" * count or d[p + 1 : end : 34] != b"\x20" * count:
        raise _Unexpected
    return tuple([_new_bytes(Digest, d[begin : begin + 32]) for begin in range(p + 2, end, 34)]), end


def _list(part: Part, d: bytes, p: int) -> tuple[tuple[Any, ...], int]:
    count, p = _number(d, p + 1, d[p] - 0x80)
    if count > MAX_ITEMS:
        raise _Unexpected
    found = []
    for _ in range(count):
        value, p = part(d, p)
        found.append(value)
    return tuple(found), p


_PLAIN: Final[dict[Any, Part]] = {
    int: _int, bytes: _bytes, str: _text, bool: _bool, Instant: _instant, Amount: _amount,
}  # fmt: skip
