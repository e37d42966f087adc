# SPDX-License-Identifier: Apache-2.0
"""Other providers' reports, each attack by its name, refused at its step. Each is kept as a vector of its own."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from tests.unit.attest.providers import (
    GPUS,
    NONCE,
    NOW,
    OTHER,
    PLATFORM,
    POLICY,
    PROVIDER,
    Case,
    flipped,
    vector_name,
)

from bombyx.adapters.simulator import SimulatedImage, SimulatedPlatform
from bombyx.adapters.simulator.enclave import SimulatedEnclave
from bombyx.adapters.simulator.gpu import SimulatedGpus
from bombyx.adapters.simulator.provider import NODE_IMAGE
from bombyx.errors import AttestationError, MalformedMessage
from bombyx.protocol.attest import AppraisalPolicy, NotEnough, Report, Verdict, appraise_report, intel_root, recognise
from bombyx.protocol.attest.events import RUNTIME_EVENT, Event
from bombyx.protocol.primitives import Secret, sha256


@pytest.fixture
def phala(request: pytest.FixtureRequest) -> Case:
    case = Case.phala()
    case.name = vector_name(request.node.name)
    return case


@pytest.fixture
def near(request: pytest.FixtureRequest) -> Case:
    case = Case.near()
    case.name = vector_name(request.node.name)
    return case


# HONEST


def test_an_honest_phala_report(phala: Case) -> None:
    """ATT-13: every step passes, and the keys are told."""
    found = phala.verified()
    [node] = found.outcomes
    assert dict(node.keys)["ecdsa signing key"] == "0x" + PROVIDER.address.hex()
    assert node.trust_class == "simulated" and node.claims is not None and len(node.claims.gpus) == 2


def test_an_honest_near_report(near: Case) -> None:
    """ATT-13: gateway, model and compose manager, each by itself."""
    names = [one.name for one in near.verified().outcomes]
    assert names == ["gateway", "model", "compose manager"]


def test_an_honest_report_of_two_nodes(phala: Case) -> None:
    """ATT-13: the outer copy is not read twice."""
    first = phala.document
    assert first is not None
    phala.document = {**first, "all_attestations": [first, PROVIDER.phala(NONCE, instance=b"second")]}
    phala.tokens = phala.tokens * 2
    assert [one.name for one in phala.verified().outcomes] == ["node 1", "node 2"]


# WHAT BINDS


def test_a_signing_address_swapped(phala: Case) -> None:
    """ATT-13.7: the proxy in the middle offers a key of its own."""
    assert phala.document is not None
    phala.document["signing_address"] = "0x" + bytes(20).hex()
    del phala.document["signing_public_key"]
    phala.refused(7, "report data")


def test_a_public_key_that_is_not_the_addresss(phala: Case) -> None:
    """ATT-13.7: whoever encrypts to signing_public_key would encrypt to a stranger."""
    assert phala.document is not None
    phala.document["signing_public_key"] = "11" * 64
    phala.refused(7, "signing_public_key")


def test_an_old_report_with_our_nonce_written_over_it(phala: Case) -> None:
    """ATT-13.7: the quote still says which nonce it was made for."""
    phala.document = {**PROVIDER.phala(OTHER), "request_nonce": NONCE.hex()}
    phala.refused(7, "report data")


def test_an_old_report_replayed(phala: Case) -> None:
    """ATT-13.8."""
    phala.document = PROVIDER.phala(OTHER)
    phala.refused(8, "replay")


def test_a_tls_fingerprint_added_outside_the_quote(phala: Case) -> None:
    """ATT-13.7: a TLS key that nobody measured."""
    assert phala.document is not None
    phala.document["tls_cert_fingerprint"] = "22" * 32
    phala.refused(7, "report data")


def test_a_tls_fingerprint_swapped(near: Case) -> None:
    """ATT-13.7."""
    near.model["tls_cert_fingerprint"] = "22" * 32
    near.refused(7, "report data", part="model")


def test_a_tls_fingerprint_left_out(near: Case) -> None:
    """ATT-13.7: the weaker scheme does not fit what the quote was made for."""
    del near.model["tls_cert_fingerprint"]
    near.refused(7, "report data", part="model")


def test_report_data_with_key_and_nonce_in_the_wrong_order(phala: Case) -> None:
    """ATT-13.7."""
    data = NONCE + PROVIDER.address.ljust(32, b"\0")
    phala.document = {**PROVIDER.phala(NONCE), **PROVIDER.quoted(data)}
    phala.refused(7, "report data")


def test_a_gateway_that_shows_another_tls_certificate(near: Case) -> None:
    """ATT-13.7."""
    other = replace(PROVIDER, platform=SimulatedPlatform.create(seed=b"somebody else's seed", now=NOW))
    assert near.document is not None
    near.document["tls_certificate"] = other.near(NONCE, NOW)["tls_certificate"]
    near.refused(7, "another key than the one bound", part="gateway")


def test_an_ohttp_key_swapped(near: Case) -> None:
    """ATT-13.7: requests would be sealed to somebody else."""
    near.model["ohttp_key_config"] = "00" * 41
    near.refused(7, "not the one signed", part="model")


def test_an_ohttp_key_swapped_in_both_places(near: Case) -> None:
    """ATT-13.7."""
    near.model["ohttp_attestation"]["key_config"] = near.model["ohttp_key_config"] = "00" * 41
    near.refused(7, "does not verify", part="model")


def test_an_ohttp_key_signed_by_a_key_nobody_measured(near: Case) -> None:
    """ATT-13.7."""
    other = replace(PROVIDER, platform=SimulatedPlatform.create(seed=b"somebody else's seed", now=NOW))
    stolen = other.near(NONCE, NOW)["model_attestations"][0]
    near.model.update({name: stolen[name] for name in ("ohttp_attestation", "ohttp_key_config")})
    near.refused(7, "another key than the one bound", part="model")


def test_an_action_left_out_of_the_compose_managers_list(near: Case) -> None:
    """ATT-13.7: somebody exchanged a container, and does not want it read."""
    near.model["compose_manager_attestation"]["actions"] = []
    near.refused(7, "actions", part="compose manager")


def test_a_compose_manager_quoted_for_another_nonce(near: Case) -> None:
    """ATT-13.8."""
    old = PROVIDER.near(OTHER, NOW)["model_attestations"][0]
    near.model["compose_manager_attestation"] = old["compose_manager_attestation"]
    near.refused(8, "replay", part="compose manager")


def test_a_gateway_with_the_models_quote(near: Case) -> None:
    """ATT-13.7: one enclave's evidence shown twice."""
    assert near.document is not None
    near.document["gateway_attestation"] |= {name: near.model[name] for name in ("intel_quote", "event_log", "info")}
    near.refused(7, part="gateway")


