# SPDX-License-Identifier: Apache-2.0
"""Which form is it? Any supported evidence's bytes in, a `Report` (or the bytes of a bombyx bundle) out.

Always: recognising looks at the shape alone and believes nothing; unknown bytes are `MalformedMessage`.
"""

from __future__ import annotations

import base64
from dataclasses import replace

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import bare, near, nras, phala
from bombyx.protocol.attest import fields as read
from bombyx.protocol.attest.archive import KEY, Archive
from bombyx.protocol.attest.dstack_binary import parse_attestation
from bombyx.protocol.attest.report import Report
from bombyx.protocol.wire.evidence import EvidenceBundle

KNOWN = (
    "a bombyx evidence bundle or archive, a Phala / dstack or NEAR AI attestation report, a TDX v4/v5, SGX v3 or "
    "SEV-SNP quote (binary, hex or base64), NVIDIA GPU evidence, or an NVIDIA token"
)


def recognise(raw: bytes) -> Report | EvidenceBundle | Archive:
    """Raises `MalformedMessage` when it is nothing we know, or broken."""
    if raw.lstrip().startswith(b"{") and KEY.encode() in raw[:64]:
        return Archive.decode(raw)
    if len(raw) > read.MAX_REPORT:
        raise read.malformed(f"{len(raw)} bytes, at most {read.MAX_REPORT}")
    if bare.technology_of(raw):
        return bare.quote(raw)
    start = raw.lstrip()[:1]
    if start in (b"{", b"["):
        return _document(raw)
    encoded = _decoded(raw)
    if encoded and bare.technology_of(encoded):
        return bare.quote(encoded)
    try:
        return EvidenceBundle.decode(raw)
    except MalformedMessage:
        raise MalformedMessage(f"not recognised; known are {KNOWN}", rule="ATT-6.1") from None


def _document(raw: bytes) -> Report:
    document = read.load(raw)
    if isinstance(document, list):
        nras.parse_tokens(raw)
        return bare.tokens(raw)
    if near.recognises(document):
        return near.parse(document)
    if phala.recognises(document):
        return phala.parse(document)
    if "evidence_list" in document:
        return bare.gpu(document, raw)
    attestation = read.hexed(document, "attestation") if document.keys() <= {"attestation", "gpu_evidence"} else None
    if attestation:  # what dstack's Attest answers
        return _binary(attestation)
    for name in ("quote", "intel_quote"):  # what dstack's GetQuote and Tappd.TdxQuote answer
        if isinstance(document.get(name), str):
            return _dstack(document, name)
    raise MalformedMessage(f"JSON that is not recognised; known are {KNOWN}", rule="ATT-6.1")


def _dstack(document: read.Fields, name: str) -> Report:
    quote = read.quote_bytes(read.needed(document, name), name)
    if not bare.technology_of(quote):
        raise read.malformed(f"{name} is no quote")
    [part] = bare.quote(quote).parts
    config = read.text(document, "mr_config") or read.text(read.mapping(document, "vm_config"), "mr_config")
    part = replace(
        part,
        event_log=read.document(document, "event_log"),
        config=config.encode("utf-8", "surrogatepass") if config else None,
    )
    return Report(form="dstack quote", parts=(part,))


def _binary(raw: bytes) -> Report:
    found = parse_attestation(raw)
    if not bare.technology_of(found.quote):
        raise read.malformed("an attestation without a quote")
    [part] = bare.quote(found.quote).parts
    config = read.text(read.mapping({"": found.config}, ""), "mr_config")
    part = replace(part, event_log=found.event_log(), config=config.encode() if config else None)
    return Report(form="dstack attestation", parts=(part,))


def _decoded(raw: bytes) -> bytes:
    text = b"".join(raw.split()).removeprefix(b"0x")
    for decode in (bytes.fromhex, _base64):
        try:
            return decode(text.decode("ascii"))
        except ValueError:
            continue
    return b""


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
