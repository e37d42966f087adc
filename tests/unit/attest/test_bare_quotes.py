# SPDX-License-Identifier: Apache-2.0
"""Quotes with nothing around them: SEV-SNP, SGX and TDX, honest and attacked. Each is kept as a vector of its own."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import replace
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attest.providers import (
    ENDORSEMENTS,
    GPUS,
    NONCE,
    NOW,
    PLATFORM,
    POLICY,
    SEED,
    Case,
    flipped,
    vector_name,
)

from bombyx.adapters.simulator import SimulatedEnclave, sgx
from bombyx.adapters.simulator.p384 import revocation_list
from bombyx.adapters.simulator.snp import LEVELS, SimulatedSnp, SnpGuest
from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import (
    AppraisalPolicy,
    ReferenceValue,
    TrustClass,
    TrustedRoot,
    recognise,
    report_data,
)
from bombyx.protocol.attest.roots import INTEL_ROOT, trust_class_of
from bombyx.protocol.attest.roots_amd import AMD_ROOTS
from bombyx.protocol.attest.snp import parse_collateral, parse_quote, write_collateral
from bombyx.protocol.attest.x509chain import check_chain
from bombyx.protocol.primitives import Secret

DATA = bytes(range(64))
CHIP = SimulatedSnp(seed=Secret(SEED), created=NOW)
GUEST = SnpGuest(report_data=DATA)
SIMULATED = frozenset({TrustClass.SIMULATED})
SNP_POLICY = AppraisalPolicy(
    roots=(TrustedRoot(name="chips", certificate=CHIP.root_certificate, minimum_tcb=(("microcode", 70), ("snp", 20))),),
    trust_classes=SIMULATED,
    reference_values=(
        ReferenceValue(
            name="guest", trust_class=TrustClass.SIMULATED, measurements=(("measurement", GUEST.measurement),)
        ),
    ),
)
SGX_POLICY = AppraisalPolicy(
    roots=(TrustedRoot(name="simulator", certificate=PLATFORM.root_certificate),),
    trust_classes=SIMULATED,
    reference_values=(
        ReferenceValue(
            name="enclave", trust_class=TrustClass.SIMULATED, measurements=(("mrenclave", sgx.SgxEnclave().mrenclave),)
        ),
    ),
)


@pytest.fixture
def chip(request: pytest.FixtureRequest) -> Case:
    return Case(
        raw=CHIP.report(GUEST),
        policy=SNP_POLICY,
        report_data=DATA,
        endorsements=(CHIP.endorsements(NOW),),
        tokens=(),
        jwks=b"",
        name=vector_name(request.node.name),
    )


@pytest.fixture
def enclave(request: pytest.FixtureRequest) -> Case:
    return Case(
        raw=sgx.quote(PLATFORM, sgx.SgxEnclave(report_data=DATA)),
        policy=SGX_POLICY,
        report_data=DATA,
        endorsements=(sgx.endorsements(PLATFORM, NOW),),
        tokens=(),
        jwks=b"",
        name=vector_name(request.node.name),
    )


# SEV-SNP


def test_an_honest_snp_report(chip: Case) -> None:
    """ATT-13: chain, levels, debug bit, measurement."""
    [found] = chip.verified().outcomes
    assert found.claims is not None and found.claims.quote.format == "simulated sev-snp report v3"
    assert found.steps[4].status == "not applicable"


@pytest.mark.parametrize("position", [0x08, 0x50, 0x90, 0xC0, 0x180, 0x1A0, 0x2A0, 0x2E8])
def test_an_snp_report_with_a_changed_byte(chip: Case, position: int) -> None:
    """ATT-13.2: policy, report data, measurement, host data, levels, chip, both halves of the signature."""
    chip.raw = flipped(chip.raw, position)
    chip.refused(2, "does not verify")


def test_an_snp_report_with_bytes_after_its_signature(chip: Case) -> None:
    """ATT-13.1."""
    chip.raw = flipped(chip.raw, 0x49F)
    chip.refused(1, "after the report's signature")


def test_an_snp_report_under_another_makers_root(chip: Case) -> None:
    """ATT-13.2."""
    other = replace(CHIP, seed=Secret(b"somebody else's seed"))
    chip.raw, chip.endorsements = other.report(GUEST), (other.endorsements(NOW),)
    chip.refused(2, "root the policy does not name")


def test_our_root_above_an_snp_chain_it_did_not_sign(chip: Case) -> None:
    """ATT-13.2."""
    other = replace(CHIP, seed=Secret(b"somebody else's seed"))
    forged = write_collateral((*other.vcek.der()[:-1], CHIP.root_certificate))
    chip.raw, chip.endorsements = other.report(GUEST), (forged,)
    chip.refused(2, "not issued by the one above")


def test_an_snp_chain_in_the_wrong_order(chip: Case) -> None:
    """ATT-13.2."""
    leaf, authority, root = CHIP.vcek.der()
    chip.endorsements = (write_collateral((authority, leaf, root)),)
    chip.refused(2)


def test_an_snp_chain_without_the_chip(chip: Case) -> None:
    """ATT-13.2: signed by nobody in it."""
    chip.endorsements = (write_collateral(CHIP.vcek.der()[1:]),)
    chip.refused(2, "does not verify")


def test_an_snp_chain_out_of_date(chip: Case) -> None:
    """ATT-13.2."""
    chip.now = NOW.plus(seconds=11 * 365 * 86_400)
    chip.refused(2, "out of date")


def test_a_certificate_of_another_chip(chip: Case) -> None:
    """ATT-13.3: a key extracted from one chip must not speak for another."""
    chip.raw = replace(CHIP, chip=bytes(64)).report(GUEST)
    chip.refused(3, "another chip's")


def test_a_certificate_for_newer_firmware_than_runs(chip: Case) -> None:
    """ATT-13.3: the report admits an older level than its certificate is for."""
    old = bytes([LEVELS[0] - 1]) + LEVELS[1:]
    chip.raw = replace(CHIP, levels=old).report(GUEST)
    chip.refused(3, "another bootloader level")


def test_firmware_older_than_the_policy_accepts(chip: Case) -> None:
    """ATT-13.3."""
    old = replace(CHIP, levels=LEVELS[:7] + b"\x10", certified=LEVELS[:7] + b"\x10")
    chip.raw, chip.endorsements = old.report(GUEST), (old.endorsements(NOW),)
    chip.refused(3, "OutOfDate")


def test_firmware_nobody_rated(chip: Case) -> None:
    """ATT-13.3: without a minimum in the policy nothing is up to date."""
    chip.policy = replace(SNP_POLICY, roots=(replace(SNP_POLICY.roots[0], minimum_tcb=()),))
    chip.refused(3, "Unrated")


def test_a_revoked_snp_authority(chip: Case) -> None:
    """ATT-13.3."""
    chip.endorsements = (CHIP.endorsements(NOW, revoked=(CHIP.authority.certificate.serial_number,)),)
    chip.refused(3, "revoked")


def test_an_snp_revocation_list_out_of_date(chip: Case) -> None:
    """ATT-13.3."""
    chip.endorsements = (CHIP.endorsements(NOW.plus(seconds=-40 * 86_400)),)
    chip.refused(3, "out of date")


def test_an_snp_revocation_list_signed_by_another(chip: Case) -> None:
    """ATT-13.3: an empty list of the attacker's."""
    forged = revocation_list(replace(CHIP, seed=Secret(b"somebody else's seed")).root, at=NOW, days=30)
    chip.endorsements = (write_collateral(CHIP.vcek.der(), forged),)
    chip.refused(3, "not signed by the chain's root")


