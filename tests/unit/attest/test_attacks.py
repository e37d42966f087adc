# SPDX-License-Identifier: Apache-2.0
"""Every way we know to present a worker that is not what it says, and the step that refuses it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import orjson
import pytest

from bombyx.adapters.simulator import SimulatedEnclave, SimulatedImage, SimulatedPlatform, development_policy
from bombyx.protocol.attest import INTEL_ROOT, AppraisalPolicy, TrustClass, TrustedRoot, intel_root
from bombyx.protocol.attest.events import Event, parse_event_log, runtime_digest, write_event_log
from bombyx.protocol.primitives import Address, sha256

RUNTIME_EVENT = 0x0800_0001
DAY = 86_400


def flipped(data: bytes, position: int) -> bytes:
    altered = bytearray(data)
    altered[position] ^= 1
    return bytes(altered)


# 1  size and format


@pytest.mark.parametrize("raw", [b"", b"\x00" * 2000, b"\x04\x00\x02\x00\x81\x00\x00\x00" * 300, bytes(20_000)])
def test_nonsense_for_a_quote(scene: Any, raw: bytes) -> None:
    """ATT-6.1."""
    scene.bundle = {"quote": raw}
    scene.refused(1)


def test_bytes_hidden_after_the_quotes_end(scene: Any) -> None:
    """ATT-6.1: zeros are padding, anything else would be unsigned content."""
    quote = scene.make_bundle().quote
    scene.bundle = {"quote": quote + bytes(70)}
    scene.appraise()
    scene.bundle = {"quote": quote + bytes(70) + b"\x01"}
    scene.refused(1, "length")


def test_a_technology_nobody_knows(scene: Any) -> None:
    """ATT-6.1."""
    scene.bundle = {"technology": "magic"}
    scene.refused(1)


def test_no_endorsements_at_all(scene: Any) -> None:
    """ATT-6.1."""
    scene.bundle = {"endorsements": b""}
    scene.refused(1, "no Endorsements")


def test_a_bundle_of_a_later_version(scene: Any) -> None:
    """ATT-6.1."""
    scene.bundle = {"v": 2}
    scene.refused(1, "version 2")


# 2  signature chain


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("offset", [28, 48 + 6, 48 + 140, 48 + 400, 48 + 520, 48 + 583])
def test_a_tampered_quote(scene: Any, version: int, offset: int) -> None:
    """ATT-6.2: platform id, TCB, measurement, RTMR, report data: all are signed."""
    scene.enclave = {"quote_version": version}
    at = offset + (6 if version == 5 and offset >= 48 else 0)
    scene.bundle = {"quote": flipped(scene.make_bundle().quote, at)}
    scene.refused(2, "signature")


def test_a_root_the_policy_does_not_name(scene: Any) -> None:
    """ATT-6.2: another simulator's worker, sound in itself."""
    scene.platform = SimulatedPlatform.create(seed=b"somebody else's seed", now=scene.now)
    scene.bundle = {"endorsements": scene.platform.endorsements(scene.now)}
    scene.refused(2, "root the policy does not name")


def test_our_root_at_the_end_of_a_chain_it_did_not_sign(scene: Any) -> None:
    """ATT-6.2: the certificate that picks the root is only a hint; the signatures decide."""
    chain = orjson.loads(scene.platform.endorsements(scene.now))["pck_crl_issuer_chain"]
    ours = chain[chain.rindex("-----BEGIN") :].encode()
    for number in range(200):  # a chain whose root is as long as ours, so that the quote's lengths still hold
        scene.platform = SimulatedPlatform.create(seed=b"somebody else's seed %d" % number, now=scene.now)
        quote = scene.make_bundle().quote
        start = quote.rindex(b"-----BEGIN")
        if len(quote) - start == len(ours):
            break
    scene.bundle = {"quote": quote[:start] + ours, "endorsements": scene.platform.endorsements(scene.now)}
    scene.refused(2)


