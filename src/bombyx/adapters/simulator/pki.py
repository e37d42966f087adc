# SPDX-License-Identifier: Apache-2.0
"""The simulator's certification authority: keys from a seed, dates from arguments.

Not a secret-keeping authority: whoever has the seed can sign any quote. That is the point of a simulator, and why its
root can only ever give the trust class `simulated`.
Always: the same seed and dates give the same bytes (RFC 6979 signatures), so that vectors reproduce.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier

from bombyx.adapters.simulator.der import SGX_EXTENSION
from bombyx.protocol.primitives import Instant

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (FIPS 186-5)
_LIFE = dt.timedelta(days=3650)
ORGANISATION = "bombyx simulated enclave, not hardware"


def moment(instant: Instant) -> dt.datetime:
    """Certificates know whole seconds."""
    return dt.datetime.fromtimestamp(instant.seconds, tz=dt.UTC)


def derive_key(seed: bytes, purpose: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that follows from the seed."""
    wide = hashlib.sha512(b"bombyx simulator key v1\x00" + purpose.encode() + b"\x00" + seed).digest()
    return ec.derive_private_key(int.from_bytes(wide, "big") % (_ORDER - 1) + 1, ec.SECP256R1())


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """r || s, 64 bytes, as quotes and collateral carry signatures."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def public_raw(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x || y, 64 bytes."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate that may sign others, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def root(seed: bytes, created: Instant) -> Issuer:
    key = derive_key(seed, "root")
    return Issuer(_certificate("Simulated SGX Root CA", key, None, created, path_length=1), key)


def authority(parent: Issuer, seed: bytes, created: Instant) -> Issuer:
    """The issuer of PCK certificates. Verifiers read "Platform" out of its name."""
    key = derive_key(seed, "platform ca")
    return Issuer(_certificate("Simulated SGX PCK Platform CA", key, parent, created, path_length=0), key)


def leaf(
    name: str, parent: Issuer, key: ec.EllipticCurvePrivateKey, created: Instant, sgx: bytes | None = None
) -> x509.Certificate:
    return _certificate(name, key, parent, created, sgx=sgx)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    parent: Issuer | None,
    created: Instant,
    *,
    path_length: int | None = None,
    sgx: bytes | None = None,
) -> x509.Certificate:
    subject, is_ca = _name(name), path_length is not None
    signer = parent.key if parent else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(name.encode() + public_raw(key)).digest()[:16]) >> 1 | 1)
        .not_valid_before(moment(created) - dt.timedelta(days=1))
        .not_valid_after(moment(created) + _LIFE)
        .add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
        .add_extension(_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if sgx is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(SGX_EXTENSION), sgx), False)
    return builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
        ]
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def revocation_list(issuer: Issuer, *, at: Instant, days: int, revoked: tuple[int, ...] = ()) -> bytes:
    """A CRL in DER, good for `days` from `at`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(moment(at))
        .next_update(moment(at) + dt.timedelta(days=days))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(at)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)
