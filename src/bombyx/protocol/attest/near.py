# SPDX-License-Identifier: Apache-2.0
"""NEAR AI's report: a gateway's attestation beside those of the machines that serve the model, in dstack's form.

Also read: the TLS certificate the gateway says it uses, the OHTTP key configuration a model's key signs, and the
compose manager's list of actions with a quote of its own (its hash is SHA-256 over compact JSON).
Always: gateway, every model machine and every compose manager is a part of its own and must convince.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bombyx.protocol.attest import fields as read
from bombyx.protocol.attest import phala
from bombyx.protocol.attest.fields import Fields, malformed
from bombyx.protocol.attest.report import NONCE_SIZE, Binding, Part, Report

MAX_MODELS: Final = 64


def recognises(document: Fields) -> bool:
    return "model_attestations" in document or "gateway_attestation" in document


def parse(document: Fields) -> Report:
    """Raises `MalformedMessage`."""
    models = read.entries(document, "model_attestations", MAX_MODELS)
    gateway = read.mapping(document, "gateway_attestation")
    parts = [_gateway(gateway, document)] if gateway else []
    for number, model in enumerate(models, 1):
        suffix = "" if len(models) == 1 else f" {number}"
        parts.append(_with_ohttp(phala.part(model, f"model{suffix}"), model))
        manager = read.mapping(model, "compose_manager_attestation")
        if manager:
            parts.append(_manager(manager, f"compose manager{suffix}"))
    if not parts:
        raise malformed("neither a gateway's nor a model's attestation")
    return Report(form="NEAR AI attestation report", parts=tuple(parts))


def _gateway(gateway: Fields, document: Fields) -> Part:
    part = phala.part(gateway, "gateway", serves=False)
    pem = read.text(document, "tls_certificate")
    named = read.hexed(gateway, "tls_cert_fingerprint", 32)
    if pem is None or named is None or part.binding is None:
        return part
    if _spki(pem) == named:
        return _noted(part, checked="the TLS certificate shown has the key that is bound")
    return _noted(part, fault="the TLS certificate shown has another key than the one bound")


def _spki(pem: str) -> bytes:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise malformed("tls_certificate is not a certificate") from None
    return hashlib.sha256(key).digest()


def _with_ohttp(part: Part, model: Fields) -> Part:
    """The OHTTP key configuration counts when the bound ed25519 key signed it."""
    signed = read.mapping(model, "ohttp_attestation")
    if not signed:
        return part
    key, signature = read.hexed(signed, "signing_key", 32), read.hexed(signed, "signature", 64)
    config = read.hexed(signed, "key_config")
    if None in (key, signature, config) or signed.get("signing_algo") != "ed25519":
        return _noted(part, fault="an OHTTP key configuration signed in no known way")
    if model.get("ohttp_key_config") not in (None, signed.get("key_config")):
        return _noted(part, fault="the OHTTP key configuration offered is not the one signed")
    if key != read.hexed(model, "signing_address"):
        return _noted(part, fault="the OHTTP key configuration is signed by another key than the one bound")
    try:
        Ed25519PublicKey.from_public_bytes(key or b"").verify(signature or b"", config or b"")
    except (InvalidSignature, ValueError):
        return _noted(part, fault="the signature over the OHTTP key configuration does not verify")
    return _noted(part, checked="the OHTTP key configuration is signed by the bound key")


def _noted(part: Part, *, fault: str | None = None, checked: str | None = None) -> Part:
    if part.binding is None:
        return part
    binding = replace(
        part.binding,
        faults=(*part.binding.faults, *([fault] if fault else [])),
        checked=(*part.binding.checked, *([checked] if checked else [])),
    )
    return replace(part, binding=binding)


def _manager(manager: Fields, name: str) -> Part:
    """report_data = SHA-256 of the actions || nonce."""
    actions, nonce = read.hexed(manager, "actions_hash", 32), read.hexed(manager, "nonce", NONCE_SIZE)
    if actions is None or nonce is None:
        raise malformed("compose manager without actions_hash or nonce")
    listed = read.entries(manager, "actions", 4096)
    fits = hashlib.sha256(orjson.dumps(listed)).digest() == actions
    return Part(
        name=name,
        technology="tdx",
        quote=read.quote_bytes(read.needed(manager, "quote"), "quote"),
        event_log=read.document(manager, "event_log"),
        binding=Binding(
            scheme="SHA-256(actions) || nonce",
            expected=actions + nonce,
            keys=((f"{len(listed)} actions (SHA-256)", actions.hex()),),
            nonce=nonce,
            faults=() if fits else ("actions_hash is not the hash of the actions listed",),
        ),
        serves=False,
    )
