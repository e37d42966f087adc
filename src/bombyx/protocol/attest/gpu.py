# SPDX-License-Identifier: Apache-2.0
"""Step 9: NVIDIA GPU evidence: SPDM measurement reports, each with its certificate chain (ATT-9).

Required whenever the image can open a GPU. Its nonce is derived from the keyset, so the evidence answers for these keys
and no others; no GPU may answer twice. What else may be at hand (golden measurements, revocation, NVIDIA's own tokens)
is checked in `rim.py`, `ocsp.py` and `nras.py`; what is not at hand is `not checked`, and the step says so.
Form: NVIDIA's JSON `{"evidence_list": [{"certificate": base64 of PEM, "evidence": base64}]}`.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import nras, ocsp, rim
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.keyset import gpu_nonce
from bombyx.protocol.attest.policy import AppraisalPolicy
from bombyx.protocol.attest.roots import NVIDIA_ROOT
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.attest.x509chain import Chain, check_chain, check_p384, der, load_pem_chain
from bombyx.protocol.primitives import Instant, sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset

MAX_EVIDENCE: Final = 524_288  # bytes of JSON; eight H100 need 98 kB
MAX_GPUS: Final = 16
MAX_CHAIN: Final = 8  # certificates; NVIDIA's have 5
_REQUEST: Final = 37  # bytes of the SPDM request that stands before the response
_SIGNATURE: Final = 96  # bytes: r || s, P-384
_GET_MEASUREMENTS, _MEASUREMENTS = 0xE0, 0x60
_DRIVER, _VBIOS, _NVDEC0, _CHIP_SKU, _PROJECT, _PROJECT_SKU, _FWID = 3, 6, 11, 15, 17, 18, 20  # opaque fields
_SWITCHES: Final = 22  # opaque: the identities of the NVSwitches this GPU is connected to, 8 bytes a link
_SPKI: Final = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
_DISABLED: Final = b"\x55"
_DICE_TCB: Final = x509.ObjectIdentifier("2.23.133.5.4.1")  # TCG DICE: names the firmware the key was made for


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEndorsements:
    """What may be at hand beyond the evidence itself. All empty is normal."""

    tokens: bytes = b""  # NVIDIA Remote Attestation Service's answer: EAT tokens
    jwks: bytes = b""  # the keys they are signed with, as its `.well-known/jwks.json` gave them
    rims: tuple[bytes, ...] = ()  # golden measurements: swidtag files
    ocsp: tuple[bytes, ...] = ()  # DER OCSP responses for the chains' certificates
    switches: bool = False  # evidence of NVSwitches came along


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClaims:
    """What was proven of the GPUs."""

    lines: tuple[str, ...]  # one a GPU
    genuine: bool  # every chain ends in NVIDIA's own root
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    until: Instant | None = None

    def describe(self) -> str:
        text = "; ".join((f"{len(self.lines)} GPUs", *self.checked))
        return text + (f"; not checked: {', '.join(self.unchecked)}" if self.unchecked else "")


NO_GPUS: Final = GpuClaims(lines=(), genuine=True, checked=(), unchecked=())


def check_gpu(
    bundle: EvidenceBundle, keyset: Keyset, policy: AppraisalPolicy, *, required: bool, now: Instant
) -> Found[GpuClaims]:
    """Step 9 of a bundle."""
    evidence = bundle.gpu_evidence
    if (None if evidence is None else sha256(evidence)) != keyset.gpu_evidence:
        raise Refused("the GPU evidence is not the one the keyset names")
    if evidence is None:
        if required:
            raise Refused("this image can open a GPU, and there is no GPU evidence")
        return Found(NO_GPUS, "this image cannot open a GPU", Status.NOT_APPLICABLE)
    nonce = gpu_nonce(keyset)
    gpus = appraise_gpus(evidence, nonce, policy, now, GpuEndorsements(), bound="nonce bound to the keyset")
    return Found(gpus, gpus.describe())


def appraise_gpus(
    evidence: bytes, nonce: bytes, policy: AppraisalPolicy, now: Instant, at_hand: GpuEndorsements, *, bound: str
) -> GpuClaims:
    """Everything that can be said of this evidence with what is at hand. Raises the step's refusal."""
    reports = _verified(parse_gpu_evidence(evidence), nonce, policy.gpu_roots, now)
    manifests = tuple(rim.parse_rim(raw) for raw in at_hand.rims)
    findings = (
        ocsp.check_devices(tuple(report.chain for report in reports), at_hand.ocsp, now),
        rim.check_measurements(tuple(report.runtime() for report in reports), manifests, now),
        *rim.check_signers(manifests, at_hand.ocsp, now),
        nras.check_tokens(
            at_hand.tokens, at_hand.jwks, policy.token_roots, now, nonce=nonce, serials=_serials(reports)
        ),
        *_switches(reports, at_hand),
    )
    return GpuClaims(
        lines=tuple(report.describe() for report in reports),
        genuine=all(der(report.chain[-1]) == NVIDIA_ROOT for report in reports),
        checked=(bound, *(one.detail for one in findings if one.done)),
        unchecked=tuple(one.detail for one in findings if not one.done),
        until=min((one.until for one in findings if one.until is not None), default=None),
    )


