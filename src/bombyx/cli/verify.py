# SPDX-License-Identifier: Apache-2.0
"""`bombyx verify FILE`: check an Evidence bundle, or a receipt with its evidence, offline.

Nothing is fetched: what a file cannot prove by itself is shown as not checked.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bombyx.cli.output import print_json
from bombyx.config import NetworkDescriptor, default_descriptor_path
from bombyx.errors import AttestationError, ConfigError, MalformedMessage
from bombyx.protocol.attest import AppraisalPolicy, Step, appraise, policy_from_toml
from bombyx.protocol.primitives import Instant
from bombyx.protocol.wire.evidence import EvidenceBundle
from bombyx.roles.client.kept import Check, Proof, decode_proof, passed
from bombyx.roles.client.kept import verify as verify_proof

MAX_FILE = Proof.MAX_SIZE


def verify(
    file: Annotated[Path, typer.Argument(help="an evidence bundle, or a proof of `bombyx receipts show --out`")],
    policy: Annotated[Path | None, typer.Option(help="appraisal policy (TOML); default: the network's")] = None,
    at: Annotated[int | None, typer.Option(help="appraise a bundle as of this Unix time; default: now")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check a file offline. Exit code 0 only when nothing failed."""
    data = _read(file)
    accepted = policy_of(policy)
    try:
        proof = decode_proof(data)
    except MalformedMessage:
        _verify_bundle(data, accepted, Instant.from_seconds(time.time() if at is None else at), json=json)
        return
    checks = verify_proof(proof, policy=accepted)
    show_checks(checks, json=json)
    raise typer.Exit(0 if passed(checks) else 1)


def policy_of(path: Path | None) -> AppraisalPolicy | None:
    """The policy named, or that of the network running here, or none."""
    if path is None:
        if not default_descriptor_path().exists():
            return None
        path = NetworkDescriptor.load().policy
    try:
        return policy_from_toml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the policy {path}: {error}") from None


def show_checks(checks: tuple[Check, ...], *, json: bool) -> None:
    """A table for people, a list for programs."""
    if json:
        print_json({"passed": passed(checks), "checks": [check.as_dict() for check in checks]})
        return
    table = Table("result", "check", "detail", box=None, pad_edge=False)
    for check in checks:
        table.add_row({True: "passed", False: "FAILED", None: "not checked"}[check.ok], check.name, check.detail)
    Console(highlight=False).print(table)


def _verify_bundle(data: bytes, policy: AppraisalPolicy | None, at: Instant, *, json: bool) -> None:
    if policy is None:
        raise ConfigError("an evidence bundle is appraised by a policy: name one with --policy")
    EvidenceBundle.decode(data)  # what is neither a proof nor a bundle is told so, not appraised
    try:
        result = appraise(data, policy.offline(), now=at)
    except AttestationError as error:
        _show_steps(error.steps, str(error), json=json)
        raise typer.Exit(1) from None
    _show_steps(result.steps, f"trust class {result.trust_class}", json=json, trust_class=str(result.trust_class))


def _show_steps(steps: tuple[Step, ...], verdict: str, *, json: bool, trust_class: str | None = None) -> None:
    if json:
        rows = [{"number": s.number, "name": s.name, "status": str(s.status), "detail": s.detail} for s in steps]
        print_json({"passed": trust_class is not None, "trust_class": trust_class, "verdict": verdict, "steps": rows})
        return
    table = Table("step", "", "result", "detail", box=None, pad_edge=False)
    for step in steps:
        table.add_row(str(step.number), step.name, str(step.status), step.detail)
    console = Console(highlight=False)
    console.print(table)
    console.print(verdict, markup=False)


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_FILE:
            raise ConfigError(f"{file} is larger than {MAX_FILE} bytes")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
