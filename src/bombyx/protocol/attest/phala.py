# SPDX-License-Identifier: Apache-2.0
"""Phala's and dstack's report: `GET /v1/attestation/report`, of one node (legacy) or many (`all_attestations`).

Not here: NEAR AI's additions (`near.py`), any check of signatures.
Always: every node in `all_attestations` is a part of its own and must convince; the outer copy of one of them is not
read twice. report_data = key (20-byte address or 32-byte ed25519 key, zeros to 32) || nonce; where the report names a
TLS key, the first half is SHA-256(key || TLS key's fingerprint).
"""

from __future__ import annotations

import hashlib
from typing import Final

import orjson

from bombyx.protocol.attest import fields as read
from bombyx.protocol.attest.fields import Fields, malformed
from bombyx.protocol.attest.guest import GuestInfo
from bombyx.protocol.attest.report import NONCE_SIZE, Binding, Part, Report
from bombyx.protocol.primitives import keccak256

MAX_NODES: Final = 64
_SAID: Final = (  # unsigned copies of measured values
    ("mrtd", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("compose_hash", 32),
    ("os_image_hash", 32),
    ("app_id", 20),
    ("instance_id", 20),
)


def recognises(document: Fields) -> bool:
    return "intel_quote" in document and "signing_address" in document


def parse(document: Fields) -> Report:
    """Raises `MalformedMessage`."""
    nodes = read.entries(document, "all_attestations", MAX_NODES) or [document]
    if len(nodes) > 1 and not any(same(document, node) for node in nodes):
        nodes = [document, *nodes]
    name = "node" if len(nodes) == 1 else "node {}"
    parts = tuple(part(node, name.format(number)) for number, node in enumerate(nodes, 1))
    return Report(form="Phala / dstack attestation report", parts=parts)


def same(one: Fields, other: Fields) -> bool:
    return all(one.get(name) == other.get(name) for name in ("intel_quote", "nvidia_payload", "signing_address"))


def part(node: Fields, name: str, *, serves: bool = True) -> Part:
    """One node's evidence."""
    quote = read.quote_bytes(read.needed(node, "intel_quote"), "intel_quote")
    second = read.text(node, "quote")
    if second and read.quote_bytes(second, "quote") != quote:
        raise malformed("two different quotes in one attestation")
    info = read.mapping(node, "info")
    tcb = read.mapping(info, "tcb_info")
    compose = read.text(tcb, "app_compose")
    evidence, gpu_nonce = gpu(node)
    return Part(
        name=name,
        technology="tdx",
        quote=quote,
        event_log=read.document(node, "event_log") or read.document(tcb, "event_log"),
        compose=None if compose is None else compose.encode("utf-8", "surrogatepass"),
        binding=binding(node),
        said=_said(info, tcb),
        gpu_evidence=evidence,
        gpu_nonce=gpu_nonce,
        gpu_expected=_gpus(node, info),
        serves=serves,
        config=_config(node, info),
        guest=_guest(info, tcb),
        switches=any("switch" in name and value for name, value in node.items()),
    )


def gpu(node: Fields) -> tuple[bytes | None, bytes | None]:
    """NVIDIA's evidence and the nonce it says it answers."""
    payload = read.mapping(node, "nvidia_payload")
    if not payload:
        return None, None
    if not payload.get("evidence_list"):
        raise malformed("nvidia_payload without evidence")
    return orjson.dumps(payload), read.hexed(payload, "nonce", NONCE_SIZE)


def binding(node: Fields) -> Binding:
    """What report_data must be for the keys shown."""
    algorithm = read.text(node, "signing_algo") or "ecdsa"
    key = read.hexed(node, "signing_address", 20, 32)
    nonce = read.hexed(node, "request_nonce", NONCE_SIZE)
    if key is None or nonce is None or len(key) != {"ecdsa": 20, "ed25519": 32}.get(algorithm):
        raise malformed("signing_address, signing_algo and request_nonce do not fit together")
    tls = read.hexed(node, "tls_cert_fingerprint", 32)
    first = key.ljust(32, b"\0") if tls is None else hashlib.sha256(key + tls).digest()
    keys = [(f"{algorithm} signing key", "0x" + key.hex() if len(key) == 20 else key.hex())]
    return Binding(
        scheme="key || nonce" if tls is None else "SHA-256(key || TLS key) || nonce",
        expected=first + nonce,
        keys=tuple(keys if tls is None else [*keys, ("TLS key (SPKI SHA-256)", tls.hex())]),
        nonce=nonce,
        faults=_key_faults(node, algorithm, key),
    )


def _key_faults(node: Fields, algorithm: str, key: bytes) -> tuple[str, ...]:
    public = read.hexed(node, "signing_public_key", 32, 33, 64, 65)
    if public is None:
        return ()
    if algorithm == "ed25519":
        fits = public == key
    else:
        fits = len(public) in (64, 65) and keccak256(public[-64:])[-20:] == key
    return () if fits else ("signing_public_key is not the key of signing_address",)


def _gpus(node: Fields, info: Fields) -> int | None:
    """How many GPUs the machine was given, by its unsigned configuration."""
    configuration = read.mapping(info, "vm_config") or read.mapping(node, "vm_config")
    count = configuration.get("num_gpus")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 64):
        raise malformed("num_gpus is not a number")
    return count


def _config(node: Fields, info: Fields) -> bytes | None:
    """The machine's configuration document; older hosts put it into vm_config alone."""
    sources = (node, info, read.mapping(info, "vm_config"), read.mapping(node, "vm_config"))
    found = next((text for one in sources if (text := read.text(one, "mr_config"))), None)
    return None if found is None else found.encode("utf-8", "surrogatepass")


def _guest(info: Fields, tcb: Fields) -> GuestInfo:
    """What the guest agent says of itself. Said twice, it must be the same."""
    said: dict[str, bytes | None] = {}
    for name in ("mr_aggregated", "device_id"):
        found = {value for one in (info, tcb) if (value := read.hexed(one, name, 32)) is not None}
        if len(found) > 1:
            raise malformed(f"two different {name} in one attestation")
        said[name] = next(iter(found), None)
    certificate = read.text(info, "app_cert")
    return GuestInfo(
        aggregated=said["mr_aggregated"],
        device_id=said["device_id"],
        certificate=certificate.encode("utf-8", "surrogatepass") if certificate else None,
    )


def _said(info: Fields, tcb: Fields) -> tuple[tuple[str, bytes], ...]:
    """Values named outside the quote; empty ones say nothing."""
    found: list[tuple[str, bytes]] = []
    for source in (info, tcb):
        for name, size in _SAID:
            value = read.hexed(source, name, size)
            if value is not None:
                found.append((name, value))
    provider = read.text(info, "key_provider_info")
    if provider:
        found.append(("key_provider", provider.encode("utf-8", "surrogatepass")))
    return tuple(found)
