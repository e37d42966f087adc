# SPDX-License-Identifier: Apache-2.0
"""The vectors kept for other implementations, read as they would read them."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bombyx.cli.app import app
from bombyx.cli.conformance import answered
from bombyx.errors import AttestationError
from bombyx.protocol.attest import AttestationResult, RegisteredWorker, Status, TrustClass, appraise, policy_from_toml
from bombyx.protocol.primitives import Address, Instant
from bombyx.protocol.wire.evidence import BlockHeader

FILES = sorted((Path(__file__).parents[2] / "vectors" / "attest").glob("*.json"))


def known(*, chain_id: int | None, **addresses: str) -> RegisteredWorker:
    return RegisteredWorker(chain_id=chain_id, **{key: Address.parse(value) for key, value in addresses.items()})


def play(vector: dict[str, Any]) -> AttestationResult:
    registered, beacon = vector["registered"], vector["beacon"]
    return appraise(
        zlib.decompress(base64.b64decode(vector["bundle"])),
        policy_from_toml(vector["policy"]),
        now=Instant(vector["now_ms"]),
        registered=registered and known(**registered),
        beacon=beacon and BlockHeader.decode(bytes.fromhex(beacon)),
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_vector_ends_at_its_step(file: Path) -> None:
    """ATT-6: from the file alone, with nothing of the simulator at hand."""
    vector = json.loads(file.read_text())
    if vector["fails_at_step"] is None:
        assert play(vector).trust_class is TrustClass.SIMULATED
        return
    with pytest.raises(AttestationError) as caught:
        play(vector)
    failed = [step.number for step in caught.value.steps if step.status is Status.FAILED]
    assert failed == [vector["fails_at_step"]]


def test_every_step_has_a_vector() -> None:
    """ATT-6: and there is one that passes."""
    steps = {json.loads(file.read_text())["fails_at_step"] for file in FILES}
    assert steps == {None, *range(1, 11)}


@pytest.mark.parametrize("version", [4, 5])
def test_the_simulator_still_makes_the_honest_vectors(scene: Any, vectors: Path, version: int, keep: Any) -> None:
    """ATT-12: a fixed seed gives fixed bytes, over releases."""
    scene.enclave, scene.vector = {"quote_version": version}, vectors / "attest" / f"honest_v{version}.json"
    scene.appraise()
    keep(scene.vector, scene.as_vector(None))


REPORTS = sorted((Path(__file__).parents[2] / "vectors" / "attest" / "reports").glob("*.json"))


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_a_vector_of_another_providers_report(file: Path) -> None:
    """ATT-13: as `bombyx conformance` answers it: verdict, part, step, exit code."""
    vector = json.loads(file.read_text())
    code, answer = answered(file.read_bytes())
    assert answer["verdict"] == vector["verdict"]
    assert code == {"verified": 0, "refused": 1, "not enough to decide": 3}[vector["verdict"]]
    if vector["part"] is not None:
        part = next(one for one in answer["parts"] if one["name"] == vector["part"])
        marked = "failed" if vector["verdict"] == "refused" else "not checked"
        assert next(step["number"] for step in part["steps"] if step["status"] == marked) == vector["fails_at_step"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_bundle_vector_through_the_conformance_command(file: Path) -> None:
    """ATT-6: the same file is a request."""
    vector = json.loads(file.read_text())
    code, answer = answered(file.read_bytes())
    if vector["fails_at_step"] is None:
        assert (code, answer["passed"]) == (0, True)
    else:
        assert (code, answer["step"]) == (1, vector["fails_at_step"])


def test_there_are_enough_vectors() -> None:
    """ATT-13: every signature, date, revocation and binding field has its own."""
    attacks = [file for file in REPORTS if json.loads(file.read_text())["verdict"] == "refused"]
    assert len(attacks) >= 80 and len(FILES) >= 80


@pytest.mark.parametrize(
    "request_",
    [b"", b"[]", b"{}", b'{"policy": "", "now_ms": -1}', b'{"policy": "", "now_ms": 1, "evidence": "!"}', b'{"x": 1}'],
)
def test_what_is_no_conformance_request(request_: bytes) -> None:
    """ATT-13: exit code 2, and a sentence."""
    code, answer = answered(request_)
    assert code == 2 and answer["error"]


def test_the_conformance_command_itself() -> None:
    """ATT-13: standard input to standard output."""
    result = CliRunner().invoke(app, ["conformance"], input=REPORTS[0].read_bytes())
    assert result.exit_code in (0, 1, 3) and json.loads(result.stdout)["verdict"]
