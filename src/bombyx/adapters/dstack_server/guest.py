# SPDX-License-Identifier: Apache-2.0
"""What a dstack guest agent knows and can do, on the simulator: one running application and its keys.

Not here: names and shapes of calls (`methods.py`), sockets (`serve.py`).
It is a simulator: whoever can read the platform's seed can derive every key. It protects from nobody.

Always: keys depend on the platform's seed and the measured compose file alone, so the same code gets the same keys
after a restart and other code never; quotes show every event emitted before them (spec ENC-2, ENC-8).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Final

from bombyx.adapters.simulator import SimulatedEnclave, SimulatedImage, SimulatedPlatform
from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.appkeys import AppKeys, hkdf
from bombyx.protocol.attest.events import MAX_NAME, MAX_PAYLOAD, RUNTIME_EVENT, Event
from bombyx.protocol.primitives import Secret

MAX_REPORT_DATA: Final = 64  # bytes; the quote's field
MAX_EMITTED: Final = 256  # events of one boot
_RESERVED: Final = ("compose-hash", "app-id", "instance-id", "os-image-hash", "key-provider")


class SimulatedGuest:
    """One boot of an image on a simulated platform."""

    def __init__(self, platform: SimulatedPlatform, image: SimulatedImage, *, instance: bytes = bytes(16)) -> None:
        self.image = image
        root = hkdf(Secret(platform.seed.reveal()), b"bombyx simulated key provider")
        self.keys = AppKeys(root=root, app_id=image.app_id)
        provider = {"name": "kms", "id": self.keys.root_public.hex()}
        self._enclave = SimulatedEnclave(
            platform=platform,
            image=image,
            instance=instance,
            key_provider=json.dumps(provider, separators=(",", ":")).encode(),
        )

    @property
    def key_provider(self) -> bytes:
        return self._enclave.key_provider

    @property
    def events(self) -> tuple[Event, ...]:
        return self._enclave.events

    def emit(self, name: str, payload: bytes) -> None:
        """Extend RTMR3. The names the boot itself measured are not to be had: a second one would contradict it."""
        if not name or len(name) > MAX_NAME or not name.isascii() or not name.isprintable() or ":" in name:
            raise MalformedMessage("an event's name is 1 .. 128 printable ASCII characters without colon", rule="ENC-8")
        if name in _RESERVED or len(payload) > MAX_PAYLOAD or len(self._enclave.extra_events) >= MAX_EMITTED:
            raise MalformedMessage("this event's name is reserved, or there is too much of it", rule="ENC-8")
        event = Event(register=3, kind=RUNTIME_EVENT, digest=b"", name=name, payload=payload)
        self._enclave = replace(self._enclave, extra_events=(*self._enclave.extra_events, event))

    async def quote(self, report_data: bytes) -> dict[str, Any]:
        """A quote as GetQuote answers it; shorter report data is filled with zeros on the right."""
        if len(report_data) > MAX_REPORT_DATA:
            raise MalformedMessage(f"report data of {len(report_data)} bytes, at most 64", rule="ENC-8")
        padded = report_data.ljust(MAX_REPORT_DATA, b"\0")
        made = await self._enclave.quote(padded)
        return {
            "quote": made.quote.hex(),
            "event_log": made.event_log.decode(),
            "report_data": padded.hex(),
            "vm_config": self.vm_config,
            "attestation": "",
        }

    @property
    def vm_config(self) -> str:
        return json.dumps({"os_image_hash": self.os_image_hash, "cpu_count": 1, "memory_size": 1 << 30})

    @property
    def os_image_hash(self) -> str:
        return next(event.payload.hex() for event in self.events if event.name == "os-image-hash")

    def info(self, certificate: str) -> dict[str, Any]:
        """What Info answers; `certificate` is the application's own."""
        compose_hash = self.image.compose_hash.hex()
        device = hashlib.sha256(b"bombyx simulated device").hexdigest()
        report = self._enclave.report(bytes(MAX_REPORT_DATA))
        registers = {f"rtmr{number}": value.hex() for number, value in enumerate(report.rtmr)}
        configured = report.mr_config_id.ljust(144, b"\0")  # and two owners, whom nobody named
        aggregated = hashlib.sha256(report.mrtd + b"".join(report.rtmr) + configured).hexdigest()
        known = {
            "mr_aggregated": aggregated,
            "os_image_hash": self.os_image_hash,
            "compose_hash": compose_hash,
            "device_id": device,
        }
        tcb = {
            "mrtd": report.mrtd.hex(),
            **registers,
            **known,
            "event_log": [_entry(event) for event in self.events],
            "app_compose": self.image.compose.decode(),
        }
        return {
            "app_id": self.image.app_id.hex(),
            "instance_id": next(event.payload.hex() for event in self.events if event.name == "instance-id"),
            "app_cert": certificate,
            "tcb_info": json.dumps(tcb),
            "app_name": self.image.name,
            "key_provider_info": self.key_provider.decode(),
            "vm_config": self.vm_config,
            "cloud_vendor": "simulated",
            "cloud_product": "bombyx enclave simulate: not hardware",
            **known,
        }


def _entry(event: Event) -> dict[str, Any]:
    return {
        "imr": event.register,
        "event_type": event.kind,
        "digest": event.measured().hex(),
        "event": event.name,
        "event_payload": event.payload.hex(),
    }