def _switches(reports: tuple[GpuReport, ...], at_hand: GpuEndorsements) -> tuple[Finding, ...]:
    """GPUs of one machine talk through switches, and say so under their signatures. Evidence of those is not read."""
    named = {one for report in reports for one in report.switches()}
    if not named and not at_hand.switches:
        return ()
    shown = "some is shown" if at_hand.switches else "none is shown"
    return (Finding(f"NVSwitch evidence is not read (the GPUs name {len(named)} switches, {shown})"),)


def _serials(reports: tuple[GpuReport, ...]) -> frozenset[int]:
    return frozenset(report.chain[0].serial_number for report in reports)


def _verified(
    reports: tuple[GpuReport, ...], nonce: bytes, roots: tuple[bytes, ...], now: Instant
) -> tuple[GpuReport, ...]:
    for report in reports:
        if der(report.chain[-1]) not in roots:
            raise Refused("a GPU's certificate chain does not end in NVIDIA's root")
        check_chain(report.chain, "a GPU", now)
        _check_report(report, nonce)
    # By their keys: a certificate's signature, and so the certificate, can be written in more than one way.
    if len({report.chain[0].public_key().public_bytes(*_SPKI) for report in reports}) != len(reports):
        raise Refused("one GPU answers twice")
    return reports


def verify_gpu_evidence(evidence: bytes, *, nonce: bytes, root: bytes, now: Instant) -> tuple[str, ...]:
    """Only the reports and their chains, under one root: a line a GPU."""
    reports = _verified(parse_gpu_evidence(evidence), nonce, (root,), now)
    return tuple(report.describe() for report in reports)


# PARSE


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """One GPU's answer, nothing of it verified."""

    nonce: bytes
    signed: bytes
    signature: bytes
    driver: str
    vbios: str
    fields: dict[int, bytes] = field(repr=False)  # opaque ones, by number
    measurements: dict[int, bytes] = field(repr=False)  # by SPDM index
    chain: Chain  # leaf first

    def runtime(self) -> rim.Runtime:
        """What the golden measurements are compared with."""
        sku = tuple(_text(self.fields.get(number, b"")) for number in (_PROJECT, _PROJECT_SKU, _CHIP_SKU))
        return rim.Runtime(
            driver=self.driver,
            vbios=self.vbios,
            board="_".join(sku),
            nvdec_disabled=self.fields.get(_NVDEC0) == _DISABLED,
            measurements=self.measurements,
        )

    def switches(self) -> frozenset[bytes]:
        """The NVSwitches it says it is connected to."""
        links = self.fields.get(_SWITCHES, b"")
        return frozenset(one for at in range(0, len(links), 8) if any(one := links[at : at + 8]))

    def describe(self) -> str:
        name = self.chain[1].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        model = str(name[0].value)[:40] if name else "GPU"
        return f"{model}, driver {self.driver}, VBIOS {self.vbios}"


