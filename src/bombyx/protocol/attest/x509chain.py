# SPDX-License-Identifier: Apache-2.0
"""Certificate chains that end in a pinned root: GPUs, SEV-SNP chips, token signers and RIM signers share this.

Not for TLS: no names, no path building; the chain comes leaf first and in order, or it is refused.
Always: nothing is read from a certificate whose issuer was not verified; every certificate is in date; only a
certification authority has issued.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.steps import Refused
from bombyx.protocol.primitives import Instant

_UNSOUND = (InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension)
Chain = tuple[x509.Certificate, ...]  # leaf first


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def load_chain(encoded: Sequence[bytes], what: str, *, longest: int) -> Chain:
    """Read DER certificates. Raises `MalformedMessage`."""
    if not 1 <= len(encoded) <= longest:
        raise MalformedMessage(f"{what}: a chain of {len(encoded)} certificates", rule="ATT-6.1")
    try:
        return tuple(x509.load_der_x509_certificate(one) for one in encoded)
    except (ValueError, TypeError, x509.InvalidVersion):
        raise MalformedMessage(f"{what}: unreadable certificate chain", rule="ATT-6.1") from None


def load_pem_chain(pem: bytes, what: str, *, longest: int) -> Chain:
    """Read concatenated PEM. Raises `MalformedMessage`."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, TypeError, x509.InvalidVersion):
        raise MalformedMessage(f"{what}: unreadable certificate chain", rule="ATT-6.1") from None
    if not 1 <= len(chain) <= longest:
        raise MalformedMessage(f"{what}: a chain of {len(chain)} certificates", rule="ATT-6.1")
    return chain


def check_chain(chain: Chain, what: str, now: Instant, *, anchored: bool = False) -> Instant:
    """Every link issued by the next, the last by itself; all in date. The value: when the first of them runs out.

    Whether the last one is a root we trust is the caller's to say. `anchored`: it is trusted as it stands, being an
    intermediate authority, and who issued it is not asked.
    """
    moment = dt.datetime.fromtimestamp(now.seconds, tz=dt.UTC)
    downwards = chain[::-1]
    for certificate, issuer in zip(downwards, (downwards[0], *downwards), strict=False):
        if anchored and certificate is downwards[0]:
            if len(chain) == 1 or not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
                raise Refused(f"{what}'s authority is out of date, or stands alone")
            continue
        try:
            certificate.verify_directly_issued_by(issuer)
            may_issue = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (*_UNSOUND, ValueError, TypeError):
            raise Refused(f"{what}'s certificate is not issued by the one above it") from None
        if not may_issue:
            raise Refused(f"{what}'s certificate is issued by one that may not issue")
        if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
            raise Refused(f"{what}'s certificate is out of date")
    return Instant(int(min(one.not_valid_after_utc for one in chain).timestamp()) * 1000)


def in_date(chain: Chain, now: Instant) -> bool:
    """Whether no certificate has run out or is yet to begin. Says nothing of who issued them."""
    moment = dt.datetime.fromtimestamp(now.seconds, tz=dt.UTC)
    return all(one.not_valid_before_utc <= moment <= one.not_valid_after_utc for one in chain)


def check_p384(certificate: x509.Certificate, r: int, s: int, signed: bytes, what: str) -> None:
    """An ECDSA signature with SHA-384 by a P-384 key. Raises the step's refusal."""
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        raise Refused(f"{what}: the key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise Refused(f"{what}: the key is not on P-384")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise Refused(f"{what} does not verify") from None
