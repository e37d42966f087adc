# SPDX-License-Identifier: Apache-2.0
"""Simulated GPUs in NVIDIA's forms: SPDM measurement reports, attestation tokens with their key set.

Not hardware: their roots are the simulator's own, and evidence under them makes everything `simulated`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.adapters.simulator.p384 import Signer, signer
from bombyx.protocol.primitives import Instant, Secret, sha256

DRIVER: Final = "570.172.08"
VBIOS: Final = bytes.fromhex("00cf009602000000")  # 96.00.CF.00.02
ISSUER: Final = "https://nras.attestation.nvidia.com"
MEASUREMENTS: Final = 8


@dataclass(frozen=True, kw_only=True)
class SimulatedGpus:
    """Some GPUs of one maker, and the maker's attestation service."""

    seed: Secret
    created: Instant
    count: int = 1

    @functools.cached_property
    def root(self) -> Signer:
        return signer(self.seed.reveal(), "Simulated Device Identity CA", self.created)

    @functools.cached_property
    def model(self) -> Signer:
        """Of the devices' own certificates: what an authority answers for."""
        return signer(self.seed.reveal(), "GH100 A01 GSP BROM", self.created, self.root)

    @functools.cached_property
    def devices(self) -> tuple[Signer, ...]:
        names = (f"GH100 A01 GSP FMC {number}" for number in range(self.count))
        return tuple(signer(self.seed.reveal(), name, self.created, self.model, ca=False) for name in names)

    @functools.cached_property
    def service(self) -> Signer:
        """Signs tokens."""
        root = signer(self.seed.reveal(), "Simulated Attestation Service CA", self.created)
        return signer(self.seed.reveal(), "Simulated Attestation Service", self.created, root, ca=False)

    def measurements(self) -> tuple[bytes, ...]:
        return tuple(hashlib.sha384(b"simulated gpu measurement %d" % index).digest() for index in range(MEASUREMENTS))

    def report(self, device: Signer, nonce: bytes) -> bytes:
        """One GPU's answer: request, response with measurement blocks and opaque fields, signature."""
        blocks = b"".join(
            struct.pack("<BBHBH", index, 1, 51, 1, 48) + value for index, value in enumerate(self.measurements(), 1)
        )
        opaque = b"".join(
            struct.pack("<HH", kind, len(value)) + value
            for kind, value in (
                (3, DRIVER.encode() + b"\0"),
                (6, VBIOS),
                (17, b"G520\0"),
                (18, b"0280\0"),
                (15, b"895"),
            )
        )
        response = b"\x11\x60\x00\x00" + bytes([MEASUREMENTS]) + len(blocks).to_bytes(3, "little") + blocks + bytes(32)
        signed = b"\x11\xe0\x01\xff" + nonce + b"\x00" + response + struct.pack("<H", len(opaque)) + opaque
        return signed + device.sign_raw(signed)

    def evidence(self, nonce: bytes) -> dict[str, Any]:
        """NVIDIA's JSON: what `nvidia_payload` holds."""
        entries = [
            {"certificate": _coded(one.pem()), "evidence": _coded(self.report(one, nonce)), "arch": "HOPPER"}
            for one in self.devices
        ]
        return {"nonce": nonce.hex(), "evidence_list": entries, "arch": "HOPPER"}

    # TOKENS

    def jwks(self) -> bytes:
        certificates = [_coded(one) for one in self.service.der()]
        return orjson.dumps({"keys": [{"kty": "EC", "crv": "P-384", "kid": "simulated", "x5c": certificates}]})

    def token(self, claims: dict[str, Any], *, header: dict[str, str] | None = None, key: Signer | None = None) -> str:
        """A compact JWS over these claims."""
        parts = [_url(orjson.dumps(one)) for one in (header or {"kid": "simulated", "alg": "ES384"}, claims)]
        signed = ".".join(parts)
        return f"{signed}.{_url((key or self.service).sign_raw(signed.encode()))}"

    def claims(self, nonce: bytes, now: Instant) -> dict[str, Any]:
        """What every token says."""
        times = {"iat": now.seconds, "nbf": now.seconds, "exp": now.seconds + 3600}
        return {"iss": ISSUER, "eat_nonce": nonce.hex(), **times}

    def device_claims(self, device: Signer, nonce: bytes, now: Instant) -> dict[str, Any]:
        good = {"measres": "success", "dbgstat": "disabled", "secboot": True, "x-nvidia-gpu-arch-check": True}
        return {**self.claims(nonce, now), **good, "ueid": str(device.certificate.serial_number)}

    def tokens(self, nonce: bytes, now: Instant, **changes: Any) -> bytes:
        """The service's answer; `changes` go into the overall claims."""
        devices = {
            f"GPU-{number}": self.token(self.device_claims(device, nonce, now))
            for number, device in enumerate(self.devices)
        }
        return self.eat(devices, nonce, now, **changes)

    def eat(self, devices: dict[str, str], nonce: bytes, now: Instant, **changes: Any) -> bytes:
        """The overall token over these device tokens."""
        digests = {name: ["DIGEST", ["SHA-256", sha256(token.encode()).hex()]] for name, token in devices.items()}
        overall = {**self.claims(nonce, now), "x-nvidia-overall-att-result": True, "submods": digests, **changes}
        return orjson.dumps([["JWT", self.token(overall)], devices])


def _coded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