def test_a_gateway_without_the_machines_behind_it(near: Case) -> None:
    """ATT-13: a gateway that drops what would not convince proves only itself."""
    assert near.document is not None
    near.document["model_attestations"] = []
    near.name = ""  # no part and no step decides this, so it is no vector
    found = near.examine()
    assert found.verdict is Verdict.UNDECIDED and found.outcomes[0].verdict is Verdict.VERIFIED
    with pytest.raises(NotEnough, match="no part of the report serves"):
        appraise_report(parsed(near), POLICY, now=NOW, at_hand=near.archive().at_hand())


def test_a_key_provider_told_otherwise_than_measured(phala: Case) -> None:
    """ATT-13.6: who holds the keys to this machine's disk is part of what was started."""
    assert phala.document is not None
    phala.document["info"]["key_provider_info"] = '{"name":"kms","id":"somebody else"}'
    phala.refused(6, "key_provider")


# FORM


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signing_algo", "rsa"),
        ("signing_address", "0x1234"),
        ("request_nonce", "00"),
        ("quote", "00" * 5000),
        ("intel_quote", "not a quote"),
        ("event_log", "[{}]"),
        ("nvidia_payload", {"nonce": "00" * 32}),
    ],
)
def test_a_report_whose_fields_do_not_fit(name: str, value: Any) -> None:
    """ATT-13.1: refused before anything is verified."""
    case = Case.phala()
    assert case.document is not None
    case.document[name] = value
    with pytest.raises((MalformedMessage, AttestationError)):
        appraise_report(parsed(case), POLICY, now=NOW, at_hand=case.archive().at_hand())


def parsed(case: Case) -> Report:
    report = recognise(case.evidence())
    assert isinstance(report, Report)
    return report


# WHAT RUNS


def test_a_compose_file_edited_after_it_was_measured(phala: Case) -> None:
    """ATT-13.6."""
    assert phala.document is not None
    phala.document["info"]["tcb_info"]["app_compose"] += " "
    phala.refused(6, "compose file")


