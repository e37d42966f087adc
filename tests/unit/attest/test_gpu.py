# SPDX-License-Identifier: Apache-2.0
"""GPU evidence under a root of the test's own, in NVIDIA's form: what passes, and each way it must not."""

from __future__ import annotations

import base64
import datetime as dt
import struct
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bombyx.errors import AttestationError, MalformedMessage
from bombyx.protocol.attest import gpu_nonce
from bombyx.protocol.attest.gpu import verify_gpu_evidence
from bombyx.protocol.primitives import Instant, sha256

NOW = Instant.from_seconds(1_790_000_000)
NONCE = bytes(range(32))
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2036, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Authority:
    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str, parent: Authority | None = None, *, ca: bool = True, end: dt.datetime = END) -> Authority:
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent.certificate.subject if parent else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(START)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        return cls(name, key, builder.sign(parent.key if parent else key, hashes.SHA384()))


ROOT = Authority.make("Test Device Identity CA")
MODEL = Authority.make("GH100 A01 GSP BROM", ROOT)
DEVICE = Authority.make("GH100 A01 GSP FMC LF", MODEL, ca=False)
ROOT_DER = ROOT.certificate.public_bytes(Encoding.DER)


def report(device: Authority = DEVICE, nonce: bytes = NONCE) -> bytes:
    """SPDM 1.1: request, response with one measurement block and two opaque fields, signature."""
    block = struct.pack("<BBH", 1, 1, 51) + struct.pack("<BH", 1, 48) + bytes(48)
    opaque = struct.pack("<HH", 3, 10) + b"570.133.20" + struct.pack("<HH", 6, 4) + b"\x96\x00\x9f\x01"
    response = b"\x11\x60\x00\x00\x01" + len(block).to_bytes(3, "little") + block + bytes(32)
    signed = b"\x11\xe0\x01\xff" + nonce + b"\x00" + response + struct.pack("<H", len(opaque)) + opaque
    r, s = decode_dss_signature(device.key.sign(signed, ec.ECDSA(hashes.SHA384())))
    return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")


def entry(*chain: Authority, evidence: bytes | None = None) -> dict[str, str]:
    chain = chain or (DEVICE, MODEL, ROOT)
    pem = b"".join(link.certificate.public_bytes(Encoding.PEM) for link in chain)
    raw = report(chain[0]) if evidence is None else evidence
    return {"certificate": base64.b64encode(pem).decode(), "evidence": base64.b64encode(raw).decode()}


def verify(*entries: dict[str, str], nonce: bytes = NONCE, now: Instant = NOW) -> tuple[str, ...]:
    return verify_gpu_evidence(orjson.dumps({"evidence_list": entries}), nonce=nonce, root=ROOT_DER, now=now)


def test_sound_gpu_evidence_names_its_gpus() -> None:
    """ATT-9: one line a GPU, from what it signed."""
    second = Authority.make("GH100 A01 GSP FMC LF", MODEL, ca=False)
    lines = verify(entry(), entry(second, MODEL, ROOT))
    assert lines == ("GH100 A01 GSP BROM, driver 570.133.20, VBIOS 96009f01",) * 2


def test_another_nonce() -> None:
    """ATT-9: evidence relayed from a machine with other keys."""
    with pytest.raises(AttestationError, match="another nonce"):
        verify(entry(), nonce=bytes(32))


def test_one_gpu_counted_twice() -> None:
    """ATT-9: even with two different reports."""
    with pytest.raises(AttestationError, match="twice"):
        verify(entry(), entry(evidence=report()))


