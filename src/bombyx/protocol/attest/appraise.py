# SPDX-License-Identifier: Apache-2.0
"""The appraisal: Evidence + Endorsements + policy + now -> AttestationResult, in ten numbered steps (spec ATT-6).

Always: the verifier computes the trust class from the root that verified the chain; an empty policy passes nothing; all
ten steps stand in the result, and on the `AttestationError` when one fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import gpu, keyset
from bombyx.protocol.attest.claims import BootClaims, Claims, QuoteClaims
from bombyx.protocol.attest.events import Event, parse_event_log
from bombyx.protocol.attest.keyset import RegisteredWorker
from bombyx.protocol.attest.mr_config import check_config_id
from bombyx.protocol.attest.platforms import TECHNOLOGIES, check_boot, described, matching
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue
from bombyx.protocol.attest.result import AttestationResult
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.attest.steps import Found, Refused, Trail
from bombyx.protocol.primitives import Digest, Instant, sha256
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle, Keyset


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evidence:
    """A bundle taken apart."""

    bundle: EvidenceBundle
    digest: Digest
    keyset: Keyset
    technology: Any
    quote: Any  # of that technology
    events: tuple[Event, ...]
    collateral: Any


def appraise(
    bundle: EvidenceBundle | bytes,
    policy: AppraisalPolicy,
    *,
    now: Instant,
    registered: RegisteredWorker | None = None,
    beacon: BlockHeader | None = None,
    endorsements: bytes | None = None,
) -> AttestationResult:
    """Appraise `bundle`. Holding the result is proof that it was done; anything else raises `AttestationError`.

    `registered` and `beacon` are what a chain we trust says of the operator and of the block `keyset.beacon`; None when
    there is none to ask. `endorsements` takes the place of the bundle's own.
    """
    trail = Trail()
    evidence = trail.run(1, _read, bundle, endorsements)
    chain = trail.run(2, evidence.technology.check_chain, evidence.quote, evidence.collateral, policy, now)
    endorsed = trail.run(3, evidence.technology.check_endorsements, chain)
    quoted: QuoteClaims = trail.run(4, evidence.technology.check_attributes, chain, endorsed)
    boot = trail.run(5, check_boot, quoted, evidence.events)
    reference = trail.run(6, _check_reference, evidence, quoted, boot, policy)
    manifests = trail.run(
        7, keyset.check_binding, evidence.bundle, evidence.keyset, quoted.report_data, registered, policy
    )
    beacon_at = trail.run(8, keyset.check_beacon, evidence.bundle, evidence.keyset, beacon, policy, now)
    gpus = trail.run(9, _check_gpu, evidence, quoted, reference, policy, now)
    until = trail.run(10, keyset.check_window, evidence.keyset, beacon_at, quoted.endorsed_until, policy, now)
    return AttestationResult(
        trust_class=_trust_class(quoted, gpus),
        keyset=evidence.keyset,
        key_configs=evidence.keyset.ohttp_key_config,
        manifests=manifests,
        claims=Claims(quote=quoted, boot=boot, reference_value=reference.name, gpus=gpus.lines),
        steps=trail.steps,
        until=until,
        bundle=evidence.digest,
    )


def _read(bundle: EvidenceBundle | bytes, endorsements: bytes | None) -> Found[_Evidence]:
    """Step 1: everything parses, within its bounds."""
    raw = bundle.encode() if isinstance(bundle, EvidenceBundle) else bundle
    read = bundle if isinstance(bundle, EvidenceBundle) else EvidenceBundle.decode(bundle)
    technology = TECHNOLOGIES.get(read.technology)
    if technology is None:
        raise MalformedMessage("evidence of a technology this version does not know", rule="ATT-6.1")
    vouchers = read.endorsements if endorsements is None else endorsements
    if not vouchers:
        raise MalformedMessage("no Endorsements, neither in the bundle nor given", rule="ATT-6.1")
    keys = Keyset.decode(read.keyset)
    if (read.v, keys.v) != (1, 1):
        raise MalformedMessage(f"bundle version {read.v}, keyset version {keys.v}; expected 1", rule="ATT-6.1")
    evidence = _Evidence(
        bundle=read,
        digest=sha256(raw),
        keyset=keys,
        technology=technology,
        quote=technology.parse_quote(read.quote),
        events=parse_event_log(read.event_log),
        collateral=technology.parse_collateral(vouchers),
    )
    return Found(evidence, f"{len(raw)} bytes, {read.technology} quote of {len(read.quote)}")


def _check_reference(
    evidence: _Evidence, quoted: QuoteClaims, boot: BootClaims, policy: AppraisalPolicy
) -> Found[ReferenceValue]:
    """Step 6: an image the policy names for this trust class, configured as its compose file says."""
    if boot.compose_hash is None or sha256(evidence.bundle.compose) != boot.compose_hash:
        raise Refused("the compose file in the bundle is not the one that was measured")
    config = check_config_id(quoted, boot)
    if policy.models is not None and not set(evidence.keyset.models) <= policy.models:
        raise Refused("a model served is not one the policy names")
    return described(matching(quoted, boot, policy), config)


def _check_gpu(
    evidence: _Evidence, quoted: QuoteClaims, reference: ReferenceValue, policy: AppraisalPolicy, now: Instant
) -> Found[gpu.GpuClaims]:
    """Step 9, and the last word on the trust class."""
    required = policy.require_gpu or reference.gpu
    found = gpu.check_gpu(evidence.bundle, evidence.keyset, policy, required=required, now=now)
    if _trust_class(quoted, found.value) not in policy.trust_classes:
        raise Refused(f"trust class {_trust_class(quoted, found.value)} is not one the policy accepts")
    return found


def _trust_class(quoted: QuoteClaims, gpus: gpu.GpuClaims) -> TrustClass:
    if not gpus.genuine:
        return TrustClass.SIMULATED
    return TrustClass.TDX_GPU if gpus.lines and quoted.trust_class is TrustClass.TDX else quoted.trust_class