@pytest.mark.parametrize("name", ["compose_hash", "mrtd", "rtmr3", "os_image_hash"])
def test_a_measurement_told_otherwise_than_measured(phala: Case, name: str) -> None:
    """ATT-13.6: the readable copy lies."""
    assert phala.document is not None
    tcb = phala.document["info"]["tcb_info"]
    tcb[name] = "00" + tcb[name][2:] if tcb[name][:2] != "00" else "11" + tcb[name][2:]
    phala.refused(6, name)


@pytest.mark.parametrize("name", ["app_id", "instance_id"])
def test_an_identity_told_otherwise_than_measured(phala: Case, name: str) -> None:
    """ATT-13.6."""
    assert phala.document is not None
    phala.document["info"][name] = "33" * 20
    phala.refused(6, name)


def test_a_provider_running_another_image(phala: Case) -> None:
    """ATT-13.6: sound in itself, and not what we wanted."""
    phala.document = replace(PROVIDER, image=SimulatedImage.of("somebody else's code", gpu=True)).phala(NONCE)
    phala.refused(6, "no Reference Value")


def test_an_event_left_out_of_the_log(phala: Case) -> None:
    """ATT-13.5."""
    assert phala.document is not None
    phala.document["event_log"] = orjson.dumps(orjson.loads(phala.document["event_log"])[:-1]).decode()
    phala.refused(5, "RTMR3")


def test_events_in_another_order(phala: Case) -> None:
    """ATT-13.5."""
    assert phala.document is not None
    events = orjson.loads(phala.document["event_log"])
    events[-1], events[-2] = events[-2], events[-1]
    phala.document["event_log"] = orjson.dumps(events).decode()
    phala.refused(5, "RTMR3")


def test_an_events_payload_rewritten(phala: Case) -> None:
    """ATT-13.5: another compose hash under the old digest."""
    assert phala.document is not None
    events = orjson.loads(phala.document["event_log"])
    compose = next(event for event in events if event["event"] == "compose-hash")
    compose["event_payload"] = "00" * 32
    phala.document["event_log"] = orjson.dumps(events).decode()
    phala.refused(5, "digest")


def test_the_event_log_of_another_boot(phala: Case) -> None:
    """ATT-13.5."""
    assert phala.document is not None
    phala.document["event_log"] = PROVIDER.phala(NONCE, instance=b"another")["event_log"]
    phala.refused(5, "RTMR3")


def test_an_event_said_twice(phala: Case) -> None:
    """ATT-13.5: the second compose hash is measured too, and must not be taken for the first."""
    again = Event(register=3, kind=RUNTIME_EVENT, digest=b"", name="compose-hash", payload=bytes(32))
    phala.document = PROVIDER.phala(NONCE, extra_events=(again,))
    phala.refused(5, "twice")


# HARDWARE


def test_a_provider_in_debug_mode(phala: Case) -> None:
    """ATT-13.4."""
    phala.document = PROVIDER.phala(NONCE, debug=True)
    phala.refused(4, "debug")


@pytest.mark.parametrize("position", [20, 200, 600, 640])
def test_a_providers_quote_with_a_changed_byte(phala: Case, position: int) -> None:
    """ATT-13.2: header, report, signature, attestation key."""
    assert phala.document is not None
    quote = bytes.fromhex(phala.document["intel_quote"])
    phala.document["intel_quote"] = flipped(quote, position).hex()
    phala.refused(2)


def test_simulated_hardware_under_a_production_policy(phala: Case) -> None:
    """ATT-13.2: a simulator is never taken for hardware."""
    phala.policy = replace(POLICY, roots=(intel_root(),))
    phala.refused(2, "root the policy does not name")


def test_a_report_under_the_empty_policy(phala: Case) -> None:
    """ATT-10: empty means no."""
    phala.policy = AppraisalPolicy()
    phala.refused(2, "nothing passes")


def test_a_revoked_platform(phala: Case) -> None:
    """ATT-13.3."""
    phala.endorsements = (PLATFORM.with_settings(revoke_pck=True).endorsements(NOW),)
    phala.refused(3, "revoked")


def test_a_platform_out_of_date(phala: Case) -> None:
    """ATT-13.3."""
    phala.endorsements = (PLATFORM.with_settings(tcb_status="OutOfDate").endorsements(NOW),)
    phala.refused(3, "OutOfDate")


def test_collateral_long_expired(phala: Case) -> None:
    """ATT-13.3."""
    phala.now = NOW.plus(seconds=40 * 86_400)
    phala.refused(3, "expired")


# GPUS


def alter_gpu(case: Case, **changes: Any) -> None:
    assert case.document is not None
    case.document["nvidia_payload"] = orjson.dumps({**GPUS.evidence(NONCE), **changes}).decode()


