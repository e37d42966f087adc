# SPDX-License-Identifier: Apache-2.0
"""What publishers' word adds to a policy, and what it never adds (ATT-14)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bombyx.errors import ConfigError
from bombyx.protocol.attest import (
    AppraisalPolicy,
    ReferenceValue,
    TrustClass,
    explain_policy,
    intel_root,
    missing,
    policy_from_toml,
    policy_to_toml,
)
from bombyx.protocol.primitives import Address, sha256

A, B, C, D = (Address(bytes([n]) * 20) for n in (1, 2, 3, 4))
IMAGE = sha256(b"an image")
FIRMWARE = tuple((name, bytes([n]) * 48) for n, name in enumerate(("mrtd", "rtmr0", "rtmr1", "rtmr2")))
PINNED = ReferenceValue(
    name="ours",
    trust_class=TrustClass.TDX,
    compose_hash=sha256(b"ours"),
    measurements=(*FIRMWARE, ("rtmr3", bytes(48))),
)
TDX = AppraisalPolicy(
    roots=(intel_root(),), trust_classes=frozenset({TrustClass.TDX}), publishers=(A, B, C), publishers_agree=2
)


def test_on_hardware_an_image_counts_only_on_firmware_the_policy_names() -> None:
    """ATT-14: a kernel of the host's own can write any compose hash into RTMR3."""
    assert TDX.admitting(IMAGE) == TDX
    assert any("firmware and kernel" in gap for gap in missing(TDX))
    loose = replace(PINNED, measurements=(("mrtd", bytes(48)),))
    assert len(replace(TDX, reference_values=(loose,)).admitting(IMAGE).reference_values) == 1
    *kept, added = replace(TDX, reference_values=(PINNED,)).admitting(IMAGE).reference_values
    assert kept == [PINNED]
    assert added == ReferenceValue(
        name="2 of 3 publishers", trust_class=TrustClass.TDX, compose_hash=IMAGE, measurements=FIRMWARE
    )


def test_gpu_evidence_is_due_where_the_platform_opens_one() -> None:
    """ATT-9, ATT-14: the stricter of two values for one platform."""
    policy = replace(TDX, reference_values=(PINNED, replace(PINNED, name="with GPUs", gpu=True)))
    assert [value.gpu for value in policy.admitting(IMAGE).reference_values] == [False, True, True]


def test_a_class_that_is_not_accepted_gets_nothing() -> None:
    """ATT-14: publishers never make a policy accept a simulator."""
    snp = replace(PINNED, trust_class=TrustClass.SNP)
    assert TDX.admitting(IMAGE).reference_values == ()
    assert replace(TDX, reference_values=(snp,)).admitting(IMAGE).reference_values == (snp,)


@pytest.mark.parametrize(("publishers", "quorum"), [((), 0), ((), 1), ((A, B), 0), ((A, B), 3), ((A, A), 2)])
def test_no_quorum_is_no(publishers: tuple[Address, ...], quorum: int) -> None:
    """ATT-14: empty means no; one publisher named twice is one."""
    simulated = AppraisalPolicy(trust_classes=frozenset({TrustClass.SIMULATED}))
    policy = replace(simulated, publishers=publishers, publishers_agree=quorum)
    assert not policy.asks_publishers() and policy.admitting(IMAGE) == policy
    if publishers or quorum:
        assert any("never agree" in gap for gap in missing(policy))


def test_joined_policies_ask_only_those_both_name() -> None:
    """ATT-10, ATT-14: nobody's publishers admit anything for the other part."""
    other = replace(TDX, publishers=(B, C, D), publishers_agree=1)
    joined = TDX | other
    assert (joined.publishers, joined.publishers_agree) == ((B, C), 2)
    assert not (TDX | replace(TDX, publishers=())).asks_publishers()


def test_an_image_vouched_for_passes_and_another_does_not(scene: Any) -> None:
    """ATT-14: through all ten steps."""
    mine = scene.image.compose_hash
    scene.policy = replace(scene.policy, reference_values=(), publishers=(A, B, C), publishers_agree=2)
    scene.refused(6, "no Reference Value")
    asked, scene.policy = scene.policy, scene.policy.admitting(mine)
    assert scene.appraise().claims.reference_value == "2 of 3 publishers"
    scene.policy = asked.admitting(IMAGE)
    scene.refused(6, "no Reference Value")


def test_publishers_in_a_file_and_in_sentences() -> None:
    """ATT-14: what is written comes back, and is told."""
    policy = replace(TDX, reference_values=(PINNED,))
    assert policy_from_toml(policy_to_toml(policy)) == policy
    said = dict(explain_policy(policy))["publishers"]
    assert "while 2 of these" in said and str(A) in said and missing(policy) == []


@pytest.mark.parametrize(
    "text", ["publishers = ['0x00']", "publishers = [1]", f"publishers = ['{A}', '{A}']", "publishers_agree = -1"]
)
def test_a_mistake_about_publishers_is_named(text: str) -> None:
    """ATT-10, ATT-14."""
    with pytest.raises(ConfigError, match="publishers"):
        policy_from_toml(text)