def test_collateral_of_another_authority(scene: Any) -> None:
    """ATT-6.2."""
    other = SimulatedPlatform.create(seed=b"somebody else's seed", now=scene.now)
    scene.bundle = {"endorsements": other.endorsements(scene.now)}
    scene.refused(2)


@pytest.mark.parametrize("field", ["tcb_info_signature", "qe_identity_signature"])
def test_collateral_with_a_forged_signature(scene: Any, field: str) -> None:
    """ATT-6.2."""
    fields = orjson.loads(scene.make_bundle().endorsements)
    fields[field] = ("1" + fields[field][1:]) if fields[field][0] != "1" else ("2" + fields[field][1:])
    scene.bundle = {"endorsements": orjson.dumps(fields)}
    scene.refused(2, "signature")


def test_tcb_info_rewritten_to_a_better_status(scene: Any) -> None:
    """ATT-6.2: a host that patches the paper, not the platform."""
    late = scene.platform.with_settings(tcb_status="OutOfDate").endorsements(scene.now)
    fields = orjson.loads(late)
    fields["tcb_info"] = fields["tcb_info"].replace("OutOfDate", "UpToDate")
    scene.bundle = {"endorsements": orjson.dumps(fields)}
    scene.refused(2, "TCB info")


def test_the_simulator_offered_as_hardware(scene: Any) -> None:
    """ATT-12: under a production policy the simulator's root is just a stranger's."""
    scene.policy = AppraisalPolicy(
        roots=(intel_root(),),
        trust_classes=frozenset({TrustClass.TDX}),
        reference_values=scene.policy.reference_values,
    )
    scene.refused(2, "root the policy does not name")


def test_the_simulators_root_named_but_only_hardware_accepted(scene: Any) -> None:
    """ATT-12: naming the root does not make it `tdx`; the class follows from the certificate."""
    scene.policy = replace(scene.policy, trust_classes=frozenset({TrustClass.TDX, TrustClass.TDX_GPU}))
    scene.refused(2, "simulated", "accepts tdx")


def test_no_root_gives_tdx_but_intels(scene: Any) -> None:
    """ATT-12: whatever it is called."""
    assert TrustedRoot(name="intel", certificate=scene.platform.root_certificate).trust_class is TrustClass.SIMULATED
    assert TrustedRoot(name="simulator", certificate=INTEL_ROOT).trust_class is TrustClass.TDX


def test_an_empty_policy_passes_nothing(scene: Any) -> None:
    """ATT-10: empty means no, and says so."""
    scene.policy = AppraisalPolicy()
    scene.refused(2, "no root: nothing passes")


def test_a_policy_without_trust_classes_passes_nothing(scene: Any) -> None:
    """ATT-10."""
    scene.policy = replace(scene.policy, trust_classes=frozenset())
    scene.refused(2, "nothing passes")


# 3  collateral in date, revocation, TCB status


def test_expired_collateral(scene: Any) -> None:
    """ATT-6.3: TCB info past its nextUpdate, revocation lists still good."""
    stale = scene.platform.with_settings(collateral_days=1).endorsements(scene.now.plus(seconds=-2 * DAY))
    scene.bundle = {"endorsements": stale}
    scene.refused(3, "expired")


def test_an_expired_revocation_list(scene: Any) -> None:
    """ATT-6.3: a host that keeps an old list keeps a revoked machine alive."""
    stale = scene.platform.with_settings(crl_days=1).endorsements(scene.now.plus(seconds=-2 * DAY))
    scene.bundle = {"endorsements": stale}
    scene.refused(3, "revocation list has expired")


def test_collateral_from_the_future(scene: Any) -> None:
    """ATT-6.3."""
    scene.bundle = {"endorsements": scene.platform.endorsements(scene.now.plus(seconds=DAY))}
    scene.refused(3, "future")


def test_a_revoked_machine(scene: Any) -> None:
    """ATT-6.3: its PCK certificate stands on the list."""
    scene.bundle = {"endorsements": scene.platform.with_settings(revoke_pck=True).endorsements(scene.now)}
    scene.refused(3, "revoked")