def test_gpus_announced_and_not_shown(phala: Case) -> None:
    """ATT-13.9."""
    assert phala.document is not None
    del phala.document["nvidia_payload"]
    phala.refused(9, "no GPU evidence")


def test_fewer_gpus_than_announced(phala: Case) -> None:
    """ATT-13.9: the others may be in nobody's enclave."""
    alter_gpu(phala, evidence_list=GPUS.evidence(NONCE)["evidence_list"][:1])
    phala.tokens = ()
    phala.refused(9, "1 GPUs answer")


def test_one_gpu_shown_twice(phala: Case) -> None:
    """ATT-13.9."""
    alter_gpu(phala, evidence_list=GPUS.evidence(NONCE)["evidence_list"][:1] * 2)
    phala.refused(9, "twice")


def test_gpus_that_answered_another_nonce(phala: Case) -> None:
    """ATT-13.9: evidence of machines elsewhere, or of long ago."""
    alter_gpu(phala, evidence_list=GPUS.evidence(OTHER)["evidence_list"])
    phala.refused(9, "another nonce")


def test_gpu_evidence_labelled_with_another_nonce(phala: Case) -> None:
    """ATT-13.9."""
    alter_gpu(phala, nonce=OTHER.hex())
    phala.refused(9, "another nonce than the CPU quote")


def test_gpus_of_another_maker(phala: Case) -> None:
    """ATT-13.9."""
    other = SimulatedGpus(seed=Secret(b"somebody else's seed"), created=NOW, count=2)
    alter_gpu(phala, **other.evidence(NONCE))
    phala.refused(9, "NVIDIA's root")


@pytest.mark.parametrize("position", [60, 100, -1])
def test_a_gpus_measurements_with_a_changed_byte(phala: Case, position: int) -> None:
    """ATT-13.9."""
    entries = GPUS.evidence(NONCE)["evidence_list"]
    raw = base64.b64decode(entries[0]["evidence"])
    entries[0]["evidence"] = base64.b64encode(flipped(raw, position)).decode()
    alter_gpu(phala, evidence_list=entries)
    phala.refused(9)


def test_a_second_node_without_a_sound_gpu(phala: Case) -> None:
    """ATT-13.9: every node must convince, not one of them."""
    first = phala.document
    assert first is not None
    second = PROVIDER.phala(NONCE, instance=b"second")
    second["nvidia_payload"] = orjson.dumps(GPUS.evidence(OTHER)).decode()
    phala.document = {**first, "all_attestations": [first, second]}
    phala.tokens = phala.tokens * 2
    phala.refused(9, part="node 2")


# TOKENS


def devices(**changes: Any) -> dict[str, str]:
    """Device tokens with the first one's claims changed."""
    claims = [GPUS.device_claims(device, NONCE, NOW) for device in GPUS.devices]
    claims[0] |= changes
    return {f"GPU-{number}": GPUS.token(one) for number, one in enumerate(claims)}


def overall() -> list[Any]:
    document: list[Any] = orjson.loads(GPUS.tokens(NONCE, NOW))
    return document


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES256"])
def test_a_token_that_is_not_signed_with_es384(phala: Case, algorithm: str) -> None:
    """ATT-13.9: an unsigned token counts for nothing, whatever it says."""
    document = overall()
    header, claims, signature = document[0][1].split(".")
    forged = base64.urlsafe_b64encode(orjson.dumps({"alg": algorithm, "kid": "simulated"})).decode().rstrip("=")
    document[0][1] = f"{forged}.{claims}.{'' if algorithm == 'none' else signature}"
    phala.tokens = (orjson.dumps(document),)
    phala.refused(9, "ES384")


def test_a_token_with_claims_rewritten(phala: Case) -> None:
    """ATT-13.9: the signature is checked, not decoded past."""
    document = overall()
    header, _, signature = document[0][1].split(".")
    claims = GPUS.claims(NONCE, NOW) | {"x-nvidia-overall-att-result": True, "submods": {}}
    body = base64.urlsafe_b64encode(orjson.dumps(claims)).decode().rstrip("=")
    phala.tokens = (orjson.dumps([["JWT", f"{header}.{body}.{signature}"], document[1]]),)
    phala.refused(9, "does not verify")


def test_a_token_signed_by_a_key_of_the_attackers(phala: Case) -> None:
    """ATT-13.9: under the service's key id."""
    thief = SimulatedGpus(seed=Secret(b"somebody else's seed"), created=NOW, count=2)
    phala.tokens = (thief.tokens(NONCE, NOW),)
    phala.refused(9, "does not verify")


