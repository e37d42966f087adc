# SPDX-License-Identifier: Apache-2.0
"""dstack's configuration id in its three forms, and what its guest agent says of itself: honest, and each attack."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.unit.attest.providers import GPUS, NONCE, NOW, PLATFORM, POLICY, PROVIDER, SEED, Case, vector_name

from bombyx.adapters.simulator import SimulatedEnclave
from bombyx.adapters.simulator.p384 import derive_key, signer
from bombyx.adapters.simulator.provider import APP_NAME, NODE_IMAGE, key_provider_of
from bombyx.adapters.simulator.snp import SimulatedSnp, SnpGuest
from bombyx.errors import AttestationError, MalformedMessage
from bombyx.protocol.attest import AtHand, ReferenceValue, Report, TrustClass, TrustedRoot, Verdict, examine, recognise
from bombyx.protocol.attest.claims import BootClaims
from bombyx.protocol.attest.events import RUNTIME_EVENT, Event
from bombyx.protocol.attest.mr_config import (
    ConfigDocument,
    KeyProvider,
    check_document,
    form_1,
    form_2,
    form_3,
    host_data,
    key_provider,
    parse_document,
)
from bombyx.protocol.primitives import Digest, Secret, sha256

KMS = PROVIDER.kms(NOW)
OTHER_KMS = signer(b"somebody else's seed", "Simulated KMS CA", NOW)
DOCUMENT = ConfigDocument(
    compose_hash=Digest(b"\x22" * 32),
    key_provider="kms",
    app_id=b"\x11" * 20,
    key_provider_id=b"\x33" * 32,
    instance_id=b"\x44" * 20,
)
MEASURED = BootClaims(
    compose_hash=Digest(b"\x22" * 32),
    app_id=b"\x11" * 20,
    instance_id=b"\x44" * 20,
    key_provider=orjson.dumps({"name": "kms", "id": "33" * 32}),
    gpu_policy=b"\x55" * 32,
    init_scripts=(b"\xaa" * 32, b"\xbb" * 32),
)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """A node of a key management service; each test alters it."""
    found = Case(document=PROVIDER.guest(NONCE, NOW))
    found.name = vector_name(request.node.name)
    return found


def info(case: Case) -> dict[str, Any]:
    assert case.document is not None
    return case.document["info"]  # type: ignore[no-any-return]


def configured(case: Case, form: int, **enclave: Any) -> Case:
    case.document = PROVIDER.guest(NONCE, NOW, config_form=form, **enclave)
    return case


# FORMULAS


def test_the_forms_are_dstacks() -> None:
    """ATT-6.6: the values dstack's own libraries publish for these inputs."""
    compose, app = bytes(range(32)), bytes(range(20))
    kms = KeyProvider(kind="kms", identity=bytes.fromhex("aabbccdd"))
    assert form_1(compose).hex() == "01" + compose.hex() + "00" * 15
    second = "02e472ed80a08042f044ba63b53b798e98e3ea5219cd078007b1ac8b3dfc762b94"
    assert form_2(compose, app, kms).hex() == second + "00" * 15
    nobody = "02b21a3a65891c2c3955d82000b30fab13f4adc1a12dc4a84793ea322b71f1882a"
    assert form_2(compose, app, KeyProvider(kind="none")).hex() == nobody + "00" * 15
    third = "0350fc88d0a462b6a0b06ba25859abc02e98c2a8d9bd000b7dc0d8bae65e71ecbb"
    assert form_3(DOCUMENT.encode()).hex() == third + "00" * 15
    assert host_data(DOCUMENT.encode()).hex() == third[2:]