def test_collateral_for_another_kind_of_platform(scene: Any) -> None:
    """ATT-6.3: the maker's word on a machine that needs no patch, for one that does."""
    scene.bundle = {"endorsements": scene.platform.with_settings(fmspc="00906ed50000").endorsements(scene.now)}
    scene.refused(3, "another kind of platform")


@pytest.mark.parametrize("status", ["OutOfDate", "ConfigurationNeeded", "SWHardeningNeeded", "Revoked"])
def test_a_platform_out_of_date(scene: Any, status: str) -> None:
    """ATT-6.3: the library lets most of these pass; the policy does not."""
    scene.bundle = {"endorsements": scene.platform.with_settings(tcb_status=status).endorsements(scene.now)}
    scene.refused(3, status)


def test_a_root_without_accepted_statuses(scene: Any) -> None:
    """ATT-10: empty means no."""
    root = replace(scene.policy.roots[0], tcb_statuses=frozenset())
    scene.policy = replace(scene.policy, roots=(root,))
    scene.refused(3, "nothing passes")


# 4  attributes


@pytest.mark.parametrize("version", [4, 5])
def test_the_debug_bit_set(scene: Any, version: int) -> None:
    """ATT-6.4: the host could read this enclave's memory."""
    scene.enclave = {"debug": True, "quote_version": version}
    scene.refused(4, "debug")


# 5  event log


def test_a_tampered_event_log(scene: Any) -> None:
    """ATT-6.5: another compose hash claimed, digest recomputed to match."""
    events = parse_event_log(scene.make_bundle().event_log)
    swapped = tuple(replace(e, payload=bytes(32), digest=b"") if e.name == "compose-hash" else e for e in events)
    scene.bundle = {"event_log": write_event_log(swapped)}
    scene.refused(5, "RTMR3")


def test_an_event_whose_digest_is_another_events(scene: Any) -> None:
    """ATT-6.5: the log replays if digests are believed; they are not."""
    entries = orjson.loads(scene.make_bundle().event_log)
    for entry in entries:
        if entry["event"] == "compose-hash":
            entry["event_payload"] = bytes(32).hex()
    scene.bundle = {"event_log": orjson.dumps(entries)}
    scene.refused(5, "digest")


@pytest.mark.parametrize("register", [0, 1, 2, 3])
def test_an_event_left_out(scene: Any, register: int) -> None:
    """ATT-6.5: each register is replayed."""
    entries = orjson.loads(scene.make_bundle().event_log)
    entries.remove(next(entry for entry in entries if entry["imr"] == register))
    scene.bundle = {"event_log": orjson.dumps(entries)}
    scene.refused(5, f"RTMR{register}")


def test_events_in_another_order(scene: Any) -> None:
    """ATT-6.5."""
    entries = orjson.loads(scene.make_bundle().event_log)
    scene.bundle = {"event_log": orjson.dumps([*entries[:4], entries[5], entries[4], *entries[6:]])}
    scene.refused(5)


def test_a_second_compose_hash_measured_later(scene: Any) -> None:
    """ATT-6.5: code inside may extend RTMR3; it may not say again who it is."""
    wanted = sha256(b"a compose file people trust")
    late = Event(register=3, kind=RUNTIME_EVENT, digest=b"", name="compose-hash", payload=wanted)
    scene.enclave = {"extra_events": (late,)}
    scene.refused(5, "twice")


def test_a_compose_hash_named_on_an_event_that_does_not_hash_its_name(scene: Any) -> None:
    """ATT-6.5: a TCG event's digest says nothing of its name, so nothing is read from it."""
    trusted = SimulatedImage.of("trusted")
    scene.policy = development_policy(scene.platform, (trusted,))
    honest = runtime_digest("compose-hash", scene.image.compose_hash)
    entries = orjson.loads(scene.make_bundle().event_log)
    for entry in entries:
        if entry["event"] == "compose-hash":
            entry.update(event_type=4, digest=honest.hex(), event_payload=trusted.compose_hash.hex())
    scene.bundle = {"event_log": orjson.dumps(entries), "compose": trusted.compose}
    scene.refused(6, "not the one that was measured")