def test_a_key_set_of_the_attackers(phala: Case) -> None:
    """ATT-13.9: a key is as good as the authority that certified it."""
    thief = SimulatedGpus(seed=Secret(b"somebody else's seed"), created=NOW, count=2)
    phala.tokens, phala.jwks = (thief.tokens(NONCE, NOW),), thief.jwks()
    phala.refused(9, "authority the policy does not name")


def test_a_key_set_with_the_right_authority_above_the_wrong_key(phala: Case) -> None:
    """ATT-13.9."""
    thief = SimulatedGpus(seed=Secret(b"somebody else's seed"), created=NOW, count=2)
    keys = orjson.loads(thief.jwks())
    keys["keys"][0]["x5c"][1] = orjson.loads(GPUS.jwks())["keys"][0]["x5c"][1]
    phala.tokens, phala.jwks = (thief.tokens(NONCE, NOW),), orjson.dumps(keys)
    phala.refused(9, "not issued by the one above")


def test_a_token_whose_key_is_not_in_the_key_set(phala: Case) -> None:
    """ATT-13.9."""
    phala.jwks = b'{"keys": []}'
    phala.refused(9, "not in the key set")


def test_a_token_for_another_nonce(phala: Case) -> None:
    """ATT-13.9."""
    phala.tokens = (GPUS.tokens(OTHER, NOW),)
    phala.refused(9, "another nonce")


def test_a_token_that_says_it_failed(phala: Case) -> None:
    """ATT-13.9."""
    phala.tokens = (GPUS.tokens(NONCE, NOW, **{"x-nvidia-overall-att-result": False}),)
    phala.refused(9, "failed")


def test_a_token_of_another_issuer(phala: Case) -> None:
    """ATT-13.9."""
    phala.tokens = (GPUS.tokens(NONCE, NOW, iss="https://example.org"),)
    phala.refused(9, "issuer")


def test_a_token_that_has_expired(phala: Case) -> None:
    """ATT-13.9."""
    phala.tokens = (GPUS.tokens(NONCE, NOW.plus(seconds=-7200)),)
    phala.refused(9, "not valid at this time")


def test_a_token_from_the_future(phala: Case) -> None:
    """ATT-13.9."""
    phala.tokens = (GPUS.tokens(NONCE, NOW.plus(seconds=7200)),)
    phala.refused(9, "not valid at this time")


def test_a_device_token_exchanged(phala: Case) -> None:
    """ATT-13.9: the overall token names each by its digest."""
    document = overall()
    document[1]["GPU-0"] = GPUS.token(GPUS.device_claims(GPUS.devices[0], NONCE, NOW) | {"jti": "another"})
    phala.tokens = (orjson.dumps(document),)
    phala.refused(9, "another token")


def test_a_device_token_left_out(phala: Case) -> None:
    """ATT-13.9."""
    document = overall()
    del document[1]["GPU-1"]
    phala.tokens = (orjson.dumps(document),)
    phala.refused(9, "other devices")


@pytest.mark.parametrize(
    ("claim", "value"),
    [("measres", "fail"), ("dbgstat", "enabled"), ("secboot", False), ("x-nvidia-gpu-arch-check", False)],
)
def test_a_device_found_faulty_under_a_good_overall_result(phala: Case, claim: str, value: Any) -> None:
    """ATT-13.9: the overall claim alone is not believed."""
    phala.tokens = (GPUS.eat(devices(**{claim: value}), NONCE, NOW),)
    phala.refused(9, claim)


def test_a_token_for_other_gpus_than_those_in_the_evidence(phala: Case) -> None:
    """ATT-13.9: NVIDIA looked at something, but not at these."""
    phala.tokens = (GPUS.eat(devices(ueid="12345"), NONCE, NOW),)
    phala.refused(9, "other GPUs")


# NOT ENOUGH


def test_no_endorsements_at_hand(phala: Case) -> None:
    """ATT-13: undecided, and everything after it not checked; programs get an exception, not a value."""
    phala.endorsements = ()
    phala.undecided(2, "no Endorsements")
    with pytest.raises(NotEnough) as caught:
        appraise_report(parsed(phala), POLICY, now=NOW, at_hand=phala.archive().at_hand())
    assert len(caught.value.steps) == 10