@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        (
            {"gpu_policy_hash": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},
            "893655c09844af05adb4d67af5917998038afe711bdcd3a3ec1dbd94ad272b85",
        ),
        ({"init_script_hashes": []}, "ce2f8b8e4aa4cccdae73fb3a118047726b77d70b1e47bb0e3e48600603fd612c"),
        (
            {
                "key_provider": "local",
                "key_provider_id": "55" * 20,
                "init_script_hashes": ["aa" * 32, "bb" * 32],
            },
            "9af46bdc5deb1ea74f2c77b4f83165f1f3e4e37e3ce15462b5fee0d235912390",
        ),
        (
            {
                "key_provider": "tpm",
                "key_provider_id": "66" * 16,
                "gpu_policy_hash": "55" * 32,
                "init_script_hashes": ["cc" * 32],
            },
            "633f5444c26877f68c293d90a6feef58064e1e57367ac55c94b255cf3bdf8885",
        ),
    ],
    ids=["a GPU policy", "no init script", "init scripts", "everything"],
)
def test_the_third_forms_documents_are_dstacks(changes: dict[str, Any], digest: str) -> None:
    """ATT-6.6: an absent pin is left out, an empty list is not."""
    fields = orjson.loads(DOCUMENT.encode()) | changes
    read = parse_document(orjson.dumps(fields))
    assert host_data(read.encode()).hex() == digest and parse_document(read.encode()) == read


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"compose_hash": "22", "key_provider": "kms"}',
        DOCUMENT.encode().replace(b'"version":3', b'"version":4'),
        DOCUMENT.encode().replace(b'"version":3', b'"version":3,"more":1'),
        DOCUMENT.encode().replace(b'"kms"', b'"friend"'),
        DOCUMENT.encode().replace(b'"kms"', b'["kms"]'),
        DOCUMENT.encode().replace(b'"11', b'"zz'),
        DOCUMENT.encode().replace(b"}", b',"init_script_hashes":["' + b'","'.join([b"aa" * 32] * 6) + b'"]}'),
        DOCUMENT.encode().replace(b"}", b',"init_script_hashes":[null]}'),
        b" " * 9_000,
    ],
    ids=range(12),
)
def test_what_is_no_configuration_document(raw: bytes) -> None:
    """ATT-6.6: a field nobody knows could pin something nobody checks."""
    with pytest.raises(MalformedMessage):
        parse_document(raw)


@pytest.mark.parametrize("event", [b"", b"[]", b"{}", b'{"name": 1, "id": ""}', b'{"name": "x", "id": "00"}', b"\xff"])
def test_an_event_that_names_no_key_provider(event: bytes) -> None:
    """ATT-6.6."""
    assert key_provider(event).kind == ""
    assert key_provider(b'{"name": "local-sgx", "id": "aa"}') == KeyProvider(kind="local", identity=b"\xaa")


# FORM 2


def test_an_honest_second_form(case: Case) -> None:
    """ATT-6.6."""
    [node] = configured(case, 2).verified().outcomes
    assert "mr_config_id binds compose file, app id and key provider" in node.steps[5].detail


def test_second_form_with_another_key_provider(case: Case) -> None:
    """ATT-6.6: the host launched it for one key provider, the guest took its keys from another."""
    provider = key_provider_of(OTHER_KMS)
    case.document = PROVIDER.guest(NONCE, NOW, config_id=form_2(*_measured(), key_provider(provider)))
    case.refused(6, "app id and key provider that were measured")


def test_second_form_with_another_kind_of_key_provider(case: Case) -> None:
    """ATT-6.6: a local provider under the same key."""
    provider = replace(key_provider(key_provider_of(KMS)), kind="local")
    case.document = PROVIDER.guest(NONCE, NOW, config_id=form_2(*_measured(), provider))
    case.refused(6, "app id and key provider that were measured")


def test_second_form_with_another_app_id(case: Case) -> None:
    """ATT-6.6: keys of another application would be handed out."""
    compose, _ = _measured()
    config = form_2(compose, bytes(20), key_provider(key_provider_of(KMS)))
    case.document = PROVIDER.guest(NONCE, NOW, config_id=config)
    case.refused(6, "app id and key provider that were measured")


def test_second_form_with_another_compose_file(case: Case) -> None:
    """ATT-6.6."""
    config = form_2(bytes(32), NODE_IMAGE.app_id, key_provider(key_provider_of(KMS)))
    case.document = PROVIDER.guest(NONCE, NOW, config_id=config)
    case.refused(6, "compose file")


def test_second_form_with_something_behind_it(case: Case) -> None:
    """ATT-6.6: the last 15 bytes are zero."""
    config = form_2(*_measured(), key_provider(key_provider_of(KMS)))[:-1] + b"\x01"
    case.document = PROVIDER.guest(NONCE, NOW, config_id=config)
    case.refused(6)


