# SPDX-License-Identifier: Apache-2.0
"""TLS keys with certificates for code inside (GetTlsKey, DeriveKey): P-256, issued by the application's own authority.

Always: GetTlsKey's key is fresh each time, DeriveKey's follows from its path; with RA-TLS the certificate carries a
quote whose report data is SHA-512("ratls-cert:" || public key), in dstack's extensions.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.appkeys import AppKeys, hkdf
from bombyx.protocol.primitives import Instant, Secret

_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (FIPS 186-5)
_LIFE: Final = dt.timedelta(days=365)
_LATEST: Final = 253_402_300_799  # seconds; X.509 dates end with the year 9999
MAX_NAMES: Final = 64
MAX_NAME: Final = 253  # characters of a DNS name
RA_TLS_TAG: Final = b"ratls-cert:"
QUOTE_OID: Final = "1.3.6.1.4.1.62397.1.1"  # dstack's arc
EVENT_LOG_OID: Final = "1.3.6.1.4.1.62397.1.2"
APP_ID_OID: Final = "1.3.6.1.4.1.62397.1.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsRequest:
    """What the certificate shall say."""

    subject: str = "dstack"
    alt_names: tuple[str, ...] = ()
    server: bool = False
    client: bool = False
    not_before: int | None = None  # seconds
    not_after: int | None = None
    extensions: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)


def fresh_key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(1 + secrets.randbelow(_ORDER - 1), ec.SECP256R1())


def path_key(keys: AppKeys, path: str) -> ec.EllipticCurvePrivateKey:
    """The key of `path`: the same after a restart. Its own branch, apart from GetKey's."""
    return _p256(hkdf(keys.app_key, b"tls", path.encode()))


def public_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def issue(keys: AppKeys, key: ec.EllipticCurvePrivateKey, request: TlsRequest, now: Instant) -> dict[str, Any]:
    """`{key, certificate_chain}` as the agent answers, both PEM."""
    authority, signer = _authority(keys, now)
    start, end = _dates(request, now)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(request.subject))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if request.alt_names:
        builder = builder.add_extension(x509.SubjectAlternativeName(_dns(request.alt_names)), critical=False)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * request.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * request.client
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    for oid, value in request.extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(oid), _octets(value)), False)
    certificate = builder.sign(signer, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {"key": secret.decode(), "certificate_chain": [_pem(certificate), _pem(authority)]}


def app_certificate(keys: AppKeys, now: Instant) -> str:
    """The authority's own, PEM: what Info shows."""
    return _pem(_authority(keys, now)[0])


def _authority(keys: AppKeys, now: Instant) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = _p256(hkdf(keys.app_key, b"app-ca"))
    name = _name(f"simulated app {keys.app_id.hex()}")
    start = dt.datetime.fromtimestamp(now.seconds, tz=dt.UTC).replace(month=1, day=1, hour=0, minute=0, second=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(keys.app_id[:16]) | 1)
        .not_valid_before(start)
        .not_valid_after(start + 10 * _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return certificate, key


def _p256(secret: Secret) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret.reveal()) % (_ORDER - 1) + 1, ec.SECP256R1())


def _dates(request: TlsRequest, now: Instant) -> tuple[dt.datetime, dt.datetime]:
    start = now.seconds if request.not_before is None else request.not_before
    end = start + int(_LIFE.total_seconds()) if request.not_after is None else request.not_after
    if not 0 <= start < end <= _LATEST:
        raise MalformedMessage("not_before and not_after are no span of time", rule="ENC-8")
    return dt.datetime.fromtimestamp(start, tz=dt.UTC), dt.datetime.fromtimestamp(end, tz=dt.UTC)


def _name(common: str) -> x509.Name:
    if len(common) > 64:  # X.520 upper bound
        raise MalformedMessage("a subject has at most 64 characters", rule="ENC-8")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common or "dstack")])


def _dns(names: Sequence[str]) -> list[x509.GeneralName]:
    if len(names) > MAX_NAMES or any(not 0 < len(name) <= MAX_NAME or not name.isascii() for name in names):
        raise MalformedMessage(f"at most {MAX_NAMES} alternative names, each a DNS name", rule="ENC-8")
    return [x509.DNSName(name) for name in names]


def _octets(value: bytes) -> bytes:
    """DER OCTET STRING."""
    if len(value) < 0x80:
        return bytes([4, len(value)]) + value
    length = len(value).to_bytes((len(value).bit_length() + 7) // 8)
    return bytes([4, 0x80 | len(length)]) + length + value


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
