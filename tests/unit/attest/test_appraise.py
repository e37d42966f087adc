# SPDX-License-Identifier: Apache-2.0
"""The honest case, what the result says of it, and what an appraisal without a chain leaves open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bombyx.protocol.attest import STEP_NAMES, AppraisalPolicy, Status, TrustClass, appraise, explain
from bombyx.protocol.primitives import sha256


@pytest.mark.parametrize("quote_version", [4, 5])
@pytest.mark.parametrize("event_version", [1, 2])
def test_an_honest_worker_passes_all_ten_steps(scene: Any, quote_version: int, event_version: int) -> None:
    """ATT-6: both quote versions, both event digests."""
    scene.enclave = {"quote_version": quote_version, "event_version": event_version}
    result = scene.appraise()
    assert [step.name for step in result.steps] == list(STEP_NAMES)
    assert [step.status for step in result.steps] == [Status.PASSED] * 8 + [Status.NOT_APPLICABLE, Status.PASSED]
    assert result.trust_class is TrustClass.SIMULATED
    assert result.claims.boot.compose_hash == scene.image.compose_hash
    assert result.key_configs == scene.make_keyset().ohttp_key_config
    assert [manifest.name for manifest in result.manifests] == ["smol"]
    assert result.bundle == sha256(scene.make_bundle().encode())


def test_a_bundle_and_its_bytes_give_the_same_result(scene: Any) -> None:
    """ATT-6.1: decoding is part of the appraisal, or was done before; nothing else differs."""
    bundle = scene.make_bundle()
    known = {"now": scene.now, "registered": scene.registered, "beacon": scene.beacon}
    assert appraise(bundle, scene.policy, **known) == appraise(bundle.encode(), scene.policy, **known)


def test_the_result_ends_with_the_keyset_or_with_what_vouches_for_it(scene: Any) -> None:
    """ATT-6.10: nobody relies on a result longer than on its weakest part."""
    assert scene.appraise().until == scene.make_keyset().not_after
    soon = scene.platform.with_settings(collateral_days=0, crl_days=1).endorsements(scene.now.plus(seconds=600))
    scene.bundle, scene.now = {"endorsements": soon}, scene.now.plus(seconds=600)
    assert scene.appraise().until <= scene.make_keyset().not_after


def test_without_a_chain_two_steps_are_not_checked_and_say_why(scene: Any) -> None:
    """ATT-6.7, ATT-6.8: what could not be asked is never shown as passed."""
    scene.registered, scene.beacon, scene.policy = None, None, scene.policy.offline()
    shown = {number: (status, detail) for number, _, status, detail in explain(scene.appraise())}
    assert shown[7] == ("not checked", "report data binds the keyset; not checked: no registry given")
    assert shown[8][0] == "not checked" and "no trusted header" in shown[8][1]


def test_without_any_header_the_beacon_is_not_checked(scene: Any) -> None:
    """ATT-6.8."""
    scene.beacon, scene.policy, scene.bundle = None, scene.policy.offline(), {"beacon_header": None}
    assert scene.appraise().steps[7].status is Status.NOT_CHECKED


def test_everything_readable_says_simulated(scene: Any) -> None:
    """ATT-12: nobody may mistake the simulator for hardware."""
    result = scene.appraise()
    lines = [detail for _, _, _, detail in explain(result)]
    assert sum("simulated" in line for line in lines) >= 3
    assert "simulated" in result.claims.quote.format and "simulated" in result.claims.reference_value
    assert b"simulated" in scene.platform.root_certificate


def test_given_endorsements_take_the_place_of_the_bundles(scene: Any) -> None:
    """ATT-5: a verifier may bring its own, fresher ones."""
    scene.bundle = {"endorsements": b""}
    fresh = scene.platform.endorsements(scene.now)
    known = {"now": scene.now, "registered": scene.registered, "beacon": scene.beacon}
    assert appraise(scene.make_bundle(), scene.policy, **known, endorsements=fresh).steps[1].status is Status.PASSED


def test_a_status_the_policy_allows_passes_and_is_named(scene: Any) -> None:
    """ATT-6.3: an operator of a policy may accept a platform that waits for a patch; the advisory is shown."""
    late = scene.platform.with_settings(tcb_status="SWHardeningNeeded")
    scene.bundle = {"endorsements": late.endorsements(scene.now)}
    root = replace(scene.policy.roots[0], tcb_statuses=frozenset({"UpToDate", "SWHardeningNeeded"}))
    scene.policy = replace(scene.policy, roots=(root,))
    assert scene.appraise().steps[2].detail == "SWHardeningNeeded SIMULATED-SA-00001"


def test_policies_join_without_loosening_each_other(scene: Any) -> None:
    """ATT-10: either part's evidence passes; the stricter limit stands."""
    joined = scene.policy | AppraisalPolicy(max_beacon_age=60, require_chain=False)
    assert joined.max_beacon_age == 60 and joined.require_chain
    scene.policy = joined
    assert scene.appraise().trust_class is TrustClass.SIMULATED
