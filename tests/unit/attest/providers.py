# SPDX-License-Identifier: Apache-2.0
"""Honest reports of simulated providers, as a scene that every attack alters in one place."""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from bombyx.adapters.simulator import SimulatedPlatform
from bombyx.adapters.simulator.gpu import SimulatedGpus
from bombyx.adapters.simulator.provider import GATEWAY_IMAGE, NODE_IMAGE, SimulatedProvider
from bombyx.protocol.attest import (
    AppraisalPolicy,
    Archive,
    Examination,
    Report,
    TrustClass,
    TrustedRoot,
    Verdict,
    examine,
    policy_from_toml,
    policy_to_toml,
    recognise,
)
from bombyx.protocol.primitives import Instant, Secret

NOW = Instant.from_seconds(1_790_000_000)
SEED = b"a seed for tests, and no secret!"
NONCE = bytes(range(32))
OTHER = bytes(range(1, 33))
PLATFORM = SimulatedPlatform.create(seed=SEED, now=NOW)
GPUS = SimulatedGpus(seed=Secret(SEED), created=NOW, count=2)
PROVIDER = SimulatedProvider(platform=PLATFORM, gpus=GPUS)
ENDORSEMENTS = PLATFORM.endorsements(NOW)
POLICY = AppraisalPolicy(
    roots=(TrustedRoot(name="simulator", certificate=PLATFORM.root_certificate),),
    trust_classes=frozenset({TrustClass.SIMULATED}),
    reference_values=(NODE_IMAGE.reference_value(), GATEWAY_IMAGE.reference_value()),
    gpu_roots=(GPUS.root.root,),
    token_roots=(GPUS.service.root,),
    require_gpu=True,
)
VECTORS = Path(__file__).parents[2] / "vectors" / "attest" / "reports"


@dataclass(kw_only=True)
class Case:
    """One report, what is at hand, and what must come of it. `document` None: `raw` is the evidence."""

    document: dict[str, Any] | None = None
    raw: bytes = b""
    policy: AppraisalPolicy = POLICY
    now: Instant = NOW
    nonce: bytes | None = NONCE
    report_data: bytes | None = None
    endorsements: tuple[bytes, ...] = (ENDORSEMENTS,)
    tokens: tuple[bytes, ...] = field(default_factory=lambda: (GPUS.tokens(NONCE, NOW),))
    jwks: bytes = field(default_factory=GPUS.jwks)
    rims: tuple[bytes, ...] = ()
    name: str = ""  # of the vector

    @classmethod
    def phala(cls, **enclave: Any) -> Case:
        return cls(document=PROVIDER.phala(NONCE, **enclave))

    @classmethod
    def near(cls) -> Case:
        return cls(document=PROVIDER.near(NONCE, NOW))

    @property
    def model(self) -> dict[str, Any]:
        assert self.document is not None
        return self.document["model_attestations"][0]  # type: ignore[no-any-return]

    def evidence(self) -> bytes:
        return self.raw if self.document is None else orjson.dumps(self.document)

    def archive(self) -> Archive:
        return Archive(
            report=self.evidence(),
            captured=NOW,
            nonce=self.nonce,
            endorsements=self.endorsements,
            tokens=self.tokens,
            jwks=self.jwks,
            rims=self.rims,
        )

    def examine(self) -> Examination:
        """Through an archive and back, as a vector is."""
        archive = Archive.decode(self.archive().encode())
        report = recognise(archive.report)
        assert isinstance(report, Report)
        at_hand = replace(archive.at_hand(), report_data=self.report_data)
        return examine(report, self.policy, now=self.now, at_hand=at_hand)

    def comes_to(self, verdict: Verdict, step: int, *words: str, part: str | None = None) -> Examination:
        """The worst part has this verdict, by this step, in these words; every part shows all ten steps."""
        found = self.examine()
        assert found.verdict is verdict, [(one.name, one.why) for one in found.outcomes]
        worst = next(one for one in found.outcomes if one.verdict is verdict and part in (None, one.name))
        marked = "failed" if verdict is Verdict.REFUSED else "not checked"
        first = next((shown.number for shown in worst.steps if shown.status == marked), 0)
        assert first == step, worst.why
        for one in found.outcomes:
            assert [shown.number for shown in one.steps] == list(range(1, 11))
            assert (one.trust_class is None) == (one.verdict is not Verdict.VERIFIED)
            assert one.verdict is Verdict.VERIFIED or (one.keys, one.until) == ((), None)
        for word in words:
            assert word in worst.why, worst.why
        self.keep(verdict, step, worst.name)
        return found

    def refused(self, step: int, *words: str, part: str | None = None) -> Examination:
        return self.comes_to(Verdict.REFUSED, step, *words, part=part)

    def undecided(self, step: int, *words: str, part: str | None = None) -> Examination:
        return self.comes_to(Verdict.UNDECIDED, step, *words, part=part)

    def verified(self) -> Examination:
        found = self.examine()
        assert found.verdict is Verdict.VERIFIED, [(one.name, one.why) for one in found.outcomes]
        self.keep(Verdict.VERIFIED, None, None)
        return found

    def keep(self, verdict: Verdict, step: int | None, part: str | None) -> None:
        """Compare with the vector kept; write it where BOMBYX_WRITE_VECTORS is set. A stale vector is a failure."""
        if not self.name:
            return
        path = VECTORS / f"{self.name}.json"
        if os.environ.get("BOMBYX_WRITE_VECTORS"):
            VECTORS.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.as_vector(verdict, step, part), indent=1) + "\n")
        kept = json.loads(path.read_text())
        assert unpacked(kept) == unpacked(self.as_vector(verdict, step, part)), f"{path.name} is stale; see the README"

    def as_vector(self, verdict: Verdict, step: int | None, part: str | None) -> dict[str, Any]:
        """A request of `bombyx conformance`, with what must be answered beside it."""
        assert policy_from_toml(policy_to_toml(self.policy)) == self.policy
        return {
            "attack": self.name,
            "verdict": str(verdict),
            "part": part,
            "fails_at_step": step,
            "now_ms": int(self.now),
            "policy": policy_to_toml(self.policy),
            "report_data": None if self.report_data is None else self.report_data.hex(),
            "bundle": base64.b64encode(zlib.compress(self.archive().encode(), 9)).decode(),
        }


def unpacked(vector: dict[str, Any]) -> dict[str, Any]:
    """With the archive's own bytes: compressed ones may differ between versions of zlib."""
    return {**vector, "bundle": zlib.decompress(base64.b64decode(vector["bundle"]))}


def vector_name(test: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", test.removeprefix("test_")).strip("_")


def flipped(raw: bytes, position: int) -> bytes:
    altered = bytearray(raw)
    altered[position] ^= 1
    return bytes(altered)
