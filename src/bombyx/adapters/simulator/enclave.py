# SPDX-License-Identifier: Apache-2.0
"""A simulated enclave: an image started on a simulated platform, with dstack's measurements and event log.

It keeps `ports.EvidenceSource`'s promises, except the one it cannot keep: nothing stops the host from looking inside.
It says `simulated` wherever it is shown.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Final

from bombyx.adapters.simulator.platform import SimulatedPlatform, TdReport
from bombyx.ports import Clock, Quote
from bombyx.protocol.attest import mr_config
from bombyx.protocol.attest.events import RUNTIME_EVENT, Event, replay, write_event_log
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue, TrustedRoot
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.primitives import Digest, sha256

_FIRMWARE_EVENT: Final = 0x8000_0008  # EV_EFI_PLATFORM_FIRMWARE_BLOB, TCG PC Client Platform Firmware Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedImage:
    """What was started: a name and the compose file whose hash is measured."""

    name: str
    compose: bytes
    gpu: bool = False

    @classmethod
    def of(cls, name: str, *, gpu: bool = False, **settings: str) -> SimulatedImage:
        """An image with a dstack app-compose of its own (canonical: sorted keys, compact)."""
        compose = {"manifest_version": 2, "name": name, "runner": "simulated", "public_logs": False, **settings}
        text = json.dumps(compose, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return cls(name=name, compose=text.encode(), gpu=gpu)

    @property
    def compose_hash(self) -> Digest:
        return sha256(self.compose)

    @property
    def app_id(self) -> bytes:
        return self.compose_hash[:20]

    @property
    def mrtd(self) -> bytes:
        """The same for every simulated image: it stands for the firmware."""
        return hashlib.sha384(b"bombyx simulated firmware").digest()

    def reference_value(self) -> ReferenceValue:
        return ReferenceValue(
            name=f"{self.name} (simulated)",
            trust_class=TrustClass.SIMULATED,
            compose_hash=self.compose_hash,
            measurements=(("mrtd", self.mrtd),),
            gpu=self.gpu,
        )


WORKER_IMAGE: Final = SimulatedImage.of("bombyx-worker")


@dataclass(frozen=True, kw_only=True)
class SimulatedEnclave:
    """One boot of an image (`ports.EvidenceSource`). `instance` tells boots of the same image apart."""

    platform: SimulatedPlatform
    image: SimulatedImage = WORKER_IMAGE
    instance: bytes = bytes(16)
    quote_version: int = 4
    event_version: int = 1
    debug: bool = False
    key_provider: bytes = b'{"name":"simulated","id":""}'  # who derives keys for the code inside, as measured
    extra_events: tuple[Event, ...] = field(default=())
    config_form: int = 1  # of mr_config_id; 0: none
    config_id: bytes = b""  # another one than that form gives

    @functools.cached_property
    def events(self) -> tuple[Event, ...]:
        """In dstack's order."""
        firmware = tuple(
            Event(
                register=register,
                kind=_FIRMWARE_EVENT,
                digest=hashlib.sha384(b"bombyx simulated boot %d" % register).digest(),
                name="",
                payload=b"",
            )
            for register in range(3)
        )
        instance = hashlib.sha256(self.instance + self.image.app_id).digest()[:20]
        said = (
            ("system-preparing", b""),
            ("app-id", self.image.app_id),
            ("compose-hash", bytes(self.image.compose_hash)),
            ("instance-id", instance),
            ("boot-mr-done", b""),
            ("os-image-hash", hashlib.sha256(b"bombyx simulated os image").digest()),
            ("key-provider", self.key_provider),
            ("storage-fs", b"ext4"),
            ("system-ready", b""),
        )
        return firmware + tuple(self._event(name, payload) for name, payload in said) + self.extra_events

    def _event(self, name: str, payload: bytes) -> Event:
        return Event(register=3, kind=RUNTIME_EVENT, digest=b"", name=name, payload=payload, version=self.event_version)

    def report(self, report_data: bytes) -> TdReport:
        return TdReport(
            mrtd=self.image.mrtd,
            rtmr=replay(self.events),
            report_data=report_data,
            mr_config_id=self._config_id(),
            debug=self.debug,
            version=self.quote_version,
        )

    @property
    def config_document(self) -> bytes:
        """What the host pinned, in the third form."""
        said = {event.name: event.payload for event in self.events if event.register == 3}
        provider = mr_config.key_provider(self.key_provider)
        return mr_config.ConfigDocument(
            compose_hash=self.image.compose_hash,
            key_provider=provider.kind or "none",
            app_id=self.image.app_id,
            key_provider_id=provider.identity or None,
            instance_id=said["instance-id"],
        ).encode()

    def _config_id(self) -> bytes:
        if self.config_id:
            return self.config_id
        if self.config_form == 2:
            provider = mr_config.key_provider(self.key_provider)
            return mr_config.form_2(self.image.compose_hash, self.image.app_id, provider)
        if self.config_form == 3:
            return mr_config.form_3(self.config_document)
        return mr_config.form_1(self.image.compose_hash) if self.config_form else bytes(mr_config.SIZE)

    async def quote(self, report_data: bytes) -> Quote:
        return Quote(
            technology="tdx",
            quote=self.platform.quote(self.report(report_data)),
            event_log=write_event_log(self.events),
            compose=self.image.compose,
        )

    async def gpu(self, nonce: bytes) -> bytes | None:
        return None  # no simulated image opens a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEndorsements:
    """The simulator's maker as `ports.EndorsementSource`: always fresh, as Intel's service would be."""

    platform: SimulatedPlatform
    clock: Clock

    async def endorsements(self, quote: bytes) -> bytes:
        return self.platform.endorsements(self.clock.now())


def development_policy(
    platform: SimulatedPlatform | bytes, images: tuple[SimulatedImage, ...] = (WORKER_IMAGE,)
) -> AppraisalPolicy:
    """Accepts these images on this platform (or under this root certificate), as `simulated` and nothing else."""
    certificate = platform.root_certificate if isinstance(platform, SimulatedPlatform) else platform
    return AppraisalPolicy(
        roots=(TrustedRoot(name="simulator", certificate=certificate),),
        trust_classes=frozenset({TrustClass.SIMULATED}),
        reference_values=tuple(image.reference_value() for image in images),
    )
