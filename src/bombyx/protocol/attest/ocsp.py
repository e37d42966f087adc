# SPDX-License-Identifier: Apache-2.0
"""Revocation of GPU certificates: OCSP responses that are at hand (RFC 6960), against verified chains.

Not here: asking a responder. Without a response for a certificate its revocation is `not checked`.
Always: a response counts only if it is signed by the certificate's issuer or an authority above it, or by a responder
that one of them named for this purpose, and is in date; a certificate it calls revoked is refused.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.steps import Refused
from bombyx.protocol.attest.x509chain import Chain
from bombyx.protocol.primitives import Instant

MAX_RESPONSE: Final = 16_384  # bytes
_UNSOUND: Final = (InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension)
_READ: Final = (
    *("serial_number", "issuer_name_hash", "hash_algorithm", "certificate_status", "this_update_utc"),
    *("next_update_utc", "signature_hash_algorithm", "certificates"),
)
MAX_AGE: Final = dt.timedelta(days=7)  # of a response that does not say when the next one comes


def check_devices(chains: tuple[Chain, ...], responses: tuple[bytes, ...], now: Instant) -> Finding:
    """GPUs' chains. Their leaf is the device's own certificate of its firmware: no authority answers for it."""
    return check_chains(tuple(issued(chain) for chain in chains), responses, now, "the GPUs' certificates")


def issued(chain: Chain) -> Chain:
    """A device's chain without what the device certified itself."""
    return chain[1:] if len(chain) > 2 else chain


def check_chains(chains: tuple[Chain, ...], responses: tuple[bytes, ...], now: Instant, whose: str) -> Finding:
    """Every certificate below the root must have a good response, or revocation counts as not checked."""
    if not responses:
        return Finding(f"revocation of {whose} (no OCSP responses at hand)")
    parsed = tuple(parse_response(raw) for raw in responses)
    moment = dt.datetime.fromtimestamp(now.seconds, tz=dt.UTC)
    open_, until = set(), None
    for chain in chains:
        for place, certificate in enumerate(chain[:-1]):
            ends = _status(certificate, chain[place + 1 :], parsed, moment, whose)
            if ends is None:
                open_.add(certificate.fingerprint(hashes.SHA256()))
            until = min((one for one in (until, ends) if one is not None), default=None)
    if open_:
        return Finding(f"revocation of {len(open_)} of {whose} (no OCSP response in date)")
    return Finding(f"none of {whose} revoked", True, None if until is None else Instant(int(until.timestamp()) * 1000))


def parse_response(raw: bytes) -> Any:
    """Read a DER response. Raises `MalformedMessage`."""
    if len(raw) > MAX_RESPONSE:
        raise MalformedMessage(f"OCSP response of {len(raw)} bytes, at most {MAX_RESPONSE}", rule="ATT-6.9")
    try:
        response = ocsp.load_der_ocsp_response(raw)
        if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            _ = [getattr(response, name) for name in _READ]  # exactly one answer, all of it readable
            return response
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise MalformedMessage("not an OCSP response with one answer", rule="ATT-6.9")


def _status(
    certificate: x509.Certificate, authorities: Chain, responses: tuple[Any, ...], moment: dt.datetime, whose: str
) -> dt.datetime | None:
    """Until when this certificate is known to be good; None when nobody says. `authorities`: its issuer, and above."""
    for response in responses:
        if response.serial_number != certificate.serial_number or not _about(response, authorities[0]):
            continue
        if not any(_signed(response, one, moment) for one in authorities):
            raise Refused("an OCSP response is not signed by the authority it speaks for", peer=Peer.ENDORSER)
        ends: dt.datetime = response.next_update_utc or response.this_update_utc + MAX_AGE
        if not response.this_update_utc <= moment <= ends:
            continue
        if response.certificate_status is ocsp.OCSPCertStatus.REVOKED:
            raise Refused(f"one of {whose} is revoked", peer=Peer.ENDORSER)
        if response.certificate_status is ocsp.OCSPCertStatus.GOOD:
            return ends
    return None


def _about(response: Any, issuer: x509.Certificate) -> bool:
    """The response names the issuer by the hashes of its name and key."""
    digest = hashes.Hash(response.hash_algorithm)
    digest.update(issuer.subject.public_bytes())
    return bool(digest.finalize() == response.issuer_name_hash)


def _signed(response: Any, issuer: x509.Certificate, moment: dt.datetime) -> bool:
    if _verifies(response, issuer):
        return True
    return any(_delegated(one, issuer, moment) and _verifies(response, one) for one in response.certificates)


def _delegated(responder: x509.Certificate, issuer: x509.Certificate, moment: dt.datetime) -> bool:
    try:
        responder.verify_directly_issued_by(issuer)
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (*_UNSOUND, ValueError, TypeError):
        return False
    in_date = responder.not_valid_before_utc <= moment <= responder.not_valid_after_utc
    return in_date and ExtendedKeyUsageOID.OCSP_SIGNING in usage


def _verifies(response: Any, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
    return True