def test_a_name_with_a_colon_is_not_read_as_another_event(scene: Any) -> None:
    """ATT-6.5: V1 digests join name and payload with a colon."""
    entries = orjson.loads(scene.make_bundle().event_log)
    entries[5]["event"] = "compose-hash:x"
    scene.bundle = {"event_log": orjson.dumps(entries)}
    scene.refused(1)


# 6  Reference Values


def test_another_image(scene: Any) -> None:
    """ATT-6.6: sound hardware, unknown code."""
    scene.image = SimulatedImage.of("bombyx-worker", init_script="curl evil")
    scene.refused(6, "no Reference Value")


def test_another_firmware(scene: Any) -> None:
    """ATT-6.6: the compose file is right, what started it is not."""
    known = scene.policy.reference_values[0]
    scene.policy = replace(scene.policy, reference_values=(replace(known, measurements=(("mrtd", b"m" * 48),)),))
    scene.refused(6, "no Reference Value")


def test_a_compose_file_that_was_not_measured(scene: Any) -> None:
    """ATT-6.6: the preimage shown to people must be the one that ran."""
    scene.bundle = {"compose": b'{"name":"harmless"}'}
    scene.refused(6, "not the one that was measured")


def test_no_reference_values(scene: Any) -> None:
    """ATT-10: empty means no."""
    scene.policy = replace(scene.policy, reference_values=())
    scene.refused(6, "nothing passes")


def test_a_reference_value_of_another_trust_class(scene: Any) -> None:
    """ATT-10: joined policies do not lend each other their images."""
    known = replace(scene.policy.reference_values[0], trust_class=TrustClass.TDX)
    scene.policy = replace(scene.policy, reference_values=(known,))
    scene.refused(6, "no Reference Value")


def test_a_model_the_policy_does_not_name(scene: Any) -> None:
    """ATT-4."""
    scene.policy = replace(scene.policy, models=frozenset({sha256(b"another model")}))
    scene.refused(6, "model")


# 7  binding


def test_a_swapped_keyset(scene: Any) -> None:
    """ATT-6.7: a proxy puts its own keys beside a sound quote."""
    mine = replace(scene.make_keyset(), ohttp_key_config=b"\x07" * 41)
    scene.bundle = {"keyset": mine.encode()}
    scene.refused(7, "report data")


def test_a_quote_over_the_keyset_without_its_tag(scene: Any) -> None:
    """ATT-2: report data is a tagged hash, so a quote made for another protocol never passes for ours."""
    untagged = hashlib.sha512(scene.make_keyset().encode()).digest()
    enclave = SimulatedEnclave(platform=scene.platform, image=scene.image)
    scene.bundle = {"quote": scene.platform.quote(enclave.report(untagged))}
    scene.refused(7, "report data")


@pytest.mark.parametrize("field", ["operator", "receipt_address", "pay_authorizer"])
def test_the_registry_disagrees(scene: Any, field: str) -> None:
    """ATT-6.7: an enclave that speaks for somebody else, or signs receipts nobody registered."""
    scene.registered = replace(scene.registered, **{field: Address(b"x" * 20)})
    scene.refused(7, field)


def test_a_keyset_for_another_chain(scene: Any) -> None:
    """ATT-6.7: the same operator, registered elsewhere under other stakes."""
    scene.registered = replace(scene.registered, chain_id=1)
    scene.refused(7, "chain_id")


def test_an_operator_who_is_not_registered(scene: Any) -> None:
    """ATT-6.7."""
    scene.registered = None
    scene.refused(7, "no registry entry")


def test_a_manifest_the_keyset_does_not_name(scene: Any) -> None:
    """ATT-4: the name on the page, another model behind it."""
    scene.keyset = {"models": (sha256(b"another manifest"),)}
    scene.refused(7, "manifests")


def test_a_manifest_left_out(scene: Any) -> None:
    """ATT-5: a bundle is verifiable on its own."""
    scene.bundle = {"manifests": ()}
    scene.refused(7, "manifests")