def test_no_snp_revocation_list_is_said(chip: Case) -> None:
    """ATT-13.3: absent is not checked, in so many words."""
    chip.endorsements = (write_collateral(CHIP.vcek.der()),)
    assert "not checked: no revocation list" in chip.verified().outcomes[0].steps[2].detail


def test_an_snp_guest_that_may_be_debugged(chip: Case) -> None:
    """ATT-13.4."""
    chip.raw = CHIP.report(replace(GUEST, debug=True))
    chip.refused(4, "debugging")


def test_an_snp_guest_that_runs_something_else(chip: Case) -> None:
    """ATT-13.6."""
    chip.raw = CHIP.report(replace(GUEST, measurement=bytes(48)))
    chip.refused(6, "no Reference Value")


def test_an_snp_report_for_other_data(chip: Case) -> None:
    """ATT-13.7."""
    chip.raw = CHIP.report(replace(GUEST, report_data=bytes(64)))
    chip.refused(7, "report data")


def test_an_snp_report_whose_data_nobody_asked_for(chip: Case) -> None:
    """ATT-13.7: a bare quote proves that something runs, not that it is the one we talk to."""
    chip.report_data = None
    chip.undecided(7, "bare quote")


def test_a_simulated_snp_report_under_amds_roots(chip: Case) -> None:
    """ATT-13.2."""
    roots = tuple(TrustedRoot(name=name, certificate=root) for name, root in AMD_ROOTS.items())
    chip.policy = replace(SNP_POLICY, roots=roots, trust_classes=frozenset({TrustClass.SNP}))
    chip.refused(2, "root the policy does not name")