def test_one_gpu_counted_twice_under_a_certificate_written_otherwise() -> None:
    """ATT-9: found by fuzzing: (r, n - s) verifies where (r, s) does, so one certificate has two spellings."""
    order = 2**384 - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D
    r, s = decode_dss_signature(DEVICE.certificate.signature)
    other = encode_dss_signature(r, order - s)
    raw = DEVICE.certificate.public_bytes(Encoding.DER)
    body = DEVICE.certificate.tbs_certificate_bytes
    between = raw[raw.index(body) + len(body) : raw.index(DEVICE.certificate.signature) - 3]  # the algorithm
    bits = b"\x03" + bytes([len(other) + 1, 0]) + other
    inner = body + between + bits
    respelt = x509.load_der_x509_certificate(b"\x30\x82" + len(inner).to_bytes(2) + inner)
    assert respelt != DEVICE.certificate
    respelt.verify_directly_issued_by(MODEL.certificate)
    twin = Authority(name=DEVICE.name, key=DEVICE.key, certificate=respelt)
    assert verify(entry(twin, MODEL, ROOT))
    with pytest.raises(AttestationError, match="twice"):
        verify(entry(), entry(twin, MODEL, ROOT))


def test_another_root() -> None:
    """ATT-9: a maker of its own GPUs."""
    root = Authority.make("Test Device Identity CA")
    device = Authority.make("GH100 A01 GSP FMC LF", root, ca=False)
    with pytest.raises(AttestationError, match="NVIDIA's root"):
        verify(entry(device, root))


def test_the_right_root_above_a_chain_it_did_not_sign() -> None:
    """ATT-9."""
    model = Authority.make("GH100 A01 GSP BROM", Authority.make("Test Device Identity CA"))
    device = Authority.make("GH100 A01 GSP FMC LF", model, ca=False)
    with pytest.raises(AttestationError, match="not issued by the one above"):
        verify(entry(device, model, ROOT))


def test_a_gpus_own_key_used_to_certify_another() -> None:
    """ATT-9: whoever extracts one GPU's key must not become a maker of GPUs."""
    forged = Authority.make("GH100 A01 GSP FMC LF", DEVICE, ca=False)
    with pytest.raises(AttestationError, match="may not issue"):
        verify(entry(forged, DEVICE, MODEL, ROOT))


def test_an_expired_certificate() -> None:
    """ATT-6.3."""
    old = Authority.make("GH100 A01 GSP FMC LF", MODEL, ca=False, end=START + dt.timedelta(days=1))
    with pytest.raises(AttestationError, match="out of date"):
        verify(entry(old, MODEL, ROOT))


@pytest.mark.parametrize("position", [1, 2, 4, 40, 44, 60, 130, 160, -96, -1])
def test_tampered_measurements(position: int) -> None:
    """ATT-9: every byte is signed, is the signature, or frames them."""
    altered = bytearray(report())
    altered[position] ^= 1
    with pytest.raises((AttestationError, MalformedMessage)):
        verify(entry(evidence=bytes(altered)))


@pytest.mark.parametrize("cut", [0, 1, 36, 40, 50, 150, -96, -1])
def test_a_report_cut_short(cut: int) -> None:
    """ATT-6.1."""
    with pytest.raises(MalformedMessage):
        verify(entry(evidence=report()[:cut]))


def test_the_nonce_covers_every_key_and_leaves_out_the_evidence_alone(scene: Any) -> None:
    """ATT-9: it must be computed before there is evidence, and change with anything else."""
    plain = gpu_nonce(scene.make_keyset())
    scene.keyset = {"gpu_evidence": sha256(b"evidence")}
    assert gpu_nonce(scene.make_keyset()) == plain
    scene.keyset = {"ohttp_key_config": b"\x01" * 41}
    assert gpu_nonce(scene.make_keyset()) != plain


def test_evidence_of_another_maker_in_a_bundle(scene: Any) -> None:
    """ATT-9: sound under a root of its own, named by the keyset, bound to it: still not NVIDIA's."""
    nonce = gpu_nonce(scene.make_keyset())
    evidence = orjson.dumps({"evidence_list": [entry(evidence=report(nonce=nonce))]})
    scene.keyset, scene.bundle = {"gpu_evidence": sha256(evidence)}, {"gpu_evidence": evidence}
    scene.refused(9, "NVIDIA's root")