def test_endorsements_for_another_kind_of_platform(phala: Case) -> None:
    """ATT-13: not these, so none."""
    other = SimulatedPlatform.create(seed=SimulatedPlatform.create(seed=b"x" * 32, now=NOW).root_certificate, now=NOW)
    phala.endorsements = (other.with_settings(fmspc="f0510fffffff").endorsements(NOW),)
    phala.undecided(2, "no Endorsements")


def test_nobody_says_which_nonce_was_asked(phala: Case) -> None:
    """ATT-13.8: it may be old."""
    phala.nonce = None
    phala.undecided(8, "may be old")


def test_no_event_log(phala: Case) -> None:
    """ATT-13.5: what was started there is not known."""
    assert phala.document is not None
    del phala.document["event_log"]
    phala.document["info"] = {}
    phala.policy = replace(POLICY, reference_values=())
    phala.undecided(5, "no event log")


def test_no_image_named_by_the_policy(phala: Case) -> None:
    """ATT-13.6: hardware is proven, what runs on it is not."""
    phala.policy = replace(POLICY, reference_values=())
    phala.undecided(6, "no Reference Value")


def test_tokens_without_their_keys_are_not_counted(phala: Case) -> None:
    """ATT-13.9: an unchecked token is no reason to say yes; the GPUs' own evidence is."""
    phala.jwks = b""
    [node] = phala.verified().outcomes
    assert "not checked: revocation" in node.steps[8].detail and "keys are not at hand" in node.steps[8].detail


def test_a_forged_token_without_keys_changes_nothing(phala: Case) -> None:
    """ATT-13.9: the same result as with none."""
    phala.jwks, phala.policy = b"", replace(POLICY, token_roots=())
    phala.tokens = (orjson.dumps([["JWT", "e30.e30."], {"GPU-0": "e30.e30."}]),)
    assert "token for" not in phala.verified().outcomes[0].steps[8].detail


def test_a_compose_hash_in_mr_config_id_that_was_not_measured(phala: Case) -> None:
    """ATT-13.6."""
    made = SimulatedEnclave(platform=PLATFORM, image=NODE_IMAGE)
    report = replace(made.report(PROVIDER.address.ljust(32, b"\0") + NONCE), mr_config_id=b"\x01" + sha256(b"other"))
    assert phala.document is not None
    phala.document["intel_quote"] = PLATFORM.quote(report).hex()
    phala.refused(6, "mr_config_id")


# EVERY FIELD

UNBOUND = {  # nothing depends on these, and nothing of them is shown
    ".nvidia_payload.arch",
    ".nvidia_payload.evidence_list.0.arch",
    ".nvidia_payload.evidence_list.1.arch",
    ".model_attestations.0.model_name",
    ".model_attestations.0.nvidia_payload.arch",
    ".model_attestations.0.nvidia_payload.evidence_list.0.arch",
    ".model_attestations.0.nvidia_payload.evidence_list.1.arch",
}
READ_INSIDE = ("nvidia_payload", "event_log", "vm_config")  # text that holds JSON
# Of firmware's events only the digests are read; an event turned into one of those says nothing any more.
SILENT = re.compile(r"\.event_log\.([0-2]\.(event|event_payload)|\d+\.event_type)$")


@pytest.mark.parametrize("form", ["phala", pytest.param("near", marks=pytest.mark.slow)])
def test_every_field_of_a_report_binds_or_is_named_here(form: str) -> None:
    """ATT-13: each value of the JSON altered in turn; what still verifies is what nothing depends on."""
    honest = getattr(Case, form)().document
    survived = set()
    for path in _leaves(honest):
        case = getattr(Case, form)()
        case.document = _altered(honest, path)
        try:
            verdict = case.examine().verdict
        except MalformedMessage:
            continue
        if verdict is Verdict.VERIFIED:
            survived.add("".join(f".{step}" for step in path))
    assert {path for path in survived if not SILENT.search(path)} <= UNBOUND


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path and path[-1] in READ_INSIDE and isinstance(value, str):
        value = orjson.loads(value)
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path


def _altered(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy with the value at `path` changed: its middle character, or the number by one."""
    if not path:
        if isinstance(value, int):
            return value + 1
        middle = len(value) // 2
        return value[:middle] + ("1" if value[middle : middle + 1] != "1" else "0") + value[middle + 1 :]
    inside = isinstance(value, str)
    copy: Any = orjson.loads(value) if inside else (dict(value) if isinstance(value, dict) else list(value))
    copy[path[0]] = _altered(copy[path[0]], path[1:])
    return orjson.dumps(copy).decode() if inside else copy
