# SPDX-License-Identifier: Apache-2.0
"""A policy in sentences: what it accepts, what it asks for, and what is missing before anything can pass."""

from __future__ import annotations

from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue, TrustedRoot
from bombyx.protocol.attest.roots import NVIDIA_ROOT, TrustClass
from bombyx.protocol.primitives import sha256

_MEANING = {
    TrustClass.TDX: "an Intel TDX machine",
    TrustClass.TDX_GPU: "an Intel TDX machine with verified NVIDIA GPUs",
    TrustClass.SNP: "an AMD SEV-SNP machine",
    TrustClass.SGX: "an Intel SGX enclave",
    TrustClass.SIMULATED: "SIMULATED: protects from nobody who owns the host",
}

_NO_QUORUM = "publishers can never agree: publishers_agree must be 1 up to the number of publishers"
_NO_PLATFORM = (
    "publishers admit no image yet: name the firmware and kernel it must run on, by a [[reference_value]] with mrtd, "
    "rtmr1 and rtmr2 (SEV-SNP: measurement)"
)


def explain_policy(policy: AppraisalPolicy) -> list[tuple[str, str]]:
    """(subject, sentence), in reading order."""
    lines = [("accepts", f"{one}: {_MEANING[one]}") for one in sorted(policy.trust_classes)]
    lines += [("root", _root(root)) for root in policy.roots]
    lines += [("image", _image(value)) for value in policy.reference_values]
    if policy.publishers or policy.publishers_agree:
        lines.append(("publishers", _publishers(policy)))
    lines.append(("GPU", _gpu(policy)))
    lines.append(("tokens", _tokens(policy)))
    lines.append(("freshness", _freshness(policy)))
    if policy.models is not None:
        lines.append(("models", f"only {len(policy.models)} named by the digest of their manifest"))
    return lines + [("MISSING", gap) for gap in missing(policy)]


def missing(policy: AppraisalPolicy) -> list[str]:
    """Why nothing can pass yet; empty when something can."""
    gaps = []
    if not policy.trust_classes:
        gaps.append("no trust class is accepted: nothing passes")
    if not policy.roots:
        gaps.append("no root is trusted: nothing passes")
    admits = policy.asks_publishers() and policy.admissible_platforms()
    if (policy.publishers or policy.publishers_agree) and not admits:
        gaps.append(_NO_QUORUM if not policy.asks_publishers() else _NO_PLATFORM)
    if not policy.reference_values and not admits:
        gaps.append("no image is named ([[reference_value]]): hardware may be proven, but never what runs on it")
    if policy.roots and not any(policy.may_accept(root.trust_class) for root in policy.roots):
        gaps.append("no root named can give a trust class that is accepted: nothing passes")
    return gaps


def _root(root: TrustedRoot) -> str:
    states = ", ".join(sorted(root.tcb_statuses)) or "none: nothing passes"
    levels = "".join(f", {name} at least {least}" for name, least in root.minimum_tcb)
    given = f"gives {root.trust_class}"
    return f"{root.name} (SHA-256 {sha256(root.certificate).hex()[:16]}...), {given}; platform state {states}{levels}"


def _image(value: ReferenceValue) -> str:
    parts = [] if value.compose_hash is None else [f"compose hash {value.compose_hash.hex()[:16]}..."]
    parts += [f"{name} {data.hex()[:16]}..." for name, data in value.measurements]
    return f"{value.name} as {value.trust_class}: {', '.join(parts)}{'; opens a GPU' if value.gpu else ''}"


def _publishers(policy: AppraisalPolicy) -> str:
    names = ", ".join(str(one) for one in policy.publishers) or "nobody"
    return f"an image is accepted too while {policy.publishers_agree} of these hold it good on chain: {names}"


def _gpu(policy: AppraisalPolicy) -> str:
    needed = (
        "evidence of at least one GPU is required" if policy.require_gpu else "needed only where an image opens one"
    )
    foreign = sum(root != NVIDIA_ROOT for root in policy.gpu_roots)
    return needed + (f"; {foreign} roots that are not NVIDIA's, which give `simulated`" if foreign else "")


def _tokens(policy: AppraisalPolicy) -> str:
    if not policy.token_roots:
        return "NVIDIA's attestation tokens do not count: no authority for them is named"
    return f"NVIDIA's attestation tokens are checked when at hand, under {len(policy.token_roots)} authorities"


def _freshness(policy: AppraisalPolicy) -> str:
    chain = "registry and beacon must be confirmed by a chain" if policy.require_chain else "no chain is asked"
    nonce = "a report must answer our nonce" if policy.require_nonce else "a report's nonce is not required"
    return f"bundles: {chain}, beacon at most {policy.max_beacon_age} s old; {nonce}"
