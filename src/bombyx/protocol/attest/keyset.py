# SPDX-License-Identifier: Apache-2.0
"""Steps 7, 8 and 10: the hardware signed for this keyset, the registry knows it, its time is now (ATT-2, ATT-8).

Always: `report_data` covers the keyset's canonical bytes as they travel, so a proxy can change no key, model or date.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from bombyx.protocol.attest.policy import CLOCK_SKEW, AppraisalPolicy
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.primitives import Address, Digest, Instant, sha256, tagged_hash
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE, BlockHeader, EvidenceBundle, Keyset, ModelManifest

REPORT_DATA_TAG: Final = b"bombyx keyset v1"
GPU_NONCE_TAG: Final = "bombyx gpu nonce v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredWorker:
    """What the chain's registry says of a worker's operator; `chain_id` is that chain's, where it is known."""

    operator: Address
    receipt_address: Address
    pay_authorizer: Address
    chain_id: int | None = None


def report_data(keyset: bytes) -> bytes:
    """The 64 bytes an enclave puts into its quote for this (canonical) keyset."""
    return hashlib.sha512(REPORT_DATA_TAG + keyset).digest()


def gpu_nonce(keyset: Keyset) -> Digest:
    """The nonce GPU evidence must answer: the keyset as it is before the evidence's digest goes in."""
    return tagged_hash(GPU_NONCE_TAG, replace(keyset, gpu_evidence=None).encode())


def check_binding(
    bundle: EvidenceBundle,
    keyset: Keyset,
    quoted: bytes,
    registered: RegisteredWorker | None,
    policy: AppraisalPolicy,
) -> Found[tuple[ModelManifest, ...]]:
    """Step 7: report_data, manifests, registry."""
    if report_data(bundle.keyset) != quoted:
        raise Refused("the quote's report data is not the digest of this keyset")
    manifests = _manifests(bundle, keyset)
    if registered is None:
        if policy.require_chain:
            raise Refused("no registry entry for the operator, and the policy requires one")
        return Found(manifests, "report data binds the keyset; not checked: no registry given", Status.NOT_CHECKED)
    for name in ("operator", "receipt_address", "pay_authorizer", "chain_id"):
        said, known = getattr(keyset, name), getattr(registered, name)
        if known is not None and said != known:
            raise Refused(f"the keyset's {name} is {said}, the registry's {known}")
    return Found(manifests, f"{len(manifests)} models; operator {keyset.operator}")


def _manifests(bundle: EvidenceBundle, keyset: Keyset) -> tuple[ModelManifest, ...]:
    if tuple(sha256(manifest) for manifest in bundle.manifests) != keyset.models:
        raise Refused("the bundle's model manifests are not those the keyset names")
    return tuple(ModelManifest.decode(manifest) for manifest in bundle.manifests)


def check_beacon(
    bundle: EvidenceBundle, keyset: Keyset, trusted: BlockHeader | None, policy: AppraisalPolicy, now: Instant
) -> Found[Instant | None]:
    """Step 8: the keyset was made after a recent block. The value is that block's time, None when nothing told it."""
    header = trusted or bundle.beacon_header
    if trusted is None and policy.require_chain:
        raise Refused("no trusted block header for the beacon, and the policy requires one")
    if header is None:
        return Found(None, "not checked: no trusted header, and none in the bundle", Status.NOT_CHECKED)
    if header.hash != keyset.beacon:
        raise Refused("the block header given is not the keyset's beacon")
    if bundle.beacon_header is not None and bundle.beacon_header != header:
        raise Refused("the bundle's block header is not the chain's")
    age = (now - header.timestamp) / 1000
    if age < -CLOCK_SKEW:
        raise Refused(f"the beacon is {-age:.0f} s in the future")
    if age > policy.max_beacon_age:
        raise Refused(f"the beacon is {age:.0f} s old, at most {policy.max_beacon_age} s")
    if trusted is None:
        detail = f"not checked: no trusted header; the bundle's own says block {header.number}, {age:.0f} s old"
        return Found(header.timestamp, detail, Status.NOT_CHECKED)
    return Found(header.timestamp, f"block {header.number}, {age:.0f} s old")


def check_window(
    keyset: Keyset, beacon: Instant | None, endorsed_until: Instant, policy: AppraisalPolicy, now: Instant
) -> Found[Instant]:
    """Step 10: now lies in the keyset's window, and that window is no longer than allowed. The value: valid until."""
    if keyset.not_after <= keyset.not_before:
        raise Refused("the keyset ends before it begins")
    if now < keyset.not_before.plus(seconds=-CLOCK_SKEW):
        raise Refused(f"the keyset begins in {(keyset.not_before - now) / 1000:.0f} s")
    if now >= keyset.not_after:
        raise Refused(f"the keyset ended {(now - keyset.not_after) / 1000:.0f} s ago")
    start = keyset.not_before if beacon is None else min(beacon, keyset.not_before)
    if keyset.not_after > start.plus(seconds=MAX_KEYSET_LIFE):
        raise Refused(f"the keyset lives {(keyset.not_after - start) / 1000:.0f} s, at most {MAX_KEYSET_LIFE} s")
    until = min(keyset.not_after, endorsed_until)
    if beacon is not None:
        until = min(until, beacon.plus(seconds=policy.max_beacon_age))
    return Found(until, f"valid for {(until - now) / 1000:.0f} s more")
