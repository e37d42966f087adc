# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: each parser of evidence with its seeds and what must hold; all of `certified.py` and `travelling.py`.

`parsers.py` runs them. Always: what a target accepts is held against what the honest one said, wherever that is known.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import replace

import orjson
from certified import CERTIFIED
from scene import ARCHIVE, AT_HAND, CHIP, ENCLAVE, ENDORSEMENTS, GPUS, NONCE, NOW, PLATFORM, POLICY, PROVIDER, XML
from travelling import PLAIN

from bombyx.adapters.simulator import SimulatedEnclave, sgx
from bombyx.adapters.simulator.p384 import revocation_list
from bombyx.adapters.simulator.snp import SnpGuest
from bombyx.cli.conformance import answered
from bombyx.errors import AttestationError, ConfigError, MalformedMessage
from bombyx.protocol.attest import (
    Archive,
    Report,
    Verdict,
    examine,
    policy_from_toml,
    policy_to_toml,
    recognise,
    snp,
    tdx,
)
from bombyx.protocol.attest import sgx as sgx_quote
from bombyx.protocol.attest.events import parse_event_log, write_event_log
from bombyx.protocol.attest.gpu import parse_gpu_evidence
from bombyx.protocol.attest.nras import parse_jwks, parse_token, parse_tokens
from bombyx.protocol.attest.xml import canonical, parse_xml
from bombyx.protocol.audit.case import Accusation, PlanCommitment
from bombyx.protocol.audit.jury import check_exhibit, exhibits, open_case
from bombyx.protocol.audit.plan import Target, make_plan, plan_root
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.seal.envelope import parse_envelope
from bombyx.protocol.seal.ohttp import parse_key_configs
from bombyx.protocol.wire.cases import CaseEvidence, EpochEvidence
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.evidence import EvidenceBundle
from bombyx.protocol.wire.market import Directory, DirectoryReader, Offer


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


def request() -> bytes:
    body = {"policy": policy_to_toml(POLICY), "now_ms": int(NOW), "nonce": NONCE.hex()}
    packed = base64.b64encode(zlib.compress(ARCHIVE.encode())).decode()
    return orjson.dumps({**body, "bundle": packed})


def case(data: bytes) -> None:
    """What an accuser serves, as a juror takes it apart before it re-runs anything."""
    whole = CaseEvidence.decode(data)
    accused = Accusation(
        accused=whole.accused, model=whole.model, evidence=sha256(data), uri="", from_epoch=64, to_epoch=65,
        plant=Digest.zero(),
    )  # fmt: skip
    opened = open_case(data, accused, whole.accuser)
    plans = {
        one.epoch: PlanCommitment(epoch=one.epoch, root=plan_root(one.salt, one.canaries), count=len(one.canaries))
        for one in opened.epochs
    }
    for exhibit in exhibits(opened, accused, plans):
        check_exhibit(exhibit, accused=whole.accused, domain=Digest.zero(), signers=())


def evidence() -> bytes:
    """A plan of three canaries, and nothing answered."""
    worker, manifest = Address(b"w" * 20), bundle()[:64]
    target = Target(operator=worker, model=sha256(manifest), name="tiny", canaries=3, most=64)
    plan = make_plan(64, [target], bytes(32), k=1, single_bps=0)
    epoch = EpochEvidence(epoch=64, salt=plan.salt, canaries=plan.canaries, packages=(bytes(40),))
    return CaseEvidence(
        v=1, accuser=Address(b"a" * 20), accused=worker, model=sha256(manifest), manifest=manifest, epochs=(epoch,),
        bundles=(),
    ).encode()  # fmt: skip


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
    "xml": (lambda: [XML], refusing(xml)),
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
    "case": (lambda: [evidence()], refusing(case)),
    "directory": (directories, directory),
    "envelope": (lambda: [bytes(64), b"\x00\x00\x01\x00" + bytes(40)], refusing(parse_envelope)),
    **{name: (seeds, refusing(run)) for name, (seeds, run) in {**CERTIFIED, **PLAIN}.items()},
}
