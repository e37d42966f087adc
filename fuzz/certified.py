# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed of the parties around evidence: golden values, revocation, agents, key providers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import orjson
from cryptography import x509
from scene import ENCLAVE, ENDORSEMENTS, GPUS, NONCE, NOW, PLATFORM, POLICY, PROVIDER, SEED, XML

from bombyx.adapters.simulator import WORKER_IMAGE, SimulatedEnclave
from bombyx.adapters.simulator.golden import manifest, revocation_answer
from bombyx.adapters.simulator.p384 import signer
from bombyx.adapters.simulator.provider import NODE_IMAGE, key_provider_of
from bombyx.protocol.attest import (
    TrustClass,
    ocsp,
    rim,
    tdx,
)
from bombyx.protocol.attest.appkeys import Algorithm, AppKeys, chain_root, verify
from bombyx.protocol.attest.claims import BootClaims, QuoteClaims
from bombyx.protocol.attest.dstack_binary import BinaryAttestation, parse_attestation
from bombyx.protocol.attest.events import write_event_log
from bombyx.protocol.attest.expected import BootFacts, expect
from bombyx.protocol.attest.guest import GuestInfo, check_guest
from bombyx.protocol.attest.mr_config import key_provider, parse_document
from bombyx.protocol.attest.statement import KEY_PURPOSE, Statement, StatementBody, check_agent, read_statement
from bombyx.protocol.primitives import Digest, RequestId, Secret
from bombyx.protocol.wire.signing import SigningKey

KEYS = AppKeys(root=Secret(bytes(31) + b"\x07"), app_id=WORKER_IMAGE.app_id)
IDENTITY = KEYS.derive("agent", KEY_PURPOSE)


def stated() -> Statement:
    """An honest statement of an agent in the simulated enclave."""
    provider = orjson.dumps({"name": "kms", "id": KEYS.root_public.hex()})
    body = StatementBody(
        v=1,
        said="a word",
        asked="a question",
        model=Digest(bytes(32)),
        request_id=RequestId(bytes(16)),
        proof=Digest(bytes(32)),
        public=IDENTITY.public,
        at=NOW,
    )
    enclave = SimulatedEnclave(platform=PLATFORM, key_provider=provider)
    return Statement(
        v=1,
        body=body.encode(),
        signature=SigningKey(IDENTITY.secret).sign(body.signed()),
        chain=IDENTITY.chain,
        technology="tdx",
        quote=PLATFORM.quote(enclave.report(body.report_data())),
        event_log=write_event_log(enclave.events),
        compose=enclave.image.compose,
        endorsements=ENDORSEMENTS,
        proof=b"a proof",
        tokens=b"tokens",
    )


STATED = stated()
NO_GPU = replace(POLICY, gpu_roots=(), token_roots=())
assert all(
    line.ok is not False for line in check_agent(STATED, read_statement(STATED.encode())[1], NO_GPU, now=NOW).lines
)


def statement(data: bytes) -> None:
    """Where every line is good, the body is the honest agent's."""
    read, body = read_statement(data)
    found = check_agent(read, body, NO_GPU, now=NOW)
    if found.code is not None and not any(line.ok is False for line in found.lines):
        assert read.body == STATED.body


def computed(data: bytes) -> None:
    """The facts of a boot, then an app-compose file; a register is computed or named as missing."""
    split = data[0] if data else 0
    facts = data[1 : 1 + split]
    told = BootFacts(instance_id=facts, os_image_hash=facts, key_provider=facts, storage_fs=facts) if split else None
    expected = expect(data[1 + split :], told)
    assert (expected.rtmr3 is None) == ("rtmr3" in dict(expected.missing))


def golden(data: bytes) -> None:
    """What verifies under the maker's root says what the maker signed."""
    read = rim.parse_rim(data, GPUS.root.root)
    assert read == rim.parse_rim(RIM_FILE, GPUS.root.root)


