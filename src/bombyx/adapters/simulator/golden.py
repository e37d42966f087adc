# SPDX-License-Identifier: Apache-2.0
"""Simulated golden values and revocation answers in NVIDIA's forms: RIM files (signed SWID tags) and OCSP responses.

Not a service: who asks and who answers over HTTP is elsewhere. Always: the bytes follow from the arguments, but for the
OCSP signature, which is random.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from bombyx.adapters.simulator.p384 import Signer
from bombyx.adapters.simulator.pki import moment
from bombyx.protocol.attest.xml import canonical, canonical_subset, parse_xml
from bombyx.protocol.primitives import Instant

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SIG: Final = "http://www.w3.org/2000/09/xmldsig#"
C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"


def manifest(version: str, golden: Mapping[int, bytes], maker: Signer) -> bytes:
    """A signed SWID tag in NVIDIA's form, inherited prefixes, line breaks, unused declarations and all."""
    rows = "".join(
        f'\n  <ns0:Resource type="Measurement" index="{index}" active="True" alternatives="1" '
        f'ns2:Hash0="{value.hex()}" name="Measurement_{index}" size="48"/>'
        for index, value in golden.items()
    )
    body = (
        f'\n <ns0:Meta xmlns:ns1="https://example.org/rim" colloquialVersion="{version}" product="GH100" '
        f'ns1:BindingSpec="RIMIM"/>\n <ns0:Payload xmlns:SHA384="urn:unused">{rows}\n </ns0:Payload>\n'
    )
    head = f'<SoftwareIdentity xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="urn:sha384" name="a &amp; b" tagId="1">'
    whole = parse_xml((head + body + "</SoftwareIdentity>").encode())
    digest = base64.b64encode(hashlib.sha384(canonical(whole)).digest()).decode()
    info = (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{C14N}"/><ds:SignatureMethod '
        f'Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/><ds:Reference URI=""><ds:Transforms>'
        f'<ds:Transform Algorithm="{SIG}enveloped-signature"/><ds:Transform Algorithm="{C14N}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    certificates = "".join(
        f"<ds:X509Certificate>{base64.encodebytes(one).decode()}</ds:X509Certificate>" for one in maker.der()
    )
    keys = f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo>"

    def signed(value: str) -> str:
        signature = f'<ds:Signature xmlns:ds="{SIG}">{info}<ds:SignatureValue>{value}</ds:SignatureValue>{keys}'
        return f"{head}{body}{signature}</ds:Signature></SoftwareIdentity>"

    document = parse_xml(signed("").encode())
    signature = document.child("Signature")
    to_sign = canonical_subset(document, (signature, signature.child("SignedInfo")))
    return signed(base64.b64encode(maker.sign_raw(to_sign)).decode()).encode()


def revocation_answer(
    certificate: x509.Certificate,
    issuer: Signer,
    *,
    at: Instant,
    days: int = 1,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    by: Signer | None = None,
    certificates: Sequence[x509.Certificate] = (),
) -> bytes:
    """An OCSP response for `certificate`, signed by `by` or its issuer; `certificates` travel in it."""
    start = moment(at)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate,
        issuer=issuer.certificate,
        algorithm=hashes.SHA256(),
        cert_status=status,
        this_update=start,
        next_update=start + dt.timedelta(days=days),
        revocation_time=start if status is ocsp.OCSPCertStatus.REVOKED else None,
        revocation_reason=None,
    )
    maker = by or issuer
    made = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, maker.certificate)
    if certificates:
        made = made.certificates(list(certificates))
    return made.sign(maker.key, hashes.SHA384()).public_bytes(Encoding.DER)
