# SPDX-License-Identifier: Apache-2.0
"""Golden measurements and revocation, at hand and not: RIM files under a root of the test's own, OCSP responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from cryptography import x509
from cryptography.x509 import ocsp
from tests.unit.attest.providers import GPUS, NONCE, NOW, SEED

from bombyx.adapters.simulator.golden import manifest, revocation_answer
from bombyx.adapters.simulator.gpu import DRIVER
from bombyx.adapters.simulator.p384 import Signer, signer
from bombyx.errors import AttestationError, MalformedMessage
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.ocsp import check_chains, check_devices
from bombyx.protocol.attest.rim import check_measurements, check_signers, parse_rim
from bombyx.protocol.primitives import Instant

ROOT = signer(SEED, "Simulated RIM root", NOW)
MAKER = signer(SEED, "Simulated RIM signer", NOW, ROOT, ca=False)
RUNTIME = [report.runtime() for report in parse_gpu_evidence(orjson.dumps(GPUS.evidence(NONCE)))]
VBIOS = RUNTIME[0].vbios
EXTENDED_KEY_USAGE = "2.5.29.37"
OCSP_SIGNING = bytes.fromhex("300a06082b06010505070309")


def golden(first: int, last: int) -> dict[int, bytes]:
    return {index: value for index, value in enumerate(GPUS.measurements()) if first <= index < last}


DRIVER_RIM = manifest(DRIVER, golden(0, 4), MAKER)
VBIOS_RIM = manifest(VBIOS, golden(4, 8), MAKER)


def check(*rims: bytes, now: Instant = NOW, root: bytes = ROOT.root) -> str:
    found = check_measurements(tuple(RUNTIME), tuple(parse_rim(raw, root) for raw in rims), now)
    return f"{'done' if found.done else 'not done'}: {found.detail}"


def test_a_gpu_that_measures_as_its_maker_says() -> None:
    """ATT-9: every active measurement of driver and VBIOS is golden."""
    assert check(DRIVER_RIM, VBIOS_RIM) == "done: golden measurements match"
    assert RUNTIME[0].names() == ("NV_GPU_DRIVER_GH100_570.172.08", "NV_GPU_VBIOS_G520_0280_895_9600CF0002")


def test_what_is_not_at_hand_is_said() -> None:
    """ATT-9: none, half, or out of date is not a pass."""
    assert check().startswith("not done") and "no RIM files" in check()
    assert f"no RIM file in date for {VBIOS}" in check(DRIVER_RIM)
    assert "out of date" in check(DRIVER_RIM, VBIOS_RIM, now=NOW.plus(seconds=11 * 365 * 86_400))


def test_a_gpu_with_other_firmware_than_its_maker_signed() -> None:
    """ATT-9."""
    with pytest.raises(AttestationError, match="measurement 5 is not one of the golden"):
        check(DRIVER_RIM, manifest(VBIOS, golden(4, 8) | {5: bytes(48)}, MAKER))


def test_two_manifests_for_one_measurement() -> None:
    """ATT-9: whoever may add a second file must not be able to choose."""
    with pytest.raises(AttestationError, match="same measurement"):
        check(DRIVER_RIM, VBIOS_RIM, manifest(VBIOS, golden(3, 4), MAKER))


@pytest.mark.parametrize("old", [b'active="True"', b'index="1"', b"colloquialVersion", b"a &amp; b", b"Measurement_2"])
def test_a_manifest_edited_after_signing(old: bytes) -> None:
    """ATT-9: names, values, switches: all of it is signed."""
    new = {b'active="True"': b'active="False"', b'index="1"': b'index="9"'}.get(old, old.swapcase())
    with pytest.raises((AttestationError, MalformedMessage)):
        parse_rim(DRIVER_RIM.replace(old, new, 1), ROOT.root)


def test_spelling_that_means_the_same_is_the_same() -> None:
    """Canonical XML 1.1: order of attributes, quotes, empty elements and comments do not count."""
    spelt = DRIVER_RIM.replace(b'name="a &amp; b" tagId="1"', b"tagId='1'  name='a &#38; b'", 1)
    assert parse_rim(spelt.replace(b"<ns0:Payload", b"<!-- a comment --><ns0:Payload"), ROOT.root).version == DRIVER


def test_a_manifest_of_another_maker() -> None:
    """ATT-9."""
    thief = signer(b"somebody else's seed", "Simulated RIM root", NOW)
    with pytest.raises(AttestationError, match="not signed under NVIDIA's root"):
        parse_rim(manifest(DRIVER, golden(0, 4), thief), ROOT.root)
    with pytest.raises(AttestationError, match="not signed under NVIDIA's root"):
        parse_rim(DRIVER_RIM)


def test_a_manifest_signed_by_the_right_name_with_the_wrong_key() -> None:
    """ATT-9: the maker's certificate over another's signature."""
    thief = replace(MAKER, key=signer(b"somebody else's seed", "thief", NOW).key)
    with pytest.raises(AttestationError, match="does not verify"):
        parse_rim(manifest(DRIVER, golden(0, 4), thief), ROOT.root)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<a>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<?xml-stylesheet href='x'?><a/>",
        b"<a xml:lang='en'/>",
        b"<a>" * 20 + b"</a>" * 20,
        b"<a>" + b"<b/>" * 5000 + b"</a>",
        b"<a b:c='d'/>",
        b"x" * 300_000,
    ],
    ids=range(9),
)
def test_xml_that_is_refused(raw: bytes) -> None:
    """ATT-9: nothing is expanded, fetched, inherited or unbounded."""
    with pytest.raises(MalformedMessage):
        parse_rim(raw)


# REVOCATION


ISSUERS = (signer(SEED, "GH100 A01 GSP BROM", NOW, GPUS.root), GPUS.root)


def answer(
    chain_at: int,
    status: ocsp.OCSPCertStatus,
    *,
    by: Signer | None = None,
    at: Instant = NOW,
    certificates: Sequence[x509.Certificate] = (),
) -> bytes:
    """A response for the certificate at this place in the first GPU's chain, signed by its issuer."""
    certificate, issuer = GPUS.devices[0].chain[chain_at], ISSUERS[chain_at]
    return revocation_answer(certificate, issuer, at=at, status=status, by=by, certificates=certificates)


