# SPDX-License-Identifier: Apache-2.0
"""One honest worker in a simulated enclave, as a scene every attack alters in one place."""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bombyx.adapters.simulator import SimulatedEnclave, SimulatedImage, SimulatedPlatform, development_policy
from bombyx.adapters.simulator.enclave import WORKER_IMAGE
from bombyx.errors import AttestationError
from bombyx.protocol.attest import (
    STEP_NAMES,
    AppraisalPolicy,
    AttestationResult,
    RegisteredWorker,
    Status,
    appraise,
    policy_to_toml,
    report_data,
)
from bombyx.protocol.attest.events import write_event_log
from bombyx.protocol.primitives import Address, Instant, sha256
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle, FileDigest, Keyset, ModelManifest

NOW = Instant.from_seconds(1_790_000_000)
SEED = b"a seed for tests, and no secret!"
PLATFORM = SimulatedPlatform.create(seed=SEED, now=NOW)
OTHER_PLATFORM = SimulatedPlatform.create(seed=SEED[::-1], now=NOW)
ENDORSEMENTS = PLATFORM.endorsements(NOW)
HEADER = BlockHeader(number=77, hash=sha256(b"block 77"), parent=sha256(b"block 76"), timestamp=NOW.plus(seconds=-30))
MANIFEST = ModelManifest(
    v=1,
    name="smol",
    weights=(FileDigest(name="model.gguf", sha256=sha256(b"weights"), size=7),),
    tokenizer=None,
    chat_template=None,
    quantisation="q8_0",
    engine="scripted 1",
    arguments=(),
    context=2048,
    parameters=135_000_000,
)
KEYSET = Keyset(
    v=1,
    ohttp_key_config=bytes(41),
    receipt_address=Address(b"r" * 20),
    operator=Address(b"o" * 20),
    chain_id=31337,
    pay_authorizer=Address(b"p" * 20),
    models=(MANIFEST.digest(),),
    gpu_evidence=None,
    beacon=HEADER.hash,
    not_before=NOW.plus(seconds=-10),
    not_after=NOW.plus(seconds=3600),
)
REGISTERED = RegisteredWorker(
    operator=KEYSET.operator, receipt_address=KEYSET.receipt_address, pay_authorizer=KEYSET.pay_authorizer
)


@dataclass(kw_only=True)
class Scene:
    """What the worker made, what the verifier knows. `keyset`, `enclave` and `bundle` hold what differs from honest."""

    platform: SimulatedPlatform = PLATFORM
    image: SimulatedImage = WORKER_IMAGE
    policy: AppraisalPolicy = field(default_factory=lambda: development_policy(PLATFORM))
    registered: RegisteredWorker | None = REGISTERED
    beacon: BlockHeader | None = HEADER
    now: Instant = NOW
    keyset: dict[str, Any] = field(default_factory=dict)
    enclave: dict[str, Any] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    vector: Path | None = None  # where this attack is kept for other implementations

    def make_keyset(self) -> Keyset:
        return replace(KEYSET, **self.keyset)

    def make_bundle(self) -> EvidenceBundle:
        """Keyset into report data into quote, as an enclave does it; then whatever the scene swaps afterwards."""
        keys = self.make_keyset().encode()
        enclave = SimulatedEnclave(platform=self.platform, image=self.image, **self.enclave)
        honest = EvidenceBundle(
            v=1,
            technology="tdx",
            quote=self.platform.quote(enclave.report(report_data(keys))),
            event_log=write_event_log(enclave.events),
            keyset=keys,
            gpu_evidence=None,
            compose=self.image.compose,
            manifests=(MANIFEST.encode(),),
            endorsements=ENDORSEMENTS,
            beacon_header=HEADER,
        )
        return replace(honest, **self.bundle)

    def appraise(self) -> AttestationResult:
        return appraise(
            self.make_bundle().encode(), self.policy, now=self.now, registered=self.registered, beacon=self.beacon
        )

    def refused(self, step: int, *words: str) -> AttestationError:
        """The appraisal fails at `step`, says `words`, and shows all ten steps."""
        error = refused(self.appraise, step, *words)
        if self.vector is not None:
            compare_or_keep(self.vector, self.as_vector(step))
        return error

    def as_vector(self, step: int | None) -> dict[str, Any]:
        """Everything one appraisal needs, and what must come of it, as JSON (tests/vectors/attest/README.md)."""
        registered, beacon = self.registered, self.beacon
        return {
            "attack": self.vector.stem if self.vector else "",
            "fails_at_step": step,
            "now_ms": int(self.now),
            "policy": policy_to_toml(self.policy),
            "registered": None
            if registered is None
            else {
                "operator": registered.operator.hex(),
                "receipt_address": registered.receipt_address.hex(),
                "pay_authorizer": registered.pay_authorizer.hex(),
                "chain_id": registered.chain_id,
            },
            "beacon": None if beacon is None else beacon.encode().hex(),
            "bundle": base64.b64encode(zlib.compress(self.make_bundle().encode(), 9)).decode(),
        }


def refused(attempt: Callable[[], object], step: int, *words: str) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        attempt()
    error = caught.value
    assert error.rule == f"ATT-6.{step}", str(error)
    assert [shown.number for shown in error.steps] == list(range(1, 11))
    assert tuple(shown.name for shown in error.steps) == STEP_NAMES
    assert [shown.number for shown in error.steps if shown.status is Status.FAILED] == [step]
    assert all(shown.detail == "not checked: an earlier step failed" for shown in error.steps[step:])
    for word in words:
        assert word in str(error), str(error)
    return error


def compare_or_keep(path: Path, vector: dict[str, Any]) -> None:
    """Compare with the vector kept; write it where BOMBYX_WRITE_VECTORS is set. A stale vector is a failure."""
    if os.environ.get("BOMBYX_WRITE_VECTORS"):
        path.write_text(json.dumps(vector, indent=1) + "\n")
    kept = json.loads(path.read_text())
    assert unpacked(kept) == unpacked(vector), f"{path.name} is not what this attack makes; see its README"


def unpacked(vector: dict[str, Any]) -> dict[str, Any]:
    """With the bundle's own bytes: compressed ones may differ between versions of zlib."""
    return {**vector, "bundle": zlib.decompress(base64.b64decode(vector["bundle"]))}


@pytest.fixture
def keep() -> Callable[[Path, dict[str, Any]], None]:
    return compare_or_keep


@pytest.fixture
def scene(request: pytest.FixtureRequest, vectors: Path) -> Scene:
    if request.path.name != "test_attacks.py":
        return Scene()
    name = re.sub(r"[^A-Za-z0-9]+", "_", request.node.name.removeprefix("test_")).strip("_")
    return Scene(vector=vectors / "attest" / f"{name}.json")
