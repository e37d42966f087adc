# SPDX-License-Identifier: Apache-2.0
"""Claims: what a piece of evidence says once its signatures are verified, in words common to every technology.

Not here: any judgement of them; `appraise.py` compares them with a policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.primitives import Digest, Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteClaims:
    """What the hardware signed, and what its Endorser says of that hardware."""

    technology: str
    format: str  # e.g. "tdx quote v4"
    root: str  # the policy's name of the root that verified the chain
    trust_class: TrustClass  # computed from that root
    tcb_status: str
    advisories: tuple[str, ...]
    platform: str  # model of the platform as the Endorser names it (TDX: FMSPC)
    debug: bool
    measurements: tuple[tuple[str, bytes], ...]  # by name: mrtd, rtmr0 .. rtmr3, mr_config_id, ...
    report_data: bytes
    endorsed_until: Instant  # the earliest end of what vouches for the platform

    def measurement(self, name: str) -> bytes:
        """Empty when this technology has no such measurement."""
        return dict(self.measurements).get(name, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootClaims:
    """What the event log says was started, once it replays to the measured registers. Empty where it says nothing."""

    compose_hash: Digest | None = None
    app_id: bytes = b""
    instance_id: bytes = b""
    os_image_hash: bytes = b""
    key_provider: bytes = b""
    gpu_policy: bytes = b""  # SHA-256 of what the application asks of its GPUs
    init_scripts: tuple[bytes, ...] = ()  # SHA-256 of each, in the order they ran


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """All that was proven, or read from what was proven."""

    quote: QuoteClaims
    boot: BootClaims
    reference_value: str  # name of the one that matched
    gpus: tuple[str, ...] = ()  # one line a verified GPU