CHAINS = (GPUS.devices[0].chain,)
GOOD = tuple(answer(place, ocsp.OCSPCertStatus.GOOD) for place in (0, 1))


def test_a_chain_nobody_revoked() -> None:
    """ATT-9: every certificate below the root has a good answer."""
    found = check_chains(CHAINS, GOOD, NOW, "the GPUs' certificates")
    assert found.done and found.until == NOW.plus(seconds=86_400)


def test_a_revoked_gpu() -> None:
    """ATT-9."""
    with pytest.raises(AttestationError, match="revoked"):
        check_chains(CHAINS, (answer(0, ocsp.OCSPCertStatus.REVOKED), GOOD[1]), NOW, "the GPUs' certificates")


def test_an_answer_for_half_the_chain_is_not_enough() -> None:
    """ATT-9: nor is one that is old, or that knows nothing."""
    for answers in ((), GOOD[:1], (GOOD[0], answer(1, ocsp.OCSPCertStatus.UNKNOWN))):
        assert not check_chains(CHAINS, answers, NOW, "the GPUs' certificates").done
    old = answer(0, ocsp.OCSPCertStatus.GOOD, at=NOW.plus(seconds=-9 * 86_400))
    assert "1 of the GPUs' certificates" in check_chains(CHAINS, (old, GOOD[1]), NOW, "the GPUs' certificates").detail


def test_an_answer_signed_by_somebody_else() -> None:
    """ATT-9: the revoked GPU's owner answers for it."""
    forged = answer(0, ocsp.OCSPCertStatus.GOOD, by=signer(b"somebody else's seed", "thief", NOW))
    with pytest.raises(AttestationError, match="not signed by the authority"):
        check_chains(CHAINS, (forged, GOOD[1]), NOW, "the GPUs' certificates")


def test_a_device_certifies_its_own_firmware() -> None:
    """ATT-9: nobody answers for that certificate; for the device's own and all above, somebody must."""
    assert check_devices(CHAINS, GOOD[1:], NOW).done
    assert not check_devices(CHAINS, GOOD[:1], NOW).done
    with pytest.raises(AttestationError, match="one of the GPUs' certificates is revoked"):
        check_devices(CHAINS, (answer(1, ocsp.OCSPCertStatus.REVOKED),), NOW)
    two = (ROOT.chain[0], ROOT.chain[0])  # a chain with nothing between leaf and root is asked about as it is
    assert not check_devices((two,), GOOD, NOW).done


RESPONDER = signer(SEED, "responder", NOW, GPUS.root, ca=False, extensions=((EXTENDED_KEY_USAGE, OCSP_SIGNING),))


def test_a_responder_that_an_authority_named_for_this() -> None:
    """ATT-9: the root's own responder answers for what an authority below the root issued."""
    certified = RESPONDER.certificate
    named = answer(0, ocsp.OCSPCertStatus.GOOD, by=RESPONDER, certificates=[certified])
    assert check_chains(CHAINS, (named, GOOD[1]), NOW, "these").done
    unnamed = signer(SEED, "no responder", NOW, GPUS.root, ca=False)
    forged = answer(0, ocsp.OCSPCertStatus.GOOD, by=unnamed, certificates=[unnamed.certificate])
    with pytest.raises(AttestationError, match="not signed by the authority"):
        check_chains(CHAINS, (forged, GOOD[1]), NOW, "these")


def test_a_signer_of_golden_values_who_was_revoked() -> None:
    """ATT-9: golden values count for nothing once their signer is revoked, and are open while nobody answers."""
    manifests = (parse_rim(DRIVER_RIM, ROOT.root),)
    good = revocation_answer(MAKER.certificate, ROOT, at=NOW)
    [found] = check_signers(manifests, (good,), NOW)
    assert found.done and check_signers((), (), NOW) == ()
    assert not check_signers(manifests, (), NOW)[0].done
    revoked = revocation_answer(MAKER.certificate, ROOT, at=NOW, status=ocsp.OCSPCertStatus.REVOKED)
    with pytest.raises(AttestationError, match="RIM signers' certificates is revoked"):
        check_signers(manifests, (revoked,), NOW)


def test_an_answer_that_names_its_issuer_by_a_hash_nobody_knows() -> None:
    """ATT-9: found by fuzzing: one bit of the algorithm's identifier, and the answer could not be read to its end."""
    raw = GOOD[0].replace(bytes.fromhex("0609608648016503040201"), bytes.fromhex("060960c848016503040201"), 1)
    assert raw != GOOD[0]
    with pytest.raises(MalformedMessage):
        check_chains(CHAINS, (raw, GOOD[1]), NOW, "these")


@pytest.mark.parametrize("raw", [b"", b"\x30\x03\x0a\x01\x01", b"\x00" * 20_000])
def test_what_is_no_ocsp_response(raw: bytes) -> None:
    """ATT-9."""
    with pytest.raises(MalformedMessage):
        check_chains(CHAINS, (raw,), NOW, "the GPUs' certificates")
