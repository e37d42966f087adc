# SPDX-License-Identifier: Apache-2.0
"""Step 9: GPU evidence. Required whenever the image can open a GPU; its nonce binds it to the keyset (ATT-9)."""

from __future__ import annotations

from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset


def check_gpu(bundle: EvidenceBundle, keyset: Keyset, *, required: bool) -> Found[tuple[str, ...]]:
    """Step 9. The value: one line a verified GPU."""
    evidence = bundle.gpu_evidence
    if (None if evidence is None else sha256(evidence)) != keyset.gpu_evidence:
        raise Refused("the GPU evidence is not the one the keyset names")
    if evidence is None:
        if required:
            raise Refused("this image can open a GPU, and there is no GPU evidence")
        return Found((), "not applicable: this image cannot open a GPU", Status.NOT_APPLICABLE)
    raise Refused("GPU evidence of a form this version does not verify")
