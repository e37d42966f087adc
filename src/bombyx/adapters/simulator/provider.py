# SPDX-License-Identifier: Apache-2.0
"""Simulated providers: attestation reports in the forms of Phala / dstack and of NEAR AI, from simulated enclaves.

For tests, demonstrations and conformance vectors. Keys follow from the seed; nothing here serves a model.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import coincurve
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bombyx.adapters.simulator.enclave import SimulatedEnclave, SimulatedImage
from bombyx.adapters.simulator.gpu import SimulatedGpus
from bombyx.adapters.simulator.p384 import Signer, signer
from bombyx.adapters.simulator.platform import SimulatedPlatform
from bombyx.protocol.attest.events import write_event_log
from bombyx.protocol.attest.guest import APP_ID_OID, QUOTE_OID
from bombyx.protocol.primitives import Instant, keccak256, sha256

NODE_IMAGE = SimulatedImage.of("simulated-vllm-proxy", gpu=True)
APP_NAME = "simulated app"
GATEWAY_IMAGE = SimulatedImage.of("simulated-gateway")


def key_provider_of(kms: Signer) -> bytes:
    """The event that names this service."""
    key = kms.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return orjson.dumps({"name": "kms", "id": key.hex()})


@dataclass(frozen=True, kw_only=True)
class SimulatedProvider:
    """One provider: a machine with GPUs that serves, and a gateway in front of it."""

    platform: SimulatedPlatform
    gpus: SimulatedGpus
    image: SimulatedImage = NODE_IMAGE

    @property
    def _seed(self) -> bytes:
        return self.platform.seed.reveal()

    @functools.cached_property
    def _secp(self) -> coincurve.PublicKey:
        return coincurve.PrivateKey(sha256(b"simulated ecdsa", self._seed)).public_key

    @functools.cached_property
    def _ed(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(sha256(b"simulated ed25519", self._seed))

    @property
    def address(self) -> bytes:
        return keccak256(self._secp.format(compressed=False)[1:])[-20:]

    @property
    def ed25519(self) -> bytes:
        return self._ed.public_key().public_bytes_raw()

    def tls(self, created: Instant) -> Signer:
        return signer(self._seed, "simulated gateway", created)

    # PARTS

    def quoted(self, report_data: bytes, image: SimulatedImage | None = None, **enclave: Any) -> dict[str, Any]:
        """Quote, event log and what the guest agent says of itself."""
        made = SimulatedEnclave(platform=self.platform, image=image or self.image, **enclave)
        report = made.report(report_data)
        said = {event.name: event.payload.hex() for event in made.events if event.register == 3}
        tcb = {
            "mrtd": report.mrtd.hex(),
            **{f"rtmr{number}": value.hex() for number, value in enumerate(report.rtmr)},
            "compose_hash": made.image.compose_hash.hex(),
            "os_image_hash": said["os-image-hash"],
            "app_compose": made.image.compose.decode(),
        }
        provider = bytes.fromhex(said["key-provider"]).decode()
        info = {"app_id": said["app-id"], "instance_id": said["instance-id"], "tcb_info": tcb}
        info["key_provider_info"] = provider
        config: dict[str, Any] = {"num_gpus": len(self.gpus.devices) if made.image.gpu else 0}
        if made.config_form == 3:
            config["mr_config"] = made.config_document.decode()
        return {
            "intel_quote": self.platform.quote(report).hex(),
            "event_log": write_event_log(made.events).decode(),
            "info": {**info, "vm_config": orjson.dumps(config).decode()},
        }

    def guest(self, nonce: bytes, created: Instant, **enclave: Any) -> dict[str, Any]:
        """The same report from a machine of a key management service, whose agent says all that dstack's do."""
        kms = self.kms(created)
        enclave = {"key_provider": key_provider_of(kms), **enclave}
        report = self.phala(nonce, **enclave)
        made = SimulatedEnclave(platform=self.platform, image=self.image, **enclave).report(bytes(64))
        configured = made.mr_config_id.ljust(144, b"\0") if any(made.mr_config_id) else b""  # and two owners
        aggregated = sha256(made.mrtd, *made.rtmr, configured)
        report["info"] |= {
            "mr_aggregated": aggregated.hex(),
            "device_id": sha256(self.platform.machine_id + bytes(4)).hex(),
            "app_cert": self.app_certificate(kms, self.image.app_id, created).pem().decode(),
        }
        return report

    def kms(self, created: Instant) -> Signer:
        """The authority of the key management service."""
        return signer(self._seed, "Simulated KMS CA", created)

    def app_certificate(self, kms: Signer, app_id: bytes, created: Instant, quote: bytes = b"") -> Signer:
        """An application's, under its own authority, under the service's; with a quote in it for RA-TLS."""
        named = ((APP_ID_OID.dotted_string, b"\x04" + bytes([len(app_id)]) + app_id),)
        quoted = ((QUOTE_OID.dotted_string, b"\x04\x82" + len(quote).to_bytes(2) + quote),) if quote else ()
        authority = signer(self._seed, "Simulated App CA", created, kms, extensions=named)
        return signer(self._seed, APP_NAME, created, authority, ca=False, extensions=(*named, *quoted))

    def phala(self, nonce: bytes, **enclave: Any) -> dict[str, Any]:
        """`/v1/attestation/report` with an ECDSA key."""
        data = self.address.ljust(32, b"\0") + nonce
        return {
            "signing_address": "0x" + self.address.hex(),
            "signing_algo": "ecdsa",
            "signing_public_key": self._secp.format(compressed=False)[1:].hex(),
            "request_nonce": nonce.hex(),
            **self.quoted(data, **enclave),
            "nvidia_payload": orjson.dumps(self.gpus.evidence(nonce)).decode(),
        }

    def near(self, nonce: bytes, created: Instant) -> dict[str, Any]:
        """Gateway and model, each with an ed25519 key and a TLS key; a signed OHTTP key; a compose manager."""
        certificate = self.tls(created).certificate
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        gateway = self._near_part(nonce, hashlib.sha256(spki).digest(), GATEWAY_IMAGE)
        model = self._near_part(nonce, sha256(b"simulated model tls"), self.image)
        model |= {
            "model_name": "simulated/model",
            "nvidia_payload": orjson.dumps(self.gpus.evidence(nonce)).decode(),
            **self._ohttp(),
            "compose_manager_attestation": self._manager(nonce),
        }
        return {
            "gateway_attestation": gateway,
            "model_attestations": [model],
            "tls_certificate": certificate.public_bytes(Encoding.PEM).decode(),
        }

    def _near_part(self, nonce: bytes, tls: bytes, image: SimulatedImage) -> dict[str, Any]:
        data = hashlib.sha256(self.ed25519 + tls).digest() + nonce
        return {
            "signing_address": self.ed25519.hex(),
            "signing_algo": "ed25519",
            "request_nonce": nonce.hex(),
            "tls_cert_fingerprint": tls.hex(),
            **self.quoted(data, image),
        }

    def _ohttp(self) -> dict[str, Any]:
        config = bytes.fromhex("010020") + sha256(b"simulated ohttp") + bytes.fromhex("000400010001")
        signed = {
            "signing_algo": "ed25519",
            "signing_key": self.ed25519.hex(),
            "key_config": config.hex(),
            "signature": self._ed.sign(config).hex(),
        }
        return {"ohttp_attestation": signed, "ohttp_key_config": config.hex()}

    def _manager(self, nonce: bytes) -> dict[str, Any]:
        actions = [{"action": "compose_up", "file": "model.yaml", "file_sha256": sha256(b"model.yaml").hex()}]
        hashed = hashlib.sha256(orjson.dumps(actions)).digest()
        quoted = self.quoted(hashed + nonce)
        return {
            "actions": actions,
            "actions_hash": hashed.hex(),
            "nonce": nonce.hex(),
            "quote": quoted["intel_quote"],
            "event_log": quoted["event_log"],
        }