def test_an_snp_bundle_passes_the_ten_steps(scene: Any) -> None:
    """ATT-6: a bundle of this technology, bound by host data to its compose file."""
    keys = scene.make_keyset().encode()
    guest = replace(GUEST, host_data=bytes(scene.image.compose_hash), report_data=report_data(keys))
    scene.bundle = {
        "technology": "snp",
        "quote": CHIP.report(guest),
        "event_log": b"[]",
        "endorsements": CHIP.endorsements(NOW),
    }
    scene.policy = SNP_POLICY
    result = scene.appraise()
    assert result.trust_class is TrustClass.SIMULATED and result.claims.quote.technology == "snp"
    scene.bundle["quote"] = CHIP.report(replace(guest, host_data=bytes(32)))
    scene.refused(6, "compose file")


@pytest.mark.parametrize("family", sorted(AMD_ROOTS))
def test_amds_pinned_roots_sign_themselves(family: str) -> None:
    """ATT-6.2: RSA-PSS with SHA-384, as all AMD certificates; in date for decades."""
    [root] = parse_collateral(write_collateral((AMD_ROOTS[family],))).chain
    assert check_chain((root,), family, NOW) > NOW


def test_a_chain_signed_with_rsa_pss_as_amd_does() -> None:
    """ATT-6.2: root and authority sign with RSA-PSS; one changed byte is refused."""
    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("root", "authority")]
    made = [_rsa(names[i], names[0], keys[i], keys[0]) for i in (1, 0)]
    [*chain] = parse_collateral(write_collateral(tuple(made))).chain
    assert check_chain(tuple(chain), "a chip", NOW) > NOW
    [*broken] = parse_collateral(write_collateral((flipped(made[0], -1), made[1]))).chain
    with pytest.raises(Exception, match="not issued by"):
        check_chain(tuple(broken), "a chip", NOW)


