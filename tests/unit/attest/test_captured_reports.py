# SPDX-License-Identifier: Apache-2.0
"""Whole reports captured from real providers: verified offline as of their capture, refused once anything changes."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import random
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from bombyx.cli.app import app
from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import (
    AppraisalPolicy,
    AtHand,
    Examination,
    ReferenceValue,
    Report,
    TrustClass,
    Verdict,
    examine,
    preset,
    recognise,
)
from bombyx.protocol.primitives import Instant

pytestmark = pytest.mark.captured
GATEWAY = "gateway"  # its Endorsements were not captured


class Capture:
    """One provider's answer with what was captured beside it."""

    def __init__(self, folder: Path) -> None:
        manifest = orjson.loads((folder / "manifest.json").read_bytes())
        self.raw = (folder / "report.json").read_bytes()
        self.document: dict[str, Any] = orjson.loads(self.raw)
        at = dt.datetime.fromisoformat(re.sub(r"\.\d+", "", manifest["captured_at"]))
        self.now = Instant.from_seconds(at.timestamp())
        self.at_hand = AtHand(
            endorsements=((folder / "collateral.json").read_bytes(),),
            tokens=((folder / "nras_response.json").read_bytes(),),
            jwks=(folder / "nras_jwks.json").read_bytes(),
            nonce=bytes.fromhex(manifest["nonce_hex"]),
        )
        self.node = (self.document.get("model_attestations") or [self.document])[0]
        self.policy = self.pinned()

    def pinned(self) -> AppraisalPolicy:
        """The production preset, with the images found as Reference Values, as `bombyx policy pin` does it."""
        base = preset("production-tdx-h100")
        found = self.examine(policy=base)
        values = [
            ReferenceValue(
                name=one.name,
                trust_class=TrustClass.TDX,
                compose_hash=one.claims.boot.compose_hash,
                measurements=(("mrtd", one.claims.quote.measurement("mrtd")),),
                gpu=bool(one.claims.gpus),
            )
            for one in found.outcomes
            if one.claims is not None
        ]
        return dataclasses.replace(base, reference_values=tuple(values))

    def examine(
        self, document: dict[str, Any] | None = None, policy: AppraisalPolicy | None = None, **changes: Any
    ) -> Examination:
        report = recognise(self.raw if document is None else orjson.dumps(document))
        assert isinstance(report, Report)
        parts = tuple(part for part in report.parts if part.name != GATEWAY)
        at_hand = dataclasses.replace(self.at_hand, **changes)
        report = dataclasses.replace(report, parts=parts)
        return examine(report, policy or self.policy, now=self.now, at_hand=at_hand)

    def refused(self, **changes: Any) -> Examination:
        found = self.examine(**changes)
        assert found.verdict is Verdict.REFUSED
        return found


@pytest.fixture(params=["near_cloud_8xH100", "phala_vllmproxy_1xH100_via_nanogpt"])
def capture(request: pytest.FixtureRequest, captured: Path) -> Capture:
    return Capture(captured / "attestation" / request.param)


def test_a_captured_report_verifies_fully_offline(capture: Capture) -> None:
    """ATT-13: quote, collateral, event log, image, keys, nonce, every GPU, NVIDIA's tokens: nothing is missing."""
    found = capture.examine()
    assert found.verdict is Verdict.VERIFIED, [(one.name, one.why) for one in found.outcomes]
    serving = next(one for one in found.outcomes if one.claims is not None and one.claims.gpus)
    assert serving.trust_class is TrustClass.TDX_GPU and serving.claims is not None
    assert len(serving.claims.gpus) == len(orjson.loads(capture.node["nvidia_payload"])["evidence_list"])
    assert all(step.status in ("passed", "not applicable") for step in serving.steps)
    assert f"token for {len(serving.claims.gpus)} GPUs verifies" in serving.steps[8].detail


def test_a_captured_gateway_stays_undecided_without_its_endorsements(captured: Path) -> None:
    """ATT-13: another kind of platform, whose collateral was not captured: not refused, not verified."""
    capture = Capture(captured / "attestation" / "near_cloud_8xH100")
    report = recognise(capture.raw)
    assert isinstance(report, Report)
    found = examine(report, capture.policy, now=capture.now, at_hand=capture.at_hand)
    verdicts = {one.name: one.verdict for one in found.outcomes}
    assert verdicts == {
        "gateway": Verdict.UNDECIDED,
        "model": Verdict.VERIFIED,
        "compose manager": Verdict.VERIFIED,
    }
    assert found.verdict is Verdict.UNDECIDED


def test_a_captured_report_is_nothing_to_another_nonce(capture: Capture) -> None:
    """ATT-13.8: what was captured then answers nobody now."""
    assert "replay" in capture.refused(nonce=bytes(32)).outcomes[0].why


def test_a_captured_report_is_refused_today(capture: Capture) -> None:
    """ATT-13.3: its Endorsements have run out; only as of its own time does it verify."""
    capture.now = capture.now.plus(seconds=200 * 86_400)
    assert "expired" in capture.refused().outcomes[0].why


def test_captured_tokens_under_no_named_authority_do_not_count(capture: Capture) -> None:
    """ATT-13.9."""
    policy = dataclasses.replace(capture.policy, token_roots=())
    found = capture.examine(policy=policy)
    assert any("names no authority" in step.detail for one in found.outcomes for step in one.steps)