def parse_gpu_evidence(evidence: bytes) -> tuple[GpuReport, ...]:
    """Read the JSON form. Raises `MalformedMessage`."""
    if len(evidence) > MAX_EVIDENCE:
        raise _malformed(f"{len(evidence)} bytes, at most {MAX_EVIDENCE}")
    try:
        document = orjson.loads(evidence)
    except orjson.JSONDecodeError:
        raise _malformed("not JSON") from None
    entries = document.get("evidence_list") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_GPUS:
        raise _malformed(f"not a list of 1 .. {MAX_GPUS} GPUs")
    return tuple(_report(_bytes(entry, "evidence"), _chain(_bytes(entry, "certificate"))) for entry in entries)


def _bytes(entry: Any, field: str) -> bytes:
    try:
        return base64.b64decode(entry[field], validate=True)
    except (KeyError, TypeError, ValueError):
        raise _malformed(f"{field} is not base64") from None


def _chain(pem: bytes) -> Chain:
    chain = load_pem_chain(pem, "GPU evidence", longest=MAX_CHAIN)
    if len(chain) < 2:
        raise _malformed("a chain of 1 certificates")
    return chain


def _report(raw: bytes, chain: Chain) -> GpuReport:
    """SPDM 1.1 GET_MEASUREMENTS request and its response (DSP0274 section 10.11), as one byte string."""
    try:
        if raw[1] != _GET_MEASUREMENTS or raw[_REQUEST + 1] != _MEASUREMENTS:
            raise _malformed("not an SPDM measurement report")
        position = _REQUEST + 8 + int.from_bytes(raw[_REQUEST + 5 : _REQUEST + 8], "little") + 32
        (opaque_size,) = struct.unpack_from("<H", raw, position)
        end = position + 2 + opaque_size
    except (IndexError, struct.error):
        raise _malformed("a report that ends early") from None
    if len(raw) != end + _SIGNATURE:
        raise _malformed("a report whose length is not what it says")
    fields = _opaque(raw[position + 2 : end])
    return GpuReport(
        nonce=raw[4:36],
        signed=raw[:end],
        signature=raw[end:],
        driver=_text(fields.get(_DRIVER, b"")),
        vbios=_vbios_version(fields.get(_VBIOS, b"")),
        fields=fields,
        measurements=_measurements(raw[_REQUEST + 4], raw[_REQUEST + 8 : position - 32]),
        chain=chain,
    )


def _measurements(count: int, record: bytes) -> dict[int, bytes]:
    """DMTF measurement blocks: index, specification, size, type, value size, value."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 7 <= len(record):
        index, (size,) = record[position], struct.unpack_from("<H", record, position + 2)
        (length,) = struct.unpack_from("<H", record, position + 5)
        found[index] = record[position + 7 : position + 7 + length]
        position += 4 + size
    if position != len(record) or len(found) != count:
        raise _malformed("measurement blocks that do not fill their record")
    return found


def _vbios_version(value: bytes) -> str:
    """NVIDIA's spelling: 96.00.CF.00.02 of 00 CF 00 96 02."""
    return ".".join(f"{byte:02X}" for byte in (*value[3::-1], *value[4:5])) if len(value) >= 5 else value.hex()[:32]


def _opaque(data: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        kind, size = struct.unpack_from("<HH", data, position)
        fields[kind] = data[position + 4 : position + 4 + size]
        position += 4 + size
    return fields


def _text(value: bytes) -> str:
    text = value.rstrip(b"\0").decode("ascii", "replace")
    return text[:40] if text.isprintable() else ""


def _malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"GPU evidence: {what}", rule="ATT-6.9")


# CHAIN


def _check_report(report: GpuReport, nonce: bytes) -> None:
    if report.nonce != nonce:
        raise Refused("a GPU's evidence answers another nonce than the one asked")
    r, s = (int.from_bytes(half, "big") for half in (report.signature[:48], report.signature[48:]))
    check_p384(report.chain[0], r, s, report.signed, "a GPU's signature over its measurements")
    _check_firmware(report)


def _check_firmware(report: GpuReport) -> None:
    """The key was made for the firmware that now reports, where both name it."""
    said = report.fields.get(_FWID, b"")
    named = [extension.value for extension in report.chain[0].extensions if extension.oid == _DICE_TCB]
    if said and any(isinstance(one, x509.UnrecognizedExtension) and said not in one.value for one in named):
        raise Refused("a GPU's firmware is not the one its key was certified for")
