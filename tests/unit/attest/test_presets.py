# SPDX-License-Identifier: Apache-2.0
"""Presets and policies in sentences: nothing passes until an image is named, and a policy says what it lacks."""

from __future__ import annotations

import pytest
from tests.unit.attest.providers import POLICY, Case

from bombyx.errors import ConfigError
from bombyx.protocol.attest import (
    PRESETS,
    AppraisalPolicy,
    TrustClass,
    Verdict,
    amd_root,
    explain_policy,
    missing,
    policy_from_toml,
    policy_to_toml,
    preset,
)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_alone_passes_nothing(name: str) -> None:
    """ATT-10: neither names an image; a simulator's report is refused by both."""
    assert missing(preset(name))
    case = Case.phala()
    case.policy = preset(name)
    assert case.examine().verdict is Verdict.REFUSED


def test_no_preset_takes_a_simulator_for_hardware() -> None:
    """ATT-12: the production preset accepts one class, and no root that a simulator could hold."""
    production = preset("production-tdx-h100")
    assert production.trust_classes == {TrustClass.TDX_GPU} and production.require_gpu
    assert all(root.trust_class is TrustClass.TDX for root in production.roots)
    with pytest.raises(ConfigError, match="no preset"):
        preset("production")


def test_policies_in_sentences() -> None:
    """ATT-10: each thing it accepts, and each thing it lacks."""
    said = dict(explain_policy(POLICY))
    assert "protects from nobody" in said["accepts"] and "at least one GPU" in said["GPU"] and "MISSING" not in said
    gaps = " ".join(missing(AppraisalPolicy()))
    assert "no root" in gaps and "no trust class" in gaps and "no image" in gaps
    mismatched = AppraisalPolicy(roots=POLICY.roots, trust_classes=frozenset({TrustClass.TDX}))
    assert any("no root named can give" in gap for gap in missing(mismatched))


def test_roots_by_name_and_least_levels_are_kept_as_toml() -> None:
    """ATT-10: what is written can be read, by people too."""
    policy = AppraisalPolicy(
        roots=(amd_root("genoa", (("microcode", 72), ("snp", 23))),),
        trust_classes=frozenset({TrustClass.SNP, TrustClass.SGX}),
        gpu_roots=POLICY.gpu_roots,
        token_roots=POLICY.token_roots,
        require_nonce=False,
    )
    text = policy_to_toml(policy)
    assert policy_from_toml(text) == policy
    assert 'certificate = "amd-genoa"' in text and "minimum_tcb = { microcode = 72, snp = 23 }" in text
    assert 'gpu_roots = ["nvidia"]' not in policy_to_toml(AppraisalPolicy())


@pytest.mark.parametrize(
    "text",
    [
        'token_roots = ["nobody!"]',
        'gpu_roots = "nvidia"',
        'require_nonce = "yes"',
        '[[root]]\nname = "a"\ncertificate = "amd-genoa"\nminimum_tcb = { luck = 7 }',
        '[[root]]\nname = "a"\ncertificate = "amd-genoa"\nminimum_tcb = { snp = -1 }',
    ],
)
def test_a_policy_that_is_misspelt(text: str) -> None:
    """ATT-10: refused, never read as less."""
    with pytest.raises(ConfigError):
        policy_from_toml(text)
