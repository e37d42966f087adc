# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: each parser of evidence with its seeds and what must hold, and all of `travelling.py`'s.

`parsers.py` runs them. Always: what a target accepts is held against what the honest one said, wherever that is known.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import replace

import orjson
from travelling import PLAIN

from bombyx.adapters.simulator import WORKER_IMAGE, SimulatedEnclave, SimulatedPlatform, sgx
from bombyx.adapters.simulator.golden import manifest, revocation_answer
from bombyx.adapters.simulator.gpu import SimulatedGpus
from bombyx.adapters.simulator.p384 import revocation_list, signer
from bombyx.adapters.simulator.provider import GATEWAY_IMAGE, NODE_IMAGE, SimulatedProvider
from bombyx.adapters.simulator.snp import SimulatedSnp, SnpGuest
from bombyx.cli.conformance import answered
from bombyx.errors import AttestationError, ConfigError, MalformedMessage
from bombyx.protocol.attest import (
    AppraisalPolicy,
    Archive,
    AtHand,
    Report,
    TrustClass,
    TrustedRoot,
    Verdict,
    examine,
    ocsp,
    policy_from_toml,
    policy_to_toml,
    recognise,
    rim,
    snp,
    tdx,
)
from bombyx.protocol.attest import sgx as sgx_quote
from bombyx.protocol.attest.appkeys import Algorithm, AppKeys, chain_root, verify
from bombyx.protocol.attest.events import parse_event_log, write_event_log
from bombyx.protocol.attest.expected import BootFacts, expect
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.nras import parse_jwks, parse_token, parse_tokens
from bombyx.protocol.attest.statement import KEY_PURPOSE, Statement, StatementBody, check_agent, read_statement
from bombyx.protocol.attest.xml import canonical, parse_xml
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret
from bombyx.protocol.seal.envelope import parse_envelope
from bombyx.protocol.seal.ohttp import parse_key_configs
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.evidence import EvidenceBundle
from bombyx.protocol.wire.market import Directory, DirectoryReader, Offer
from bombyx.protocol.wire.signing import SigningKey

NOW = Instant.from_seconds(1_790_000_000)
NONCE = bytes(range(32))
SEED = b"a seed for fuzzing, no secret!!!"
PLATFORM = SimulatedPlatform.create(seed=SEED, now=NOW)
GPUS = SimulatedGpus(seed=Secret(SEED), created=NOW)
PROVIDER = SimulatedProvider(platform=PLATFORM, gpus=GPUS)
CHIP = SimulatedSnp(seed=Secret(SEED), created=NOW)
ENCLAVE = SimulatedEnclave(platform=PLATFORM)
ENDORSEMENTS = PLATFORM.endorsements(NOW)
POLICY = AppraisalPolicy(
    roots=(
        TrustedRoot(name="simulator", certificate=PLATFORM.root_certificate),
        TrustedRoot(name="chips", certificate=CHIP.root_certificate, minimum_tcb=(("snp", 20),)),
    ),
    trust_classes=frozenset({TrustClass.SIMULATED}),
    reference_values=tuple(image.reference_value() for image in (NODE_IMAGE, GATEWAY_IMAGE, WORKER_IMAGE)),
    gpu_roots=(GPUS.root.root,),
    token_roots=(GPUS.service.root,),
)
AT_HAND = AtHand(
    endorsements=(ENDORSEMENTS, CHIP.endorsements(NOW)),
    tokens=(GPUS.tokens(NONCE, NOW),),
    jwks=GPUS.jwks(),
    nonce=NONCE,
)
ARCHIVE = Archive(
    report=orjson.dumps(PROVIDER.phala(NONCE)),
    captured=NOW,
    nonce=NONCE,
    endorsements=(ENDORSEMENTS,),
    jwks=GPUS.jwks(),
)
KEYS = AppKeys(root=Secret(bytes(31) + b"\x07"), app_id=WORKER_IMAGE.app_id)
IDENTITY = KEYS.derive("agent", KEY_PURPOSE)
XML = b'<a xmlns="u" xmlns:p="v" p:x="1" y="2"><p:b>t &amp; u</p:b><!-- c --><c/></a>'


