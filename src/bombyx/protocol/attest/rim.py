# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's golden measurements: Reference Integrity Manifests (TCG RIM, a signed SWID tag) against what a GPU reports.

Not here: fetching them. None at hand, or one whose signer's certificate has run out, is `not checked`.
Always: only what stands under the verified signature is read; a GPU passes when every active measurement of its
driver's and of its VBIOS's manifest is one of the golden values, and is refused when one is not.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, Final

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import ocsp
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.roots import NVIDIA_RIM_ROOT
from bombyx.protocol.attest.steps import Refused
from bombyx.protocol.attest.x509chain import Chain, check_chain, check_p384, der, in_date, load_chain
from bombyx.protocol.attest.xml import Element, canonical, canonical_subset, parse_xml
from bombyx.protocol.primitives import Instant

MAX_INDEX: Final = 256
_NVDEC0: Final = 35  # meaningless while that decoder is switched off
_C14N: Final = ("http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315")
_ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_ECDSA: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What one GPU reported, signed."""

    driver: str
    vbios: str
    board: str  # project, its SKU and the chip's SKU: part of a VBIOS manifest's name
    nvdec_disabled: bool
    measurements: dict[int, bytes]  # by SPDM index, which counts from 1

    def names(self) -> tuple[str, str]:
        """The identifiers of its two manifests in NVIDIA's RIM service, driver first."""
        vbios = self.vbios.replace(".", "")
        return f"NV_GPU_DRIVER_GH100_{self.driver}", f"NV_GPU_VBIOS_{self.board}_{vbios}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest whose signature holds under its chain; whether the chain holds, `check_measurements` asks."""

    version: str  # of the driver or VBIOS it is for
    product: str
    golden: dict[int, tuple[bytes, ...]]  # active measurements only, by index from 0
    chain: Chain


def check_measurements(gpus: tuple[Runtime, ...], manifests: tuple[Manifest, ...], now: Instant) -> Finding:
    """Compare each GPU with the manifests for its driver and VBIOS."""
    if not manifests:
        return Finding("golden measurements (no RIM files at hand)")
    current = tuple(one for one in manifests if in_date(one.chain, now))
    if not current:
        return Finding("golden measurements (the RIM files' signer is out of date)")
    for gpu in gpus:
        for version in (gpu.driver, gpu.vbios):
            if not any(one.version.lower() == version.lower() for one in current):
                return Finding(f"golden measurements (no RIM file in date for {version})")
        _compare(gpu, current, now)
    return Finding("golden measurements match", True)


def check_signers(manifests: tuple[Manifest, ...], responses: tuple[bytes, ...], now: Instant) -> tuple[Finding, ...]:
    """Whether those who signed the manifests were revoked; nothing to say without manifests."""
    if not manifests:
        return ()
    chains = tuple(one.chain for one in manifests)
    return (ocsp.check_chains(chains, responses, now, "the RIM signers' certificates"),)


def _compare(gpu: Runtime, manifests: tuple[Manifest, ...], now: Instant) -> None:
    seen: set[int] = set()
    for manifest in manifests:
        if manifest.version.lower() not in (gpu.driver.lower(), gpu.vbios.lower()):
            continue
        check_chain(manifest.chain, "a RIM signer", now)
        if seen & set(manifest.golden):
            raise Refused("two RIM files speak of the same measurement of a GPU")
        seen |= set(manifest.golden)
        for index, golden in manifest.golden.items():
            if index == _NVDEC0 and gpu.nvdec_disabled:
                continue
            if gpu.measurements.get(index + 1) not in golden:
                raise Refused(f"a GPU's measurement {index} is not one of the golden values for {manifest.version}")


# PARSE


def parse_rim(raw: bytes, root: bytes = NVIDIA_RIM_ROOT) -> Manifest:
    """Read a manifest and verify its signature. Raises `MalformedMessage` or the step's refusal."""
    document = parse_xml(raw)
    signatures = [child for child in document.elements() if child.local == "Signature"]
    if document.local != "SoftwareIdentity" or len(signatures) != 1:
        raise _malformed("not a SWID tag with one signature")
    signature, signed = signatures[0], document.without(signatures[0])
    chain = _check_signature(document, signature, signed, root)
    meta, payload = signed.child("Meta"), signed.child("Payload")
    return Manifest(
        version=meta.attribute("colloquialVersion"),
        product=meta.attribute("product"),
        golden=_golden(payload),
        chain=chain,
    )


def _check_signature(document: Element, signature: Element, signed: Element, root: bytes) -> Chain:
    """XML Signature, enveloped, in the one form NVIDIA uses; any other form is refused, not interpreted."""
    info = signature.child("SignedInfo")
    reference = info.child("Reference")
    transforms = [one.attribute("Algorithm") for one in reference.child("Transforms").elements()]
    form = (
        info.child("SignatureMethod").attribute("Algorithm"),
        reference.child("DigestMethod").attribute("Algorithm"),
        reference.attribute("URI"),
    )
    if form != (_ECDSA, _SHA384, "") or len(transforms) != 2 or transforms[0] != _ENVELOPED:
        raise _malformed("a signature of another form")
    if not {transforms[1], info.child("CanonicalizationMethod").attribute("Algorithm")} <= set(_C14N):
        raise _malformed("another canonical form")
    if hashlib.sha384(canonical(signed)).digest() != _base64(reference.child("DigestValue").text()):
        raise Refused("a RIM file is not the one that was signed")
    chain = _chain(signature)
    if der(chain[-1]) != root:
        raise Refused("a RIM file is not signed under NVIDIA's root")
    value = _base64(signature.child("SignatureValue").text())
    r, s = (int.from_bytes(half, "big") for half in (value[:48], value[48:]))
    check_p384(chain[0], r, s, canonical_subset(document, (signature, info)), "the signature of a RIM file")
    return chain


def _chain(signature: Element) -> Chain:
    data = signature.child("KeyInfo").child("X509Data")
    return load_chain([_base64(one.text()) for one in data.elements()], "RIM file", longest=6)


def _golden(payload: Element) -> dict[int, tuple[bytes, ...]]:
    found: dict[int, tuple[bytes, ...]] = {}
    for resource in payload.elements():
        if resource.local != "Resource" or resource.attribute("active", "False") == "False":
            continue
        index, alternatives = _number(resource, "index"), _number(resource, "alternatives")
        if index in found or not alternatives:
            raise _malformed("a measurement named twice, or without a value")
        found[index] = tuple(_hash(resource, number) for number in range(alternatives))
    if not found:
        raise _malformed("no active measurement")
    return found


def _hash(resource: Element, number: int) -> bytes:
    value = next((text for name, text in resource.attributes if name.rpartition(":")[2] == f"Hash{number}"), "")
    try:
        digest = bytes.fromhex(value)
    except ValueError:
        digest = b""
    if len(digest) != _number(resource, "size"):
        raise _malformed("a golden value of another size than it says")
    return digest


def _number(element: Element, name: str) -> int:
    text = element.attribute(name)
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or int(text) >= MAX_INDEX:
        raise _malformed(f"{name} is not a number below {MAX_INDEX}")
    return int(text)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise _malformed("a value is not base64") from None


def _malformed(what: str) -> Any:
    return MalformedMessage(f"RIM file: {what}", rule="ATT-6.9")