def test_a_second_form_nobody_can_compute(case: Case) -> None:
    """ATT-6.6: the event names a provider this version does not know: open, and said."""
    provider = b'{"name":"simulated","id":""}'
    config = form_2(*_measured(), KeyProvider(kind="none"))
    case.document = PROVIDER.guest(NONCE, NOW, config_id=config, key_provider=provider)
    [node] = case.verified().outcomes
    assert "not checked: mr_config_id of form 2 (no event names a key provider" in node.steps[5].detail
    assert "app_cert (no measured event names an authority" in node.steps[5].detail


def _measured() -> tuple[bytes, bytes]:
    return bytes(NODE_IMAGE.compose_hash), NODE_IMAGE.app_id


# FORM 3


def test_an_honest_third_form(case: Case) -> None:
    """ATT-6.6: the document is shown, is the one in the quote, and pins what was measured."""
    [node] = configured(case, 3).verified().outcomes
    assert "mr_config_id's document says what was measured" in node.steps[5].detail


def test_a_third_form_whose_document_is_not_shown(case: Case) -> None:
    """ATT-6.6: it is rebuilt from what was measured."""
    configured(case, 3)
    info(case)["vm_config"] = orjson.dumps({"num_gpus": 2}).decode()
    [node] = case.verified().outcomes
    assert "mr_config_id is that of a document of what was measured" in node.steps[5].detail


def test_a_third_form_that_nothing_measured_fits(case: Case) -> None:
    """ATT-6.6: it may pin what no event shows: open, and said."""
    case.document = PROVIDER.guest(NONCE, NOW, config_id=form_3(b"a document nobody shows"))
    [node] = case.verified().outcomes
    assert "not checked: mr_config_id of form 3 (its document is not shown" in node.steps[5].detail


def test_third_form_with_another_document_shown(case: Case) -> None:
    """ATT-6.6."""
    configured(case, 3)
    info(case)["vm_config"] = orjson.dumps({"num_gpus": 2, "mr_config": DOCUMENT.encode().decode()}).decode()
    case.refused(6, "is not the one in mr_config_id")


def test_third_form_with_its_document_written_otherwise(case: Case) -> None:
    """ATT-6.6: the same JSON in another spelling is another document."""
    configured(case, 3)
    config = orjson.loads(info(case)["vm_config"])
    document = orjson.dumps(orjson.loads(config["mr_config"]), option=orjson.OPT_INDENT_2)
    info(case)["vm_config"] = orjson.dumps(config | {"mr_config": document.decode()}).decode()
    case.refused(6, "is not the one in mr_config_id")


def test_third_form_that_pins_another_application(case: Case) -> None:
    """ATT-6.6: the document is the quote's, and contradicts what was measured."""
    document = DOCUMENT.encode()
    case.document = PROVIDER.guest(NONCE, NOW, config_id=form_3(document))
    info(case)["mr_config"] = document.decode()
    case.refused(6, "pins another compose hash")


def test_third_form_with_a_document_that_is_nonsense(case: Case) -> None:
    """ATT-6.6."""
    case.document = PROVIDER.guest(NONCE, NOW, config_id=form_3(b"nonsense"))
    info(case)["mr_config"] = "nonsense"
    case.refused(6, "configuration document")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"compose_hash": Digest(bytes(32))}, "compose hash"),
        ({"app_id": bytes(20)}, "app id"),
        ({"instance_id": bytes(20)}, "instance id"),
        ({"key_provider": "tpm"}, "kind of key provider"),
        ({"key_provider_id": bytes(32)}, "key provider"),
        ({"gpu_policy_hash": bytes(32)}, "GPU policy"),
        ({"init_script_hashes": ()}, "list of init scripts"),
        ({"init_script_hashes": MEASURED.init_scripts[::-1]}, "list of init scripts"),
    ],
    ids=range(8),
)
def test_every_pin_of_a_document_is_compared(changes: dict[str, Any], name: str) -> None:
    """ATT-6.6: init scripts in their order."""
    whole = replace(DOCUMENT, gpu_policy_hash=MEASURED.gpu_policy, init_script_hashes=MEASURED.init_scripts)
    check_document(whole, MEASURED)
    check_document(ConfigDocument(compose_hash=DOCUMENT.compose_hash, key_provider="kms"), MEASURED)
    with pytest.raises(AttestationError, match=f"pins another {name} than"):
        check_document(replace(whole, **changes), MEASURED)


