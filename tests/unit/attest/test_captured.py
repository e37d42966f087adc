# SPDX-License-Identifier: Apache-2.0
"""Evidence captured from real machines: our own steps, under Intel's and NVIDIA's roots, at the time of the capture."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from bombyx.errors import AttestationError, MalformedMessage
from bombyx.protocol.attest import AppraisalPolicy, TrustClass, intel_root
from bombyx.protocol.attest.events import check_events, parse_event_log
from bombyx.protocol.attest.gpu import verify_gpu_evidence
from bombyx.protocol.attest.roots import NVIDIA_ROOT
from bombyx.protocol.attest.tdx import check_attributes, check_chain, check_endorsements, parse_collateral, parse_quote
from bombyx.protocol.primitives import Instant

pytestmark = pytest.mark.captured
POLICY = AppraisalPolicy(roots=(intel_root(),), trust_classes=frozenset({TrustClass.TDX}))


class Capture:
    """One provider's answer, and what is needed to verify it for ever."""

    def __init__(self, folder: Path) -> None:
        report = orjson.loads((folder / "report.json").read_bytes())
        self.report = (report.get("model_attestations") or report.get("all_attestations") or [report])[0]
        self.collateral = (folder / "collateral.json").read_bytes()
        manifest = orjson.loads((folder / "manifest.json").read_bytes())
        self.nonce = bytes.fromhex(manifest["nonce_hex"])
        at = dt.datetime.fromisoformat(re.sub(r"\.\d+", "", manifest["captured_at"]))
        self.now = Instant.from_seconds(at.timestamp())
        self.quote = bytes.fromhex(self.report["intel_quote"])
        self.event_log = _text(self.report["event_log"])
        self.gpu_evidence = _text(self.report["nvidia_payload"])

    def claims(self, quote: bytes | None = None) -> Any:
        chain = check_chain(parse_quote(quote or self.quote), parse_collateral(self.collateral), POLICY, self.now)
        return check_attributes(chain.value, check_endorsements(chain.value).value).value


def _text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else orjson.dumps(value)


@pytest.fixture(scope="module", params=["near_cloud_8xH100", "phala_vllmproxy_1xH100_via_nanogpt"])
def capture(request: pytest.FixtureRequest, captured: Path) -> Capture:
    return Capture(captured / "attestation" / request.param)


def test_a_captured_quote_verifies_under_intels_root(capture: Capture) -> None:
    """ATT-6.2 .. ATT-6.4."""
    claims = capture.claims()
    assert (claims.trust_class, claims.tcb_status, claims.debug) == (TrustClass.TDX, "UpToDate", False)
    assert claims.report_data[32:] == capture.nonce


def test_a_captured_event_log_replays(capture: Capture) -> None:
    """ATT-6.5: and names the compose file that mr_config_id names."""
    claims = capture.claims()
    boot = check_events(parse_event_log(capture.event_log), dict(claims.measurements)).value
    assert boot.compose_hash is not None and claims.measurement("mr_config_id")[1:33] == boot.compose_hash
    info = capture.report["info"]["tcb_info"]
    compose = (orjson.loads(info) if isinstance(info, str) else info)["app_compose"]
    assert hashlib.sha256(compose.encode()).digest() == boot.compose_hash


def test_captured_gpu_evidence_verifies_under_nvidias_root(capture: Capture) -> None:
    """ATT-9: signatures, chains and nonce of every GPU."""
    gpus = verify_gpu_evidence(capture.gpu_evidence, nonce=capture.nonce, root=NVIDIA_ROOT, now=capture.now)
    assert len(gpus) in (1, 8) and all("GH100" in gpu and "driver" in gpu for gpu in gpus)


def test_captured_gpu_evidence_does_not_answer_another_nonce(capture: Capture) -> None:
    """ATT-9."""
    with pytest.raises(AttestationError, match="another nonce"):
        verify_gpu_evidence(capture.gpu_evidence, nonce=bytes(32), root=NVIDIA_ROOT, now=capture.now)


def test_a_captured_gpu_counted_twice_is_refused(capture: Capture) -> None:
    """ATT-9: one GPU is not eight."""
    document = orjson.loads(capture.gpu_evidence)
    document["evidence_list"] = document["evidence_list"][:1] * 2
    with pytest.raises(AttestationError, match="twice"):
        verify_gpu_evidence(orjson.dumps(document), nonce=capture.nonce, root=NVIDIA_ROOT, now=capture.now)


def test_captured_gpu_evidence_with_one_changed_byte_is_refused(capture: Capture) -> None:
    """ATT-9: measurements, versions, signature: every byte is signed or is the signature."""
    document = orjson.loads(capture.gpu_evidence)
    entry = document["evidence_list"][0]
    report = base64.b64decode(entry["evidence"])
    for position in range(0, len(report), len(report) // 40):
        altered = bytearray(report)
        altered[position] ^= 1
        entry["evidence"] = base64.b64encode(bytes(altered)).decode()
        with pytest.raises((AttestationError, MalformedMessage)):
            verify_gpu_evidence(orjson.dumps(document), nonce=capture.nonce, root=NVIDIA_ROOT, now=capture.now)


def test_a_captured_quote_with_one_changed_byte_is_refused(capture: Capture) -> None:
    """ATT-6.2: forty places over the whole quote but its padding."""
    length = len(capture.quote.rstrip(b"\0"))
    for position in range(0, length, length // 40):
        altered = bytearray(capture.quote)
        altered[position] ^= 1
        with pytest.raises((AttestationError, MalformedMessage)):
            capture.claims(bytes(altered))


def test_a_captured_quote_is_refused_when_its_collateral_has_expired(capture: Capture) -> None:
    """ATT-6.3: at today's date the capture proves nothing."""
    capture_later = parse_collateral(capture.collateral)
    late = capture.now.plus(seconds=40 * 86_400)
    chain = check_chain(parse_quote(capture.quote), capture_later, POLICY, late)
    with pytest.raises(AttestationError, match="expired"):
        check_endorsements(chain.value)


def test_a_captured_quote_is_refused_without_intels_root(capture: Capture) -> None:
    """ATT-10."""
    with pytest.raises(AttestationError, match="nothing passes"):
        check_chain(parse_quote(capture.quote), parse_collateral(capture.collateral), AppraisalPolicy(), capture.now)


def test_captured_gpu_certificates_with_one_changed_byte_are_refused(capture: Capture) -> None:
    """ATT-9: forty places over the chain; line breaks of the PEM aside."""
    document = orjson.loads(capture.gpu_evidence)
    document["evidence_list"] = document["evidence_list"][:1]
    entry = document["evidence_list"][0]
    chain = base64.b64decode(entry["certificate"])
    for position in range(5, len(chain), len(chain) // 40):
        if chain[position : position + 1].isspace():
            continue
        altered = bytearray(chain)
        altered[position] ^= 1
        entry["certificate"] = base64.b64encode(bytes(altered)).decode()
        with pytest.raises((AttestationError, MalformedMessage)):
            verify_gpu_evidence(orjson.dumps(document), nonce=capture.nonce, root=NVIDIA_ROOT, now=capture.now)