def revocation(data: bytes) -> None:
    """Nobody but the issuer calls a certificate good: a good answer is one of the issuer's, byte for byte signed."""
    ocsp.parse_response(data)
    ocsp.check_chains((GPUS.devices[0].chain,), (data, ANSWERS[1]), NOW, "these")
    if ocsp.check_chains((GPUS.devices[0].chain,), (data,), NOW, "these").done:
        raise AssertionError("one answer for two certificates")


def chain(data: bytes) -> None:
    """Nobody without the root's key makes a chain that leads to it for another key."""
    first, second, public = data[:65], data[65:130], data[130:]
    for algorithm in Algorithm:
        verify(algorithm, data[:32], second, public)
    if chain_root((first, second), public=public, purpose=KEY_PURPOSE, app_id=KEYS.app_id) == KEYS.root_public:
        assert public == IDENTITY.public


RIM_FILE = manifest("570", dict(enumerate(GPUS.measurements())), GPUS.root)
LEAF, MIDDLE, _ = GPUS.devices[0].chain
ANSWERS = (
    revocation_answer(LEAF, signer(SEED, "GH100 A01 GSP BROM", NOW, GPUS.root), at=NOW),
    revocation_answer(MIDDLE, GPUS.root, at=NOW),
)


def configuration(data: bytes) -> None:
    """What is read means the same when written; the first byte's worth of bytes before it is a key provider's event."""
    split = data[0] if data else 0
    key_provider(data[1 : 1 + split])
    read = parse_document(data[1 + split :])
    assert parse_document(read.encode()) == read


def agent(data: bytes) -> None:
    """A certificate counts only when the key provider measured issued it."""
    said = GuestInfo(certificate=data, device_id=bytes(32))
    for finding in check_guest(said, HONEST_QUOTE, HONEST, BOOT, NOW):
        signed = [one.tbs_certificate_bytes for one in APP.chain]  # a signature can be written in more than one way
        assert not finding.done or x509.load_pem_x509_certificates(data)[0].tbs_certificate_bytes in signed


def attestation(data: bytes) -> None:
    """The quote that is read is the one that is written back."""
    read = parse_attestation(data)
    assert parse_attestation(read.encode()).quote == read.quote


ATTESTED = BinaryAttestation(
    quote=PLATFORM.quote(ENCLAVE.report(NONCE)), events=ENCLAVE.events, report_data=bytes(64), config="{}"
)
KMS = PROVIDER.kms(NOW)
APP = PROVIDER.app_certificate(KMS, NODE_IMAGE.app_id, NOW)
BOOT = BootClaims(app_id=NODE_IMAGE.app_id, key_provider=key_provider_of(KMS))
HONEST_QUOTE = tdx.parse_quote(PLATFORM.quote(ENCLAVE.report(NONCE)))
HONEST = QuoteClaims(
    technology="tdx",
    format="",
    root="",
    trust_class=TrustClass.SIMULATED,
    tcb_status="",
    advisories=(),
    platform="",
    debug=False,
    measurements=(),
    report_data=bytes(64),
    endorsed_until=NOW,
)
DOCUMENT = SimulatedEnclave(platform=PLATFORM, key_provider=key_provider_of(KMS)).config_document


Seeds = Callable[[], list[bytes]]
CERTIFIED: dict[str, tuple[Seeds, Callable[[bytes], object]]] = {
    "rim": (lambda: [XML, RIM_FILE], golden),
    "ocsp": (lambda: [b"\x30\x03\x0a\x01\x00", *ANSWERS], revocation),
    "statement": (lambda: [STATED.encode()], statement),
    "app_compose": (lambda: [b"\x00" + WORKER_IMAGE.compose, b"\x04fact" + WORKER_IMAGE.compose], computed),
    "config_document": (
        lambda: [b"\x00" + DOCUMENT, b"\x26" + ENCLAVE.key_provider + DOCUMENT],
        configuration,
    ),
    "dstack_attestation": (lambda: [ATTESTED.encode()], attestation),
    "app_certificate": (lambda: [APP.pem()], agent),
    "key_chain": (lambda: [b"".join(IDENTITY.chain) + IDENTITY.public], chain),
}