def test_init_scripts_and_gpu_policy_come_from_measured_events(case: Case) -> None:
    """ATT-6.5: the one name that may come twice, in order; a second GPU policy is refused."""
    scripts = tuple(
        Event(register=3, kind=RUNTIME_EVENT, digest=b"", name="init-script-hash", payload=payload)
        for payload in MEASURED.init_scripts
    )
    policy = Event(register=3, kind=RUNTIME_EVENT, digest=b"", name="gpu-policy-hash", payload=MEASURED.gpu_policy)
    case.document = PROVIDER.guest(NONCE, NOW, extra_events=(*scripts, policy))
    [node] = case.verified().outcomes
    assert node.claims is not None and node.claims.boot.init_scripts == MEASURED.init_scripts
    assert node.claims.boot.gpu_policy == MEASURED.gpu_policy
    twice = Case(document=PROVIDER.guest(NONCE, NOW, extra_events=(policy, policy)))
    twice.refused(5, "twice")


def test_a_form_nobody_knows(case: Case) -> None:
    """ATT-6.6."""
    case.document = PROVIDER.guest(NONCE, NOW, config_id=b"\x04" + bytes(47))
    [node] = case.verified().outcomes
    assert "not checked: mr_config_id of form 4, which this version does not know" in node.steps[5].detail


def test_no_configuration_id_at_all(case: Case) -> None:
    """ATT-6.6: a host that configured nothing; the event log says what was started."""
    [node] = configured(case, 0).verified().outcomes
    assert "mr_config_id" not in node.steps[5].detail


# SEV-SNP


def test_sev_snp_carries_the_documents_hash_as_host_data() -> None:
    """ATT-6.6: with the document the compose hash is read from it; another document is refused."""
    chip = SimulatedSnp(seed=Secret(SEED), created=NOW)
    report = chip.report(SnpGuest(host_data=host_data(DOCUMENT.encode())))
    policy = replace(
        POLICY,
        roots=(TrustedRoot(name="chips", certificate=chip.root_certificate, minimum_tcb=(("snp", 20),)),),
        reference_values=(
            ReferenceValue(name="it", trust_class=TrustClass.SIMULATED, compose_hash=DOCUMENT.compose_hash),
        ),
        require_gpu=False,
        require_nonce=False,
    )

    def verdict(document: bytes) -> tuple[Verdict, str]:
        answer = {"quote": report.hex(), "vm_config": orjson.dumps({"mr_config": document.decode()}).decode()}
        found = recognise(orjson.dumps(answer))
        assert isinstance(found, Report)
        at_hand = AtHand(endorsements=(chip.endorsements(NOW),), report_data=bytes(64))
        outcome = examine(found, policy, now=NOW, at_hand=at_hand).outcomes[0]
        return outcome.verdict, outcome.why

    assert verdict(DOCUMENT.encode()) == (Verdict.VERIFIED, "trust class simulated")
    refused, why = verdict(replace(DOCUMENT, app_id=bytes(20)).encode())
    assert refused is Verdict.REFUSED and "not the one in the host data" in why


# WHAT THE AGENT SAYS


def test_an_honest_agent(case: Case) -> None:
    """ATT-13.6: aggregate, device and certificate are those of what is signed."""
    [node] = case.verified().outcomes
    for words in ("mr_aggregated is that", "device_id is that of the platform", "app_cert is issued for this app id"):
        assert words in node.steps[5].detail
    assert "not checked" not in node.steps[5].detail


def test_another_aggregate_than_was_measured(case: Case) -> None:
    """ATT-13.6."""
    info(case)["mr_aggregated"] = "00" * 32
    case.refused(6, "another mr_aggregated")


def test_an_aggregate_without_the_configuration(case: Case) -> None:
    """ATT-13.6: once anything is configured it counts."""
    other = PROVIDER.guest(NONCE, NOW, config_form=0)
    info(case)["mr_aggregated"] = other["info"]["mr_aggregated"]
    case.refused(6, "another mr_aggregated")


