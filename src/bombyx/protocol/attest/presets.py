# SPDX-License-Identifier: Apache-2.0
"""Policies to start from, by name. Neither names an image: until you add Reference Values, nothing passes.

`production-tdx-h100`: Intel TDX, up to date, with NVIDIA GPUs in confidential mode.
`development-simulated`: the simulator's evidence, which protects from nobody who owns the host; add its root.
"""

from __future__ import annotations

from typing import Final

from bombyx.errors import ConfigError
from bombyx.protocol.attest.policy import AppraisalPolicy, intel_root
from bombyx.protocol.attest.roots import NVIDIA_TOKEN_AUTHORITY, TrustClass

PRESETS: Final[dict[str, AppraisalPolicy]] = {
    "production-tdx-h100": AppraisalPolicy(
        roots=(intel_root(),),
        trust_classes=frozenset({TrustClass.TDX_GPU}),
        require_gpu=True,
        token_roots=(NVIDIA_TOKEN_AUTHORITY,),
    ),
    "development-simulated": AppraisalPolicy(trust_classes=frozenset({TrustClass.SIMULATED})),
}


def preset(name: str) -> AppraisalPolicy:
    """Raises `ConfigError` for a name that is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; known: {', '.join(PRESETS)}", rule="ATT-10") from None
