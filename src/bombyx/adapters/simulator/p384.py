# SPDX-License-Identifier: Apache-2.0
"""The simulator's P-384 authorities, for what AMD and NVIDIA sign: keys from a seed, dates from arguments.

Not a secret-keeping authority, as `pki.py` is none.
Always: the same seed, names and dates give the same bytes (RFC 6979 signatures), so that vectors reproduce.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bombyx.adapters.simulator.pki import ORGANISATION, moment
from bombyx.protocol.primitives import Instant

_ORDER: Final = int(  # of P-384 (FIPS 186-5)
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
)
LIFE: Final = dt.timedelta(days=3650)
Extension = tuple[str, bytes]  # object identifier, raw value


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key with its certificate and those above it, leaf first."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def root(self) -> bytes:
        """DER of the last certificate."""
        return self.chain[-1].public_bytes(Encoding.DER)

    def der(self) -> tuple[bytes, ...]:
        return tuple(one.public_bytes(Encoding.DER) for one in self.chain)

    def pem(self) -> bytes:
        return b"".join(one.public_bytes(Encoding.PEM) for one in self.chain)

    def sign(self, message: bytes) -> tuple[int, int]:
        return decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))

    def sign_raw(self, message: bytes) -> bytes:
        """r || s, 96 bytes, big endian."""
        r, s = self.sign(message)
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def derive_key(seed: bytes, purpose: str) -> ec.EllipticCurvePrivateKey:
    """A P-384 key that follows from the seed."""
    wide = hashlib.shake_256(b"bombyx simulator p384 v1\x00" + purpose.encode() + b"\x00" + seed).digest(64)
    return ec.derive_private_key(int.from_bytes(wide, "big") % (_ORDER - 1) + 1, ec.SECP384R1())


def signer(
    seed: bytes,
    name: str,
    created: Instant,
    parent: Signer | None = None,
    *,
    ca: bool = True,
    extensions: tuple[Extension, ...] = (),
    life: dt.timedelta = LIFE,
) -> Signer:
    """A new key and certificate under `parent`, or a root."""
    key = derive_key(seed, name)
    subject = _name(name)
    serial = hashlib.sha256(name.encode() + seed).digest()[:16]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(serial, "big") >> 1 | 1)
        .not_valid_before(moment(created) - dt.timedelta(days=1))
        .not_valid_after(moment(created) + life)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    for dotted, value in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), value)
        builder = builder.add_extension(extension, critical=False)
    made = builder.sign(parent.key if parent else key, hashes.SHA384(), ecdsa_deterministic=True)
    return Signer(key=key, chain=(made, *(parent.chain if parent else ())))


def revocation_list(issuer: Signer, *, at: Instant, days: int, revoked: tuple[int, ...] = ()) -> bytes:
    """A CRL in DER, good for `days` from `at`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(moment(at))
        .next_update(moment(at) + dt.timedelta(days=days))
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(at)).build()
        builder = builder.add_revoked_certificate(entry)
    made = builder.sign(issuer.key, hashes.SHA384(), ecdsa_deterministic=True)
    return made.public_bytes(Encoding.DER)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
        ]
    )
