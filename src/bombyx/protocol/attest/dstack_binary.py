# SPDX-License-Identifier: Apache-2.0
"""dstack's versioned attestation, version 0, of a TDX machine: what `Attest` answers, in the SCALE encoding.

Lengths are SCALE's compact integers; a field follows the other without names. Not here: version 1 (MessagePack, newer
agents) and machines other than plain TDX, which are refused by name, not misread.
Always: bounded; every byte is read and none is left over; nothing of it is verified.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.events import MAX_EVENTS, RUNTIME_EVENT, Event, write_event_log

MAX_ATTESTATION: Final = 1 << 20  # bytes; real ones have 20 kB
REPORT_DATA: Final = 64
_TDX: Final = 0
_MESSAGE_PACK: Final = range(0x80, 0x90)  # how version 1 begins


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryAttestation:
    """What was attested, nothing of it verified."""

    quote: bytes = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)
    report_data: bytes
    config: str = field(repr=False)  # the machine's, JSON

    def event_log(self) -> bytes:
        return write_event_log(self.events)

    def encode(self) -> bytes:
        events = b"".join(_write_event(event) for event in self.events)
        runtime = [event for event in self.events if event.kind == RUNTIME_EVENT]
        named = b"".join(_block(event.name.encode()) + _block(event.payload) for event in runtime)
        return b"".join(
            (
                bytes((0, _TDX)),
                _block(self.quote),
                _compact(len(self.events)) + events,
                _compact(len(runtime)) + named,
                self.report_data,
                _block(self.config.encode()),
            )
        )


def parse_attestation(raw: bytes) -> BinaryAttestation:
    """Raises `MalformedMessage`."""
    if len(raw) > MAX_ATTESTATION:
        raise _malformed(f"{len(raw)} bytes, at most {MAX_ATTESTATION}")
    if raw[:1] and raw[0] in _MESSAGE_PACK:
        raise _malformed("of version 1 (MessagePack), which this version does not read: ask for GetQuote")
    reader = _Reader(raw)
    if reader.take(1) != b"\0" or reader.take(1) != bytes((_TDX,)):
        raise _malformed("not of version 0, or not of a plain TDX machine")
    quote = reader.block()
    events = tuple(reader.event() for _ in range(reader.count()))
    for _ in range(reader.count()):  # the same events again, of RTMR3 alone
        reader.block(), reader.block()
    found = BinaryAttestation(
        quote=quote, events=events, report_data=reader.take(REPORT_DATA), config=reader.text(reader.block())
    )
    reader.end()
    return found


class _Reader:
    """A position in the bytes that never leaves them."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise _malformed("it ends early")
        return self._data[start : self._at]

    def number(self) -> int:
        """A compact integer: its two lowest bits say how many bytes it has."""
        first = self.take(1)
        mode = first[0] & 3
        if mode == 3:
            raise _malformed("a length beyond all bounds")
        return int.from_bytes(first + self.take((1 << mode) - 1), "little") >> 2

    def count(self) -> int:
        found = self.number()
        if found > MAX_EVENTS:
            raise _malformed(f"{found} events, at most {MAX_EVENTS}")
        return found

    def block(self) -> bytes:
        return self.take(self.number())

    def text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise _malformed("a text that is none") from None

    def event(self) -> Event:
        register, kind = (int.from_bytes(self.take(4), "little") for _ in range(2))
        digest, name, payload = self.block(), self.text(self.block()), self.block()
        if register > 3:
            raise _malformed("an event of a register there is not")
        return Event(register=register, kind=kind, digest=digest, name=name, payload=payload)

    def end(self) -> None:
        if self._at != len(self._data):
            raise _malformed("bytes after its end")


def _write_event(event: Event) -> bytes:
    head = event.register.to_bytes(4, "little") + event.kind.to_bytes(4, "little")
    return head + _block(event.measured()) + _block(event.name.encode()) + _block(event.payload)


def _block(data: bytes) -> bytes:
    return _compact(len(data)) + data


def _compact(value: int) -> bytes:
    for mode, size in enumerate((1, 2, 4)):
        if value < 1 << (8 * size - 2):
            return (value << 2 | mode).to_bytes(size, "little")
    raise ValueError("a length beyond 2^30")


def _malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"dstack attestation: {what}", rule="ATT-6.1")