# 8  beacon


def test_a_stale_beacon(scene: Any) -> None:
    """ATT-8, ATT-6.8: yesterday's evidence, kept for today."""
    scene.policy = replace(scene.policy, max_beacon_age=20)
    scene.refused(8, "30 s old")


def test_a_beacon_from_the_future(scene: Any) -> None:
    """ATT-6.8."""
    ahead = replace(scene.beacon, timestamp=scene.now.plus(seconds=300))
    scene.beacon, scene.bundle = ahead, {"beacon_header": ahead}
    scene.refused(8, "future")


def test_a_beacon_that_is_no_block_of_the_chain(scene: Any) -> None:
    """ATT-6.8: the chain knows no such block, and a header in the bundle proves nothing."""
    scene.beacon = None
    scene.refused(8, "no trusted block header")


def test_the_header_of_another_block(scene: Any) -> None:
    """ATT-6.8."""
    scene.beacon = replace(scene.beacon, hash=sha256(b"block 78"))
    scene.refused(8, "not the keyset's beacon")


def test_a_header_with_a_younger_date_than_the_chains(scene: Any) -> None:
    """ATT-6.8."""
    scene.bundle = {"beacon_header": replace(scene.beacon, timestamp=scene.now)}
    scene.refused(8, "not the chain's")


def test_offline_a_header_of_another_block_is_still_refused(scene: Any) -> None:
    """ATT-6.8: not checked is not unchecked: what is there must fit."""
    scene.policy, scene.bundle = scene.policy.offline(), {"beacon_header": replace(scene.beacon, hash=sha256(b"x"))}
    scene.beacon = None
    scene.refused(8)


# 9  GPU


def test_missing_gpu_evidence(scene: Any) -> None:
    """ATT-9: an image that can open a GPU must show what it opened."""
    scene.image = SimulatedImage.of("bombyx-gpu-worker", gpu=True)
    scene.policy = development_policy(scene.platform, (scene.image,))
    scene.refused(9, "no GPU evidence")


def test_a_policy_that_wants_a_gpu(scene: Any) -> None:
    """ATT-9."""
    scene.policy = replace(scene.policy, require_gpu=True)
    scene.refused(9, "no GPU evidence")


def test_gpu_evidence_the_keyset_does_not_name(scene: Any) -> None:
    """ATT-9: evidence borrowed from another machine."""
    scene.bundle = {"gpu_evidence": b'{"evidence_list":[]}'}
    scene.refused(9, "not the one the keyset names")


def test_gpu_evidence_taken_away(scene: Any) -> None:
    """ATT-9: the keyset says there is some."""
    scene.keyset = {"gpu_evidence": sha256(b"evidence")}
    scene.refused(9, "not the one the keyset names")


# 10  validity window


def test_an_expired_keyset(scene: Any) -> None:
    """ATT-6.10."""
    scene.now = scene.now.plus(seconds=3600)
    scene.refused(10, "ended")


def test_a_keyset_that_has_not_begun(scene: Any) -> None:
    """ATT-6.10."""
    scene.keyset = {"not_before": scene.now.plus(seconds=120)}
    scene.refused(10, "begins in 120 s")


def test_a_keyset_that_lives_too_long(scene: Any) -> None:
    """ATT-3: two hours from its beacon, whatever it says of itself."""
    scene.keyset = {"not_after": scene.now.plus(seconds=7200 - 29)}
    scene.refused(10, "at most 7200 s")


def test_a_keyset_that_ends_before_it_begins(scene: Any) -> None:
    """ATT-6.10."""
    scene.keyset = {"not_after": scene.now.plus(seconds=-20)}
    scene.refused(10)


def test_refusals_show_no_bytes_of_the_evidence(scene: Any) -> None:
    """WIRE: messages say what is wrong, never what was sent."""
    scene.bundle = {"quote": b"\x04\x00\x02\x00\x81\x00\x00\x00" + b"marker of the attacker" * 60}
    assert "marker" not in str(scene.refused(1))