def _rsa(subject: x509.Name, issuer: x509.Name, key: Any, signer: Any) -> bytes:
    start = dt.datetime.fromtimestamp(NOW.seconds, tz=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start - dt.timedelta(days=1))
        .not_valid_after(start + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    return builder.sign(signer, hashes.SHA384(), rsa_padding=pss).public_bytes(Encoding.DER)


# SGX


def test_an_honest_sgx_quote(enclave: Case) -> None:
    """ATT-13."""
    [found] = enclave.verified().outcomes
    assert found.claims is not None and found.claims.quote.format == "simulated sgx quote v3"


@pytest.mark.parametrize("position", [30, 112, 370, 440, 500])
def test_an_sgx_quote_with_a_changed_byte(enclave: Case, position: int) -> None:
    """ATT-13.2: header, mrenclave, report data, signature, attestation key."""
    enclave.raw = flipped(enclave.raw, position)
    enclave.refused(2)


def test_an_sgx_enclave_in_debug_mode(enclave: Case) -> None:
    """ATT-13.4."""
    enclave.raw = sgx.quote(PLATFORM, sgx.SgxEnclave(report_data=DATA, debug=True))
    enclave.refused(4, "debug")


def test_another_sgx_enclave_of_the_same_signer(enclave: Case) -> None:
    """ATT-13.6."""
    enclave.raw = sgx.quote(PLATFORM, sgx.SgxEnclave(report_data=DATA, mrenclave=bytes(32)))
    enclave.refused(6, "no Reference Value")


def test_an_sgx_quote_with_tdx_endorsements(enclave: Case) -> None:
    """ATT-13.2: they speak of another technology."""
    enclave.endorsements = (ENDORSEMENTS,)
    enclave.undecided(2, "no Endorsements")


def test_an_sgx_quote_cut_short(enclave: Case) -> None:
    """ATT-13.1."""
    enclave.raw = enclave.raw[:-1]
    enclave.refused(1)


def test_an_sgx_quote_is_never_tdx() -> None:
    """ATT-12: Intel's one root vouches for both, the technology tells which."""
    assert trust_class_of(INTEL_ROOT, "sgx") is TrustClass.SGX
    assert trust_class_of(INTEL_ROOT, "tdx") is TrustClass.TDX
    assert trust_class_of(INTEL_ROOT, "snp") is TrustClass.SIMULATED


# TDX, AND HOW IT IS WRITTEN


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("spelling", ["binary", "hex", "0x", "base64", "dstack"])
def test_a_bare_tdx_quote_however_it_is_written(version: int, spelling: str) -> None:
    """ATT-13: recognised by its header; without an event log what runs there stays open."""
    quote = PLATFORM.quote(SimulatedEnclave(platform=PLATFORM, quote_version=version).report(DATA))
    raw = {
        "binary": quote,
        "hex": quote.hex().encode() + b"\n",
        "0x": b"0x" + quote.hex().encode(),
        "base64": base64.b64encode(quote),
        "dstack": orjson.dumps({"quote": quote.hex(), "report_data": DATA.hex()}),
    }[spelling]
    case = Case(raw=raw, policy=replace(SGX_POLICY, reference_values=()), report_data=DATA, tokens=(), jwks=b"")
    [found] = case.undecided(5, "no event log").outcomes
    assert [step.status for step in found.steps[:4]] == ["passed"] * 4


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\x04\x00", b"hello", b"\xd9\x69\x7a"])
def test_what_is_nothing_known(raw: bytes) -> None:
    """ATT-13.1: refused with what would be known."""
    with pytest.raises(MalformedMessage):
        recognise(raw)


def test_gpu_evidence_alone_proves_no_enclave() -> None:
    """ATT-13: shown as far as it goes; the verdict stays open."""
    case = Case(raw=orjson.dumps(GPUS.evidence(NONCE)), policy=POLICY)
    [found] = case.undecided(2, "no CPU quote").outcomes
    assert found.steps[8].status == "passed" and "token for 2 GPUs verifies" in found.steps[8].detail


def test_a_token_alone_proves_no_enclave() -> None:
    """ATT-13."""
    case = Case(raw=GPUS.tokens(NONCE, NOW), policy=POLICY, tokens=())
    [found] = case.undecided(2, "no CPU quote").outcomes
    assert found.steps[8].status == "passed"


def test_levels_of_a_turin_chip_are_read_in_its_own_layout() -> None:
    """ATT-6.3: AMD moved the bytes with family 1Ah."""
    raw = bytearray(CHIP.report(GUEST))
    raw[0x188] = 0x1A
    report = parse_quote(bytes(raw))
    assert report.levels() == {"fmc": 9, "bootloader": 0, "tee": 0, "snp": 0, "microcode": 72}
    assert len(report.chip_id) == 8
