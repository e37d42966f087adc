# SPDX-License-Identifier: Apache-2.0
"""The simulator: reproducible, in real formats, and never mistaken for what it imitates."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest

from bombyx.adapters.simulator import SimulatedEnclave, SimulatedEndorsements, SimulatedPlatform, development_policy
from bombyx.errors import ConfigError
from bombyx.protocol.attest import TrustClass, policy_from_toml, policy_to_toml
from bombyx.protocol.primitives import Instant


class FixedClock:
    def __init__(self, now: Instant) -> None:
        self._now = now

    def now(self) -> Instant:
        return self._now

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        return None


def test_the_same_seed_gives_the_same_bytes(scene: Any) -> None:
    """ATT-12: so that vectors reproduce."""
    twin = SimulatedPlatform.create(seed=scene.platform.seed.reveal(), now=scene.now)
    report = SimulatedEnclave(platform=twin).report(b"r" * 64)
    assert twin.root_certificate == scene.platform.root_certificate
    assert twin.quote(report) == scene.platform.quote(report)
    assert twin.endorsements(scene.now) == scene.platform.endorsements(scene.now)


def test_another_seed_is_another_authority(scene: Any) -> None:
    """ATT-12."""
    other = SimulatedPlatform.create(seed=bytes(32), now=scene.now)
    assert other.root_certificate != scene.platform.root_certificate


def test_a_platform_survives_a_restart_and_its_seed_is_private(scene: Any, tmp_path: Path) -> None:
    """ATT-12: a second process on the same machine joins the same simulated world."""
    directory = tmp_path / "platform"
    late = scene.platform.with_settings(tcb_status="OutOfDate")
    late.save(directory)
    assert stat.S_IMODE((directory / "seed.key").stat().st_mode) == 0o600
    loaded = SimulatedPlatform.load(directory)
    assert loaded == late and loaded.root_certificate == late.root_certificate
    assert b"OutOfDate" in loaded.endorsements(scene.now)


@pytest.mark.parametrize("damage", ["seed.key", "platform.json"])
def test_a_damaged_platform_is_refused(scene: Any, tmp_path: Path, damage: str) -> None:
    """ATT-12."""
    scene.platform.save(tmp_path)
    (tmp_path / damage).write_text("nonsense")
    with pytest.raises(ConfigError):
        SimulatedPlatform.load(tmp_path)
    with pytest.raises(ConfigError):
        SimulatedPlatform.load(tmp_path / "nowhere")


def test_intels_root_refuses_a_simulated_quote(scene: Any) -> None:
    """ATT-12: the unmodified library, asked directly."""
    bundle = scene.make_bundle()
    collateral = dcap_qvl.QuoteCollateralV3.from_json(bundle.endorsements.decode())
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(bundle.quote, collateral, scene.now.seconds)


async def test_the_enclave_keeps_its_ports_promises(scene: Any) -> None:
    """`EvidenceSource`: exactly this report data; no GPU. `EndorsementSource`: good for the quote, now."""
    enclave = SimulatedEnclave(platform=scene.platform)
    quote = await enclave.quote(bytes(range(64)))
    assert bytes(dcap_qvl.parse_quote(quote.quote).report.report_data) == bytes(range(64))
    assert await enclave.gpu(bytes(32)) is None
    endorsements = await SimulatedEndorsements(platform=scene.platform, clock=FixedClock(scene.now)).endorsements(
        quote.quote
    )
    collateral = dcap_qvl.QuoteCollateralV3.from_json(endorsements.decode())
    report = dcap_qvl.verify_with_root_ca(quote.quote, collateral, scene.platform.root_certificate, scene.now.seconds)
    assert report.status == "UpToDate"


def test_two_boots_of_one_image_differ_in_instance_alone(scene: Any) -> None:
    """ATT-6.5: the same code, so the same Reference Value; another instance id."""
    first = scene.appraise().claims
    scene.enclave = {"instance": b"\x01" * 16}
    second = scene.appraise().claims
    assert first.boot.instance_id != second.boot.instance_id
    assert first.reference_value == second.reference_value


def test_a_development_policy_travels_as_text_and_accepts_nothing_but_the_simulator(scene: Any) -> None:
    """ATT-10, ATT-12."""
    policy = policy_from_toml(policy_to_toml(development_policy(scene.platform)))
    assert policy == development_policy(scene.platform.root_certificate)
    assert policy.trust_classes == {TrustClass.SIMULATED}