def refusing(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """A value or `MalformedMessage` (a peer's fault) or a step's refusal; anything else is a finding."""

    def run(data: bytes) -> None:
        try:
            parse(data)
        except (MalformedMessage, AttestationError):
            pass

    return run


def events(data: bytes) -> None:
    """What is read is written back alike."""
    read = parse_event_log(data)
    again = parse_event_log(write_event_log(read))
    assert [one.measured() for one in again] == [one.measured() for one in read]


def policy(data: bytes) -> None:
    """A policy that is read means the same when written."""
    try:
        read = policy_from_toml(data.decode())
    except (ConfigError, UnicodeDecodeError):
        return
    assert policy_from_toml(policy_to_toml(read)) == read


def report(data: bytes) -> None:
    """Nothing verifies but what binds the honest keys."""
    found = recognise(data)
    if isinstance(found, Archive):
        found = recognise(found.report)
    if not isinstance(found, Report):
        return
    for outcome in examine(found, POLICY, now=NOW, at_hand=AT_HAND).outcomes:
        if outcome.verdict is Verdict.VERIFIED:
            honest = {"0x" + PROVIDER.address.hex(), PROVIDER.ed25519.hex()}
            assert not outcome.keys or outcome.keys[0][1] in honest or "actions" in outcome.keys[0][0]


def conformance(data: bytes) -> None:
    """Every request has an answer and a documented code."""
    code, answer = answered(data)
    assert code in (0, 1, 2, 3), code
    assert "verdict" in answer


def archive(data: bytes) -> None:
    assert Archive.decode(Archive.decode(data).encode()) == Archive.decode(data)


def messages(data: bytes) -> None:
    """The first byte picks the message type; what decodes encodes to the same bytes."""
    kinds = sorted(_kinds(Message), key=lambda kind: kind.TAG)
    if data:
        kind, body = kinds[data[0] % len(kinds)], data[1:]
        assert kind.decode(body).encode() == body


def _kinds(kind: type[Message]) -> set[type[Message]]:
    return {one for sub in kind.__subclasses__() for one in {sub, *_kinds(sub)} if one.TAG}


def directory(data: bytes) -> None:
    """Reading in parts takes and gives the same as reading the whole, whatever was read before."""
    reader = DirectoryReader()
    reader.read(directories()[0])
    try:
        whole: Directory | None = Directory.decode(data)
    except MalformedMessage:
        whole = None
    try:
        read: Directory | None = reader.read(data)
    except MalformedMessage:
        read = None
    assert read == whole


def directories() -> list[bytes]:
    zero, nobody = Digest.zero(), Address.zero()
    offer = Offer(
        v=1, operator=nobody, bundle=zero, candidates=(zero,), models=(zero,), price_sheet=zero, hardware="cpu",
        not_after=NOW,
    )  # fmt: skip
    offers = (offer, replace(offer, hardware="h100"))
    return [Directory(v=1, proxy=nobody, commission_bps=500, at=NOW, offers=offers[:n]).encode() for n in (1, 2, 0)]


def xml(data: bytes) -> None:
    """A canonical form is its own canonical form."""
    once = canonical(parse_xml(data))
    assert canonical(parse_xml(once)) == once


def bundle() -> bytes:
    return EvidenceBundle(
        v=1,
        technology="tdx",
        quote=PLATFORM.quote(ENCLAVE.report(bytes(64))),
        event_log=write_event_log(ENCLAVE.events),
        keyset=b"",
        gpu_evidence=None,
        compose=ENCLAVE.image.compose,
        manifests=(),
        endorsements=ENDORSEMENTS,
        beacon_header=None,
    ).encode()


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
    ocsp.check_chains((GPUS.devices[0].chain,), (data, ANSWERS[1]), NOW)
    if ocsp.check_chains((GPUS.devices[0].chain,), (data,), NOW).done:
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


def request() -> bytes:
    body = {"policy": policy_to_toml(POLICY), "now_ms": int(NOW), "nonce": NONCE.hex()}
    packed = base64.b64encode(zlib.compress(ARCHIVE.encode())).decode()
    return orjson.dumps({**body, "bundle": packed})


Seeds = Callable[[], list[bytes]]
TARGETS: dict[str, tuple[Seeds, Callable[[bytes], None]]] = {
    "tdx_quote": (
        lambda: [PLATFORM.quote(SimulatedEnclave(platform=PLATFORM, quote_version=v).report(NONCE)) for v in (4, 5)],
        refusing(tdx.parse_quote),
    ),
    "sgx_quote": (lambda: [sgx.quote(PLATFORM, sgx.SgxEnclave())], refusing(sgx_quote.parse_quote)),
    "snp_report": (lambda: [CHIP.report(SnpGuest())], refusing(snp.parse_quote)),
    "snp_certificates": (
        lambda: [CHIP.endorsements(NOW), CHIP.vcek.pem(), revocation_list(CHIP.root, at=NOW, days=1)],
        refusing(snp.parse_collateral),
    ),
    "collateral": (lambda: [ENDORSEMENTS], refusing(tdx.parse_collateral)),
    "event_log": (lambda: [write_event_log(ENCLAVE.events)], refusing(events)),
    "gpu_evidence": (lambda: [orjson.dumps(GPUS.evidence(NONCE))], refusing(parse_gpu_evidence)),
    "tokens": (lambda: [GPUS.tokens(NONCE, NOW)], refusing(parse_tokens)),
    "token": (
        lambda: [GPUS.token(GPUS.claims(NONCE, NOW)).encode()],
        refusing(lambda data: parse_token(data.decode("utf-8", "replace"))),
    ),
    "jwks": (lambda: [GPUS.jwks()], refusing(parse_jwks)),
    "rim": (lambda: [XML, RIM_FILE], refusing(golden)),
    "xml": (lambda: [XML], refusing(xml)),
    "ocsp": (lambda: [b"\x30\x03\x0a\x01\x00", *ANSWERS], refusing(revocation)),
    "report": (
        lambda: [
            orjson.dumps(PROVIDER.phala(NONCE)),
            orjson.dumps(PROVIDER.near(NONCE, NOW)),
            CHIP.report(SnpGuest()),
            bundle(),
        ],
        refusing(report),
    ),
    "archive": (lambda: [ARCHIVE.encode()], refusing(archive)),
    "bundle": (lambda: [bundle()], refusing(EvidenceBundle.decode)),
    "policy": (lambda: [policy_to_toml(POLICY).encode()], policy),
    "conformance": (lambda: [request()], conformance),
    "messages": (lambda: [b"\x00" + bundle(), b"\x01" + bundle()], refusing(messages)),
    "key_configs": (
        lambda: [bytes.fromhex("0029010020") + bytes(32) + bytes.fromhex("000400010001")],
        refusing(parse_key_configs),
    ),
    "directory": (directories, directory),
    "envelope": (lambda: [bytes(64), b"\x00\x00\x01\x00" + bytes(40)], refusing(parse_envelope)),
    "statement": (lambda: [STATED.encode()], refusing(statement)),
    "app_compose": (lambda: [b"\x00" + WORKER_IMAGE.compose, b"\x04fact" + WORKER_IMAGE.compose], refusing(computed)),
    "key_chain": (lambda: [b"".join(IDENTITY.chain) + IDENTITY.public], refusing(chain)),
    **{name: (seeds, refusing(run)) for name, (seeds, run) in PLAIN.items()},
}
