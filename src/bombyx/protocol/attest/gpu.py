# SPDX-License-Identifier: Apache-2.0
"""Step 9: NVIDIA GPU evidence: SPDM measurement reports, each with its certificate chain (ATT-9).

Required whenever the image can open a GPU. Its nonce is derived from the keyset, so the evidence answers for these keys
and no others; no GPU may answer twice. Not checked here, and the step says so: revocation (OCSP) and NVIDIA's golden
measurements (RIM).
Form: NVIDIA's JSON `{"evidence_list": [{"certificate": base64 of PEM, "evidence": base64}]}`.
"""

from __future__ import annotations

import base64
import datetime as dt
import struct
from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.keyset import gpu_nonce
from bombyx.protocol.attest.roots import NVIDIA_ROOT
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.primitives import Instant, sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset

MAX_EVIDENCE: Final = 524_288  # bytes of JSON; eight H100 need 98 kB
MAX_GPUS: Final = 16
MAX_CHAIN: Final = 8  # certificates; NVIDIA's have 5
_REQUEST: Final = 37  # bytes of the SPDM request that stands before the response
_SIGNATURE: Final = 96  # bytes: r || s, P-384
_GET_MEASUREMENTS, _MEASUREMENTS = 0xE0, 0x60
_DRIVER, _VBIOS = 3, 6  # opaque fields


def check_gpu(bundle: EvidenceBundle, keyset: Keyset, *, required: bool, now: Instant) -> Found[tuple[str, ...]]:
    """Step 9. The value: one line a verified GPU."""
    evidence = bundle.gpu_evidence
    if (None if evidence is None else sha256(evidence)) != keyset.gpu_evidence:
        raise Refused("the GPU evidence is not the one the keyset names")
    if evidence is None:
        if required:
            raise Refused("this image can open a GPU, and there is no GPU evidence")
        return Found((), "this image cannot open a GPU", Status.NOT_APPLICABLE)
    gpus = verify_gpu_evidence(evidence, nonce=gpu_nonce(keyset), root=NVIDIA_ROOT, now=now)
    return Found(gpus, f"{len(gpus)} GPUs, nonce bound to the keyset; not checked: revocation, golden measurements")


def verify_gpu_evidence(evidence: bytes, *, nonce: bytes, root: bytes, now: Instant) -> tuple[str, ...]:
    """Verify every GPU's report and chain. Raises `MalformedMessage` or the step's refusal."""
    reports = parse_gpu_evidence(evidence)
    if len({report.leaf for report in reports}) != len(reports):
        raise Refused("one GPU answers twice")
    for report in reports:
        _check_chain(report.chain, root, now)
        _check_report(report, nonce)
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
    chain: tuple[x509.Certificate, ...]  # leaf first

    @property
    def leaf(self) -> bytes:
        return self.chain[0].public_bytes(Encoding.DER)

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


def _chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, TypeError, x509.InvalidVersion):
        raise _malformed("unreadable certificate chain") from None
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise _malformed(f"a chain of {len(chain)} certificates")
    return chain


def _report(raw: bytes, chain: tuple[x509.Certificate, ...]) -> GpuReport:
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
        vbios=fields.get(_VBIOS, b"").hex()[:32],
        chain=chain,
    )


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


def _check_chain(chain: tuple[x509.Certificate, ...], root: bytes, now: Instant) -> None:
    if chain[-1].public_bytes(Encoding.DER) != root:
        raise Refused("a GPU's certificate chain does not end in NVIDIA's root")
    moment = dt.datetime.fromtimestamp(now.seconds, tz=dt.UTC)
    downwards = chain[::-1]  # so that nothing is read from a certificate whose issuer was not verified
    for certificate, issuer in zip(downwards, (downwards[0], *downwards), strict=False):
        try:
            certificate.verify_directly_issued_by(issuer)
            may_issue = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound, ValueError, TypeError):
            raise Refused("a GPU's certificate is not issued by the one above it") from None
        if not may_issue:
            raise Refused("a GPU's certificate is issued by one that may not issue")
        if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
            raise Refused("a GPU's certificate is out of date")


def _check_report(report: GpuReport, nonce: bytes) -> None:
    if report.nonce != nonce:
        raise Refused("a GPU's evidence answers another nonce than this keyset's")
    key = report.chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise Refused("a GPU's key is not on P-384")
    r, s = (int.from_bytes(half, "big") for half in (report.signature[:48], report.signature[48:]))
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise Refused("a GPU's signature over its measurements does not verify") from None
