# SPDX-License-Identifier: Apache-2.0
"""Policies as TOML: they come back as they were, and a mistake is named, not guessed at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import ConfigError
from bombyx.protocol.attest import (
    AppraisalPolicy,
    ReferenceValue,
    TrustClass,
    TrustedRoot,
    intel_root,
    policy_from_toml,
    policy_to_toml,
)
from bombyx.protocol.primitives import Address, Digest

DIGESTS = st.binary(min_size=32, max_size=32).map(Digest)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
ROOTS = st.one_of(
    st.builds(intel_root),
    st.builds(TrustedRoot, name=NAMES, certificate=st.binary(min_size=1), tcb_statuses=st.frozensets(NAMES)),
)
REFERENCES = st.builds(
    ReferenceValue,
    name=NAMES,
    trust_class=st.sampled_from(TrustClass),
    compose_hash=DIGESTS,
    measurements=st.just(()) | st.binary(min_size=48, max_size=48).map(lambda value: (("mrtd", value),)),
    gpu=st.booleans(),
)
POLICIES = st.builds(
    AppraisalPolicy,
    roots=st.lists(ROOTS, max_size=3).map(tuple),
    trust_classes=st.frozensets(st.sampled_from(TrustClass)),
    reference_values=st.lists(REFERENCES, max_size=3).map(tuple),
    models=st.none() | st.frozensets(DIGESTS, max_size=3),
    require_gpu=st.booleans(),
    require_chain=st.booleans(),
    max_beacon_age=st.integers(0, 7200),
    publishers=st.lists(st.binary(min_size=20, max_size=20).map(Address), max_size=3, unique=True).map(tuple),
    publishers_agree=st.integers(0, 4),
)


@given(POLICIES)
def test_a_policy_comes_back_as_it_was(policy: AppraisalPolicy) -> None:
    """ATT-10: the text is the policy."""
    assert policy_from_toml(policy_to_toml(policy)) == policy


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_policy_or_a_config_error(text: str) -> None:
    """ATT-10."""
    try:
        assert isinstance(policy_from_toml(text), AppraisalPolicy)
    except ConfigError:
        pass


def test_an_empty_file_is_a_policy_that_passes_nothing() -> None:
    """ATT-10: empty means no."""
    assert policy_from_toml("") == AppraisalPolicy()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trust_clases = ['tdx']", "unknown key 'trust_clases'"),
        ("trust_classes = ['gold']", "no trust class 'gold'"),
        ("trust_classes = 'tdx'", "trust_classes must be a list"),
        ("[[root]]\nname = 'x'\ncertificate = '%'", "root 'x': certificate is not base64"),
        ("[[root]]\nname = 'x'", "certificate must be a str"),
        ("root = ['x']", "[[root]]"),
        ("[[reference_value]]\nname = 'x'\ntrust_class = 'tdx'", "names nothing"),
        ("[[reference_value]]\nname = 'x'\ntrust_class = 'tdx'\ncompose_hash = 'ff'", "64 hex digits"),
        ("[[reference_value]]\nname = 'x'\ntrust_class = 'tdx'\nmeasurements = { mrtd = 'ff' }", "mrtd has 1 bytes"),
        ("[[reference_value]]\nname = 'x'\ntrust_class = 'tdx'\nmeasurements = { mrdt = 'ff' }", "mrdt"),
        ("max_beacon_age = -1", "max_beacon_age"),
        ("require_gpu = 1", "require_gpu must be a bool"),
        ("= nonsense", "policy:"),
        ("#" * 300_000, "at most"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    """ATT-10: a misspelt restriction must not vanish."""
    with pytest.raises(ConfigError) as caught:
        policy_from_toml(text)
    assert says in str(caught.value)