def test_captured_tokens_of_another_capture_are_refused(captured: Path) -> None:
    """ATT-13.9: NVIDIA's word for other GPUs and another nonce."""
    near = Capture(captured / "attestation" / "near_cloud_8xH100")
    phala = Capture(captured / "attestation" / "phala_vllmproxy_1xH100_via_nanogpt")
    found = phala.refused(tokens=near.at_hand.tokens, jwks=near.at_hand.jwks)
    assert "another nonce" in found.outcomes[0].why


@pytest.mark.parametrize("seed", range(24))
def test_a_captured_report_with_one_changed_byte_is_refused(capture: Capture, seed: int) -> None:
    """ATT-13: in the quote, the event log, the compose file, a GPU's report or its certificates; seeded places."""
    chance = random.Random(seed)
    name = ("quote", "log", "compose", "gpu", "certificate", "key")[seed % 6]
    document = orjson.loads(capture.raw)
    node = (document.get("model_attestations") or [document])[0]
    for copy in document.get("all_attestations") or []:
        copy.clear()
    document.pop("all_attestations", None)
    _alter(node, name, chance)
    try:
        found = capture.examine(document)
    except MalformedMessage:
        return
    assert found.verdict is Verdict.REFUSED, (name, [(one.name, one.why) for one in found.outcomes])


def _alter(node: dict[str, Any], name: str, chance: random.Random) -> None:
    if name == "quote":
        quote = bytes.fromhex(node["intel_quote"])
        node["intel_quote"] = _flip(quote, chance, len(quote.rstrip(b"\0"))).hex()
        node.pop("quote", None)
    elif name == "log":
        log = node["event_log"]
        events = orjson.loads(log) if isinstance(log, str) else log
        event = chance.choice([one for one in events if one["digest"]])
        event["digest"] = _flip(bytes.fromhex(event["digest"]), chance).hex()
        node["event_log"] = orjson.dumps(events).decode()
    elif name == "compose":
        text = bytearray(node["info"]["tcb_info"]["app_compose"].encode())
        text[chance.randrange(len(text))] ^= 1
        node["info"]["tcb_info"]["app_compose"] = text.decode("utf-8", "replace")
    elif name == "key":
        address = node["signing_address"]
        last = "0" if address[-1] != "0" else "1"
        node["signing_address"] = address[:-1] + last
    else:
        payload = orjson.loads(node["nvidia_payload"])
        entry = chance.choice(payload["evidence_list"])
        field = "evidence" if name == "gpu" else "certificate"
        raw = base64.b64decode(entry[field])
        if field == "certificate":  # a byte that says something: not a line break, not the armour
            start = raw.index(b"-----BEGIN CERTIFICATE-----") + 100
            raw = raw[:start] + _flip(raw[start : start + 60], chance) + raw[start + 60 :]
        else:
            raw = _flip(raw, chance)
        entry[field] = base64.b64encode(raw).decode()
        node["nvidia_payload"] = orjson.dumps(payload).decode()


def _flip(raw: bytes, chance: random.Random, length: int | None = None) -> bytes:
    altered = bytearray(raw)
    altered[chance.randrange(length or len(raw))] ^= 1 << chance.randrange(8)
    return bytes(altered)


@pytest.mark.parametrize("seed", range(20))
def test_captured_tokens_with_one_changed_byte_are_refused(capture: Capture, seed: int) -> None:
    """ATT-13.9: overall token and device tokens: header, claims, signature; the last character's spare bits aside."""
    chance = random.Random(seed)
    document = orjson.loads(capture.at_hand.tokens[0])
    names = list(document[1])
    name = chance.choice(names)
    token = document[0][1] if seed % 2 else document[1][name]
    at = chance.choice([i for i, c in enumerate(token[:-1]) if c != "."])
    other = "A" if token[at] != "A" else "B"
    altered = token[:at] + other + token[at + 1 :]
    if seed % 2:
        document[0][1] = altered
    else:
        document[1][name] = altered
    capture.refused(tokens=(orjson.dumps(document),))


def test_the_documents_steps_work_on_a_captured_report(captured: Path, tmp_path: Path) -> None:
    """ATT-13: docs/verify-a-provider.md, command by command."""
    folder = captured / "attestation" / "phala_vllmproxy_1xH100_via_nanogpt"
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    kept, pinned, at = str(tmp_path / "report.json"), tmp_path / "provider.toml", ("--at", "2026-06-10T01:49:05Z")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.stdout

    beside = [("--endorsements", "collateral"), ("--tokens", "nras_response"), ("--jwks", "nras_jwks")]
    extra = [one for name, file in beside for one in (name, str(folder / f"{file}.json"))]
    nonce = ("--nonce", manifest["nonce_hex"])
    assert run("evidence", "pack", str(folder / "report.json"), *at, *nonce, *extra, "--out", kept)[0] == 0
    assert "Phala / dstack attestation report" in run("evidence", "show", kept)[1]
    assert run("verify", kept, *at)[0] == 3
    code, toml = run("policy", "pin", kept, *at)
    pinned.write_text(toml)
    assert code == 0 and run("policy", "explain", str(pinned))[0] == 0
    code, table = run("verify", kept, "--policy", str(pinned), *at)
    assert code == 0 and table.count("  passed  ") == 10 and "trust class tdx+gpu" in table
    assert run("verify", kept, "--policy", str(pinned))[0] == 1  # today: the Endorsements have run out
