# SPDX-License-Identifier: Apache-2.0
"""SGX quotes (version 3) and collateral of the simulated platform: the same machine, the same root, the older enclave.

Not hardware, as `platform.py` is none. Layout: Intel SGX ECDSA Quote Library Reference, appendix A.4.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

import orjson

from bombyx.adapters.simulator import pki
from bombyx.adapters.simulator.platform import CPU_SVN, QE_AUTH, QE_VENDOR, SimulatedPlatform
from bombyx.protocol.primitives import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxEnclave:
    """What the (simulated) processor reports of one enclave."""

    mrenclave: bytes = hashlib.sha256(b"bombyx simulated sgx enclave").digest()
    mrsigner: bytes = hashlib.sha256(b"bombyx simulated sgx signer").digest()
    report_data: bytes = bytes(64)
    debug: bool = False

    def encode(self) -> bytes:
        attributes = bytes([0x05 | self.debug << 1]) + bytes(7) + bytes.fromhex("e700000000000000")
        versions = struct.pack("<HH", 1, 1)  # product id, security version
        head = CPU_SVN + bytes(32) + attributes + self.mrenclave + bytes(32) + self.mrsigner + bytes(96)
        return head + versions + bytes(60) + self.report_data.ljust(64, b"\0")


def quote(platform: SimulatedPlatform, enclave: SgxEnclave) -> bytes:
    """A v3 quote over the enclave's report."""
    signed = struct.pack("<HHIHH", 3, 2, 0, 0, 0) + QE_VENDOR + bytes(20) + enclave.encode()
    key = platform.keys["attestation"]
    chain, report = platform.chain_pem, platform.qe_report
    auth = pki.sign_raw(key, signed) + pki.public_raw(key) + report + pki.sign_raw(platform.keys["pck"], report)
    auth += struct.pack("<H", len(QE_AUTH)) + QE_AUTH + struct.pack("<HI", 5, len(chain)) + chain
    return signed + struct.pack("<I", len(auth)) + auth


def endorsements(platform: SimulatedPlatform, now: Instant) -> bytes:
    """The platform's collateral with TCB info and quoting enclave's identity as they are for SGX."""
    fields: dict[str, Any] = orjson.loads(platform.endorsements(now))
    info = json.loads(fields["tcb_info"])
    info |= {"id": "SGX", "tcbLevels": [_without_tdx(level) for level in info["tcbLevels"]]}
    for gone in ("tdxModule", "tdxModuleIdentities"):
        del info[gone]
    identity = {**json.loads(fields["qe_identity"]), "id": "QE"}
    for name, value in (("tcb_info", info), ("qe_identity", identity)):
        fields[name] = json.dumps(value, separators=(",", ":"))
        fields[f"{name}_signature"] = pki.sign_raw(platform.keys["tcb"], fields[name].encode()).hex()
    return orjson.dumps(fields)


def _without_tdx(level: dict[str, Any]) -> dict[str, Any]:
    return {**level, "tcb": {key: value for key, value in level["tcb"].items() if key != "tdxtcbcomponents"}}
