# SPDX-License-Identifier: Apache-2.0
"""Attestation (RFC 9334): Evidence + Endorsements + policy + now -> AttestationResult. Pure: (spec ATT)."""

from bombyx.protocol.attest.appraise import appraise
from bombyx.protocol.attest.archive import Archive
from bombyx.protocol.attest.claims import BootClaims, Claims, QuoteClaims
from bombyx.protocol.attest.examine import Examination, Outcome, Verdict, appraise_report, examine
from bombyx.protocol.attest.explained import explain_policy, missing
from bombyx.protocol.attest.keyset import RegisteredWorker, gpu_nonce, report_data
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue, TrustedRoot, amd_root, intel_root
from bombyx.protocol.attest.policy_file import policy_from_toml, policy_to_toml
from bombyx.protocol.attest.presets import PRESETS, preset
from bombyx.protocol.attest.recognise import recognise
from bombyx.protocol.attest.report import AtHand, Binding, Part, Report
from bombyx.protocol.attest.result import AttestationResult, explain
from bombyx.protocol.attest.roots import INTEL_ROOT, TrustClass
from bombyx.protocol.attest.steps import STEP_NAMES, NotEnough, Status, Step

__all__ = [
    "appraise",
    "explain",
    "AttestationResult",
    "Step",
    "Status",
    "STEP_NAMES",
    "TrustClass",
    "Claims",
    "QuoteClaims",
    "BootClaims",
    "AppraisalPolicy",
    "TrustedRoot",
    "ReferenceValue",
    "intel_root",
    "INTEL_ROOT",
    "policy_from_toml",
    "policy_to_toml",
    "RegisteredWorker",
    "report_data",
    "gpu_nonce",
    "recognise",
    "Report",
    "Part",
    "Binding",
    "AtHand",
    "Archive",
    "examine",
    "appraise_report",
    "Examination",
    "Outcome",
    "Verdict",
    "NotEnough",
    "amd_root",
    "PRESETS",
    "preset",
    "explain_policy",
    "missing",
]
