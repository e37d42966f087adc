# SPDX-License-Identifier: Apache-2.0
"""Step 5: the event log (dstack's JSON form of a TCG log) and its replay to RTMR0-3.

Always: what is read from the log is what was hashed into a register. Claims come from RTMR3's runtime events alone,
whose digests are recomputed from name and payload; another event's digest says nothing of its name, which is not read.
A name that counts may occur once. (ATT-6.5; TCG digests V1 and V2.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.claims import BootClaims
from bombyx.protocol.attest.steps import Found, Refused
from bombyx.protocol.primitives import Digest

RUNTIME_EVENT: Final = 0x0800_0001
MAX_EVENT_LOG: Final = 262_144  # bytes; the logs of real providers are 8 kB
MAX_EVENTS: Final = 512  # real ones have 30
MAX_NAME: Final = 128  # characters
MAX_PAYLOAD: Final = 65_536  # bytes
REGISTERS: Final = 4
_SIZE: Final = 48  # bytes of SHA-384
_CLAIMED: Final = ("compose-hash", "app-id", "instance-id", "os-image-hash", "key-provider", "gpu-policy-hash")
_INIT_SCRIPT: Final = "init-script-hash"  # the one name that may come more than once: a script each


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One extension of one register."""

    register: int
    kind: int
    digest: bytes  # empty: left out by the source, recomputed for runtime events
    name: str
    payload: bytes
    version: int = 1

    def measured(self) -> bytes:
        """What goes into the register. For runtime events always computed, never believed."""
        return runtime_digest(self.name, self.payload, self.version) if self.kind == RUNTIME_EVENT else self.digest


def runtime_digest(name: str, payload: bytes, version: int = 1) -> bytes:
    """SHA-384 of a runtime event: V1 `le32(type):name:payload`, V2 a canonical JSON object (RFC 8785)."""
    if version == 2:
        fields = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT}
        preimage = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    else:
        preimage = RUNTIME_EVENT.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
    return hashlib.sha384(preimage).digest()


def replay(events: tuple[Event, ...]) -> tuple[bytes, ...]:
    """The four registers after these events: each starts at zero and is extended by mr = SHA-384(mr || digest)."""
    registers = [bytes(_SIZE)] * REGISTERS
    for event in events:
        extended = registers[event.register] + event.measured().ljust(_SIZE, b"\0")
        registers[event.register] = hashlib.sha384(extended).digest()
    return tuple(registers)


def check_events(events: tuple[Event, ...], measurements: Mapping[str, bytes]) -> Found[BootClaims]:
    """Step 5."""
    for event in events:
        if event.kind == RUNTIME_EVENT and event.digest and event.digest != event.measured():
            raise Refused("an event's digest is not that of its name and payload")
        if event.kind != RUNTIME_EVENT and not event.digest:
            raise Refused("an event has neither a digest nor a form to compute it from")
    for number, value in enumerate(replay(events)):
        if value != measurements.get(f"rtmr{number}"):
            raise Refused(f"the event log does not replay to RTMR{number}")
    return Found(_boot_claims(events), f"{len(events)} events")


def _boot_claims(events: tuple[Event, ...]) -> BootClaims:
    said: dict[str, bytes] = {}
    for event in events:
        if _is_measured(event) and event.name in _CLAIMED:
            if event.name in said:
                raise Refused(f"the event log says {event.name!r} twice")
            said[event.name] = event.payload
    compose = said.get("compose-hash")
    if compose is not None and len(compose) != Digest.SIZE:
        raise Refused(f"the compose-hash event has {len(compose)} bytes")
    return BootClaims(
        compose_hash=None if compose is None else Digest(compose),
        app_id=said.get("app-id", b""),
        instance_id=said.get("instance-id", b""),
        os_image_hash=said.get("os-image-hash", b""),
        key_provider=said.get("key-provider", b""),
        gpu_policy=said.get("gpu-policy-hash", b""),
        init_scripts=tuple(event.payload for event in events if _is_measured(event) and event.name == _INIT_SCRIPT),
    )


def _is_measured(event: Event) -> bool:
    """In RTMR3, with a digest that covers its name."""
    return event.register == REGISTERS - 1 and event.kind == RUNTIME_EVENT


# PARSE


def parse_event_log(log: bytes) -> tuple[Event, ...]:
    """Read a JSON list of events. Raises `MalformedMessage`."""
    if len(log) > MAX_EVENT_LOG:
        raise MalformedMessage(f"event log of {len(log)} bytes, at most {MAX_EVENT_LOG}", rule="ATT-6.1")
    try:
        entries = orjson.loads(log)
    except orjson.JSONDecodeError:
        raise MalformedMessage("the event log is not JSON", rule="ATT-6.1") from None
    if not isinstance(entries, list) or len(entries) > MAX_EVENTS:
        raise MalformedMessage(f"the event log is not a list of at most {MAX_EVENTS} events", rule="ATT-6.1")
    return tuple(_event(entry) for entry in entries)


def _event(entry: Any) -> Event:
    if not isinstance(entry, dict):
        raise MalformedMessage("an event is a JSON object", rule="ATT-6.1")
    kind, name = _number(entry, "event_type", 2**32), entry.get("event", "")
    # V1 joins name and payload with a colon: a name that holds one could be read as another event
    if not isinstance(name, str) or len(name) > MAX_NAME or (kind == RUNTIME_EVENT and not _plain_name(name)):
        raise MalformedMessage("an event's name is not plain text", rule="ATT-6.1")
    digest = _hex(entry, "digest", _SIZE)
    return Event(
        register=_number(entry, "imr", REGISTERS),
        kind=kind,
        digest=digest,
        name=name,
        payload=_hex(entry, "event_payload", MAX_PAYLOAD),
        version=_number(entry, "version", 3, default=1) or 1,
    )


def _plain_name(name: str) -> bool:
    return name.isascii() and name.isprintable() and ":" not in name


def _number(entry: dict[str, Any], field: str, limit: int, default: int | None = None) -> int:
    value = entry.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise MalformedMessage(f"an event's {field} is not a number below {limit}", rule="ATT-6.1")
    return value


def _hex(entry: dict[str, Any], field: str, limit: int) -> bytes:
    value = entry.get(field, "")
    try:
        data = bytes.fromhex(value)
    except (TypeError, ValueError):
        raise MalformedMessage(f"an event's {field} is not hex", rule="ATT-6.1") from None
    if len(data) > limit:
        raise MalformedMessage(f"an event's {field} has {len(data)} bytes, at most {limit}", rule="ATT-6.1")
    return data


def write_event_log(events: tuple[Event, ...]) -> bytes:
    """The JSON form, as dstack's guest agent gives it."""
    return orjson.dumps([_entry(event) for event in events])


def _entry(event: Event) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "imr": event.register,
        "event_type": event.kind,
        "digest": event.measured().hex(),
        "event": event.name,
        "event_payload": event.payload.hex(),
    }
    return entry if event.version == 1 else {**entry, "version": event.version}
