# SPDX-License-Identifier: Apache-2.0
"""AttestationResult: holding one is proof that the appraisal was done and passed (RFC 9334 Attestation Result).

Only `appraise` makes one. Nothing can be sealed to a worker without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bombyx.errors import AttestationError
from bombyx.protocol.attest.claims import Claims
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.attest.steps import Step
from bombyx.protocol.primitives import Digest, Instant
from bombyx.protocol.wire.evidence import Keyset, ModelManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """What was proven of one enclave, and until when it may be relied on."""

    trust_class: TrustClass
    keyset: Keyset
    key_configs: bytes  # application/ohttp-keys: what may be sealed to
    manifests: tuple[ModelManifest, ...]  # of the keyset, in its order
    claims: Claims
    steps: tuple[Step, ...]
    until: Instant
    bundle: Digest  # SHA-256 of the appraised EvidenceBundle


def explain(outcome: AttestationResult | AttestationError | Sequence[Step]) -> list[tuple[int, str, str, str]]:
    """(number, name, status, detail), a line a step, for tables and logs. Takes a failure's error as well."""
    steps = outcome.steps if isinstance(outcome, AttestationResult | AttestationError) else outcome
    return [(step.number, step.name, str(step.status), step.detail) for step in steps]
