# SPDX-License-Identifier: Apache-2.0
"""What a dstack machine will measure of an application, computed from its app-compose file before it is started.

RTMR3 holds, in this order: system-preparing, app-id, compose-hash, instance-id, boot-mr-done, os-image-hash,
key-provider, storage-fs, system-ready. What only a boot knows has to be given; while it is not, RTMR3 is not computed.

Not here: MRTD and RTMR0-2 (firmware, virtual hardware, kernel): they need dstack's own image files and dstack-mr.
Always: what cannot be computed is absent and named, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import fields as read
from bombyx.protocol.attest.appkeys import APP_ID_SIZE
from bombyx.protocol.attest.events import RUNTIME_EVENT, Event, replay
from bombyx.protocol.primitives import Digest, sha256

MAX_COMPOSE: Final = 1 << 20  # bytes
_KNOWN: Final = "not computed: needs dstack-mr and the files of the dstack OS image"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFacts:
    """What a boot adds. None: not known."""

    instance_id: bytes | None = None
    os_image_hash: bytes | None = None
    key_provider: bytes | None = None
    storage_fs: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Computed values; a sentence where there is none."""

    name: str
    compose_hash: Digest
    app_id: bytes
    mr_config_id: bytes  # V1
    after_compose: bytes  # RTMR3 once app id and compose hash are in: the same at every boot
    rtmr3: bytes | None
    missing: tuple[tuple[str, str], ...]


def expect(compose: bytes, facts: BootFacts | None = None) -> Expected:
    """Raises `MalformedMessage` for what is not an app-compose file."""
    if len(compose) > MAX_COMPOSE:
        raise MalformedMessage(f"app-compose file of {len(compose)} bytes, at most {MAX_COMPOSE}", rule="ENC-9")
    document = read.load(compose)
    name = document.get("name") if isinstance(document, dict) else None
    if not isinstance(name, str) or not isinstance(document, dict) or "manifest_version" not in document:
        raise MalformedMessage("not an app-compose file: no name or manifest_version", rule="ENC-9")
    digest = sha256(compose)
    version = 2 if document.get("event_log_version") == 2 else 1
    fixed = [("system-preparing", b""), ("app-id", digest[:APP_ID_SIZE]), ("compose-hash", bytes(digest))]
    told = facts or BootFacts()
    missing = [(register, _KNOWN) for register in ("mrtd", "rtmr0", "rtmr1", "rtmr2")]
    absent = [
        f.replace("_", "-")
        for f in ("instance_id", "os_image_hash", "key_provider", "storage_fs")
        if getattr(told, f) is None
    ]
    rtmr3 = None
    if absent:
        missing.append(("rtmr3", f"not computed: known only at a boot: {', '.join(absent)}"))
    else:
        rtmr3 = _register([*fixed, *_later(told)], version)
    return Expected(
        name=name,
        compose_hash=digest,
        app_id=digest[:APP_ID_SIZE],
        mr_config_id=(b"\x01" + digest).ljust(48, b"\0"),
        after_compose=_register(fixed, version),
        rtmr3=rtmr3,
        missing=tuple(missing),
    )


def _later(facts: BootFacts) -> list[tuple[str, bytes]]:
    return [
        ("instance-id", facts.instance_id or b""),
        ("boot-mr-done", b""),
        ("os-image-hash", facts.os_image_hash or b""),
        ("key-provider", facts.key_provider or b""),
        ("storage-fs", facts.storage_fs or b""),
        ("system-ready", b""),
    ]


def _register(said: list[tuple[str, bytes]], version: int) -> bytes:
    events = (Event(register=3, kind=RUNTIME_EVENT, digest=b"", name=n, payload=p, version=version) for n, p in said)
    return replay(tuple(events))[3]
