# SPDX-License-Identifier: Apache-2.0
"""What dstack's guest agent says of itself beside the quote: an aggregated measurement, a device, its certificate.

None of it is signed by the quote, so each is either computed from what is signed, or `not checked` (step 6).
Always: what contradicts the quote is refused; the quote inside the certificate is read for its key alone, and says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import snp, tdx
from bombyx.protocol.attest.claims import BootClaims, QuoteClaims
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.mr_config import key_provider
from bombyx.protocol.attest.steps import Refused
from bombyx.protocol.attest.x509chain import Chain, check_chain, der, load_pem_chain
from bombyx.protocol.primitives import Instant, sha256

MAX_CERTIFICATES: Final = 4  # application, its authority, the key provider's; real ones have 3
RA_TLS_TAG: Final = b"ratls-cert:"
QUOTE_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.1")  # dstack's arc
APP_ID_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.3")
_AGGREGATED: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
_CONFIGURED: Final = ("mr_config_id", "mr_owner", "mr_owner_config")
_PPID: Final = bytes.fromhex("060a2a864886f84d010d01010410")  # Intel's OID and the OCTET STRING of 16 bytes after it


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInfo:
    """What was said. None: nothing was."""

    aggregated: bytes | None = None
    device_id: bytes | None = None
    certificate: bytes | None = field(default=None, repr=False)  # PEM, the application's own first


NOTHING_SAID: Final = GuestInfo()


def check_guest(
    said: GuestInfo, quote: Any, quoted: QuoteClaims, boot: BootClaims, now: Instant
) -> tuple[Finding, ...]:
    """Step 6. Raises the step's refusal."""
    found = []
    if said.aggregated is not None:
        found.append(_check_aggregated(said.aggregated, quoted))
    if said.device_id is not None:
        found.append(_check_device(said.device_id, quote))
    if said.certificate is not None:
        found.append(_check_certificate(said.certificate, boot, now))
    return tuple(found)


# MEASUREMENT AND DEVICE


def aggregate(quoted: QuoteClaims) -> bytes:
    """dstack's mr_aggregated."""
    if quoted.technology == snp.TECHNOLOGY:
        return sha256(quoted.measurement("measurement"), quoted.measurement("host_data"))
    configured = [quoted.measurement(name) for name in _CONFIGURED]
    values = [quoted.measurement(name) for name in _AGGREGATED]
    return sha256(*values, *(configured if any(map(any, configured)) else ()))


def _check_aggregated(said: bytes, quoted: QuoteClaims) -> Finding:
    if said != aggregate(quoted):
        raise Refused("the report says another mr_aggregated than was measured")
    return Finding("mr_aggregated is that of the measurements", True)


def _check_device(said: bytes, quote: Any) -> Finding:
    """Agents have hashed different things over the years; one that hashed something else proves nothing and no lie."""
    if said == sha256():
        return Finding("device_id (the hash of nothing: this agent names no device)")
    if said in {sha256(one) for one in _devices(quote)}:
        return Finding("device_id is that of the platform", True)
    return Finding("device_id (of nothing that is signed)")


def _devices(quote: Any) -> list[bytes]:
    """What dstack takes for a device: the header's user data, the platform's PPID, SEV-SNP's chip."""
    if isinstance(quote, snp.SnpReport):
        return [quote.chip_id]
    if not isinstance(quote, tdx.TdxQuote):
        return []
    pem = bytes(quote.parsed.cert_chain_pem_bytes() or b"").rstrip(b"\0")
    leaf = der(load_pem_chain(pem, "the quote", longest=MAX_CERTIFICATES)[0])
    start = leaf.find(_PPID)
    return [quote.user_data, *([leaf[start + len(_PPID) :][:16]] if start >= 0 else [])]


# CERTIFICATE


def _check_certificate(pem: bytes, boot: BootClaims, now: Instant) -> Finding:
    """Issued for this application by the key provider that was measured."""
    chain = load_pem_chain(pem, "the application's certificate", longest=MAX_CERTIFICATES)
    provider = key_provider(boot.key_provider)
    if not boot.app_id or provider.kind != "kms" or len(provider.identity) <= 33:
        return Finding("app_cert (no measured event names an authority that could have issued it)")
    check_chain(chain, "the application", now)
    if _public(chain[-1]) != provider.identity:
        raise Refused("the application's certificate is not issued by the key provider that was measured")
    for certificate in chain[:-1]:
        if _octets(certificate, APP_ID_OID) not in (None, boot.app_id):
            raise Refused("the application's certificate is for another app id than was measured")
    if len(chain) < 2 or _octets(chain[0], APP_ID_OID) is None:
        return Finding("app_cert (it names no app id)")
    return _check_key(chain)


def _check_key(chain: Chain) -> Finding:
    quote = _octets(chain[0], QUOTE_OID)
    issued = "app_cert is issued for this app id by the key provider measured"
    if quote is None:
        return Finding(issued, True)
    try:
        bound = tdx.parse_quote(quote).report_data
    except MalformedMessage:
        raise Refused("the quote in the application's certificate cannot be read") from None
    if bound != hashlib.sha512(RA_TLS_TAG + _public(chain[0])).digest():
        raise Refused("the quote in the application's certificate is for another key")
    return Finding(f"{issued} (the older quote inside it names its key and is not appraised)", True)


def _public(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise Refused("a key in the application's certificate cannot be read") from None


def _octets(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    """An extension whose value is one DER OCTET STRING."""
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    if raw[:1] != b"\x04" or len(raw) < 2:
        return None
    head = 2 + (raw[1] & 0x7F if raw[1] & 0x80 else 0)
    size = raw[1] if not raw[1] & 0x80 else int.from_bytes(raw[2:head])
    return raw[head:] if len(raw) == head + size else None