def test_two_aggregates(case: Case) -> None:
    """ATT-13.1."""
    info(case)["tcb_info"]["mr_aggregated"] = "00" * 32
    with pytest.raises(MalformedMessage, match="two different mr_aggregated"):
        case.examine()


@pytest.mark.parametrize("device", ["", "00" * 32])
def test_a_device_that_nothing_signed_names(case: Case, device: str) -> None:
    """ATT-13.6: not a lie anyone can prove, so open; and an agent that names none says so."""
    case.name = ""
    info(case)["device_id"] = device or "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    [node] = case.verified().outcomes
    assert "not checked: device_id (" in node.steps[5].detail


def test_a_device_named_by_its_certificate(case: Case) -> None:
    """ATT-13.6: newer agents hash the platform's PPID."""
    info(case)["device_id"] = sha256(PLATFORM.machine_id).hex()
    [node] = case.verified().outcomes
    assert "device_id is that of the platform" in node.steps[5].detail


def ra_tls(public: bytes) -> bytes:
    """A certificate whose own quote is for this key, PEM."""
    data = hashlib.sha512(b"ratls-cert:" + public).digest()
    quote = PLATFORM.quote(SimulatedEnclave(platform=PLATFORM, image=NODE_IMAGE).report(data))
    return PROVIDER.app_certificate(KMS, NODE_IMAGE.app_id, NOW, quote).pem()


def test_a_certificate_with_a_quote_of_its_own(case: Case) -> None:
    """ATT-13.6: it names the certificate's key; that it is not appraised is said."""
    key = derive_key(SEED, APP_NAME).public_key()
    public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info(case)["app_cert"] = ra_tls(public).decode()
    [node] = case.verified().outcomes
    assert "the older quote inside it names its key and is not appraised" in node.steps[5].detail


def test_a_certificate_with_somebody_elses_quote(case: Case) -> None:
    """ATT-13.6: a quote copied out of another certificate."""
    info(case)["app_cert"] = ra_tls(b"another key").decode()
    case.refused(6, "is for another key")


def test_a_certificate_of_another_key_provider(case: Case) -> None:
    """ATT-13.6: whoever holds that authority issues certificates in this application's name."""
    info(case)["app_cert"] = PROVIDER.app_certificate(OTHER_KMS, NODE_IMAGE.app_id, NOW).pem().decode()
    case.refused(6, "not issued by the key provider")


def test_a_certificate_of_another_application(case: Case) -> None:
    """ATT-13.6."""
    info(case)["app_cert"] = PROVIDER.app_certificate(KMS, bytes(20), NOW).pem().decode()
    case.refused(6, "another app id")


def test_a_certificate_with_its_authority_swapped(case: Case) -> None:
    """ATT-13.6: the right authority shown above a chain it never signed."""
    own = PROVIDER.app_certificate(OTHER_KMS, NODE_IMAGE.app_id, NOW)
    chain = own.pem().partition(OTHER_KMS.pem())[0] + KMS.pem()
    info(case)["app_cert"] = chain.decode()
    case.refused(6, "not issued by the one above it")


def test_a_certificate_that_has_run_out(case: Case) -> None:
    """ATT-13.6: at a time when everything else is taken as it was."""
    early = signer(SEED, "Simulated KMS CA", NOW.plus(seconds=-20 * 365 * 86_400))
    info(case)["app_cert"] = PROVIDER.app_certificate(early, NODE_IMAGE.app_id, NOW).pem().decode()
    case.refused(6, "out of date")


def test_a_certificate_that_is_nonsense(case: Case) -> None:
    """ATT-13.6."""
    info(case)["app_cert"] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    case.refused(6, "unreadable certificate chain")


# NVSWITCH


def test_nvswitch_evidence_is_never_passed_over(case: Case) -> None:
    """ATT-9: it is not read, and the step says so in these words."""
    assert case.document is not None
    case.name = ""
    case.document["nvswitch_evidence"] = [{"evidence": base64.b64encode(bytes(9)).decode()}]
    [node] = case.verified().outcomes
    assert "not checked" in node.steps[8].detail and "NVSwitch evidence is not read" in node.steps[8].detail
    assert len(GPUS.devices) == 2
