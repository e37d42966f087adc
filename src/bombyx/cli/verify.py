# SPDX-License-Identifier: Apache-2.0
"""`bombyx verify FILE`: check evidence of any supported provider, or a receipt with its evidence, offline.

Nothing is fetched: what a file cannot prove by itself is shown as not checked.
Exit codes: 0 verified, 1 refused, 2 wrong use or settings, 3 not enough to decide; with --strict also 3 when any line
says "not checked".
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bombyx.cli.examined import Options, has_gaps, hexed, verify_report
from bombyx.cli.files import named_policy, read_bytes
from bombyx.cli.moments import moment
from bombyx.cli.output import print_json
from bombyx.cli.statement import is_statement, verify_statement_file
from bombyx.config import NetworkDescriptor, default_descriptor_path
from bombyx.errors import AttestationError, ConfigError, MalformedMessage
from bombyx.protocol.attest import AppraisalPolicy, Status, Step, appraise, recognise
from bombyx.protocol.primitives import Instant
from bombyx.protocol.wire.evidence import EvidenceBundle
from bombyx.roles.client.kept import NO_CHAIN, Check, decode_proof, passed
from bombyx.roles.client.kept import verify as verify_proof


def verify(
    file: Annotated[
        Path, typer.Argument(help="evidence of any known kind, or a proof of `bombyx receipts show --out`")
    ],
    policy: Annotated[
        str | None,
        typer.Option(help="appraisal policy: a TOML file or a preset; default: the network's, or production"),
    ] = None,
    at: Annotated[str | None, typer.Option(help="as of this time: Unix seconds or ISO 8601; default: now")] = None,
    nonce: Annotated[str | None, typer.Option(help="the nonce that was asked, in hex")] = None,
    report_data: Annotated[str | None, typer.Option(help="what a bare quote's report data must be, in hex")] = None,
    endorsements: Annotated[
        list[Path] | None, typer.Option(help="Intel collateral or AMD certificates; may repeat")
    ] = None,
    tokens: Annotated[list[Path] | None, typer.Option(help="NVIDIA's attestation tokens; may repeat")] = None,
    jwks: Annotated[Path | None, typer.Option(help="the key set those tokens are signed with")] = None,
    rim: Annotated[list[Path] | None, typer.Option(help="NVIDIA's golden measurements; may repeat")] = None,
    ocsp: Annotated[list[Path] | None, typer.Option(help="OCSP responses for GPU certificates; may repeat")] = None,
    only: Annotated[str | None, typer.Option(help="judge only the part of this name, e.g. model")] = None,
    key_root: Annotated[
        list[str] | None,
        typer.Option(
            help="a key provider's public key in hex, trusted beside the one measured (statements); may repeat"
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 3 when anything is not checked")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check a file offline. Exit code 0 only when everything the policy asks for is proven."""
    data, now = read_bytes(file), moment(at)
    files = (endorsements or [], tokens or [], jwks, rim or [], ocsp or [])
    given = Options(nonce, report_data, *files, only, strict, json)
    if _is_proof(data):
        _verify_proof(data, policy_of(policy), given)
    elif is_statement(data):
        endorsed = tuple(read_bytes(path) for path in endorsements or [])
        roots = tuple(hexed(one, "--key-root", 33) for one in key_root or [])
        sources = {"endorsements": endorsed, "key_roots": roots}
        raise typer.Exit(verify_statement_file(data, policy_of(policy), now=now, json=json, **sources))
    elif _is_bundle(data):
        _verify_bundle(data, policy_of(policy), now, given)
    else:
        raise typer.Exit(verify_report(data, named_policy(policy or "production-tdx-h100"), now, given))


def _is_proof(data: bytes) -> bool:
    try:
        decode_proof(data)
    except MalformedMessage:
        return False
    return True


def _is_bundle(data: bytes) -> bool:
    """What is recognised as nothing at all is refused here, with what would be."""
    return isinstance(recognise(data), EvidenceBundle)


def _verify_proof(data: bytes, policy: AppraisalPolicy | None, given: Options) -> None:
    checks = verify_proof(decode_proof(data), policy=policy)
    show_checks(checks, json=given.json)
    gaps = given.strict and any(check.ok is None for check in checks)
    raise typer.Exit(1 if not passed(checks) else 3 if gaps else 0)


def policy_of(named: str | Path | None) -> AppraisalPolicy | None:
    """The policy named, or that of the network running here, or none."""
    if named is None:
        if not default_descriptor_path().exists():
            return None
        named = NetworkDescriptor.load().policy
    return named_policy(named)


def show_checks(checks: tuple[Check, ...], *, json: bool) -> None:
    """A table for people, a list for programs."""
    if json:
        print_json({"passed": passed(checks), "checks": [check.as_dict() for check in checks]})
        return
    table = Table("result", "check", "detail", box=None, pad_edge=False)
    for check in checks:
        table.add_row({True: "passed", False: "FAILED", None: "not checked"}[check.ok], check.name, check.detail)
    Console(highlight=False).print(table)


def _verify_bundle(data: bytes, policy: AppraisalPolicy | None, at: Instant, given: Options) -> None:
    if policy is None:
        raise ConfigError("an evidence bundle is appraised by a policy: name one with --policy")
    endorsed = read_bytes(given.endorsements[0]) if given.endorsements else None
    try:
        result = appraise(data, policy.offline(), now=at, endorsements=endorsed)
    except AttestationError as error:
        _show_steps(error.steps, str(error), json=given.json)
        raise typer.Exit(1) from None
    steps, trust_class = result.steps, str(result.trust_class)
    if policy.require_chain:
        relaxed = Step(number=11, name="registry and beacon", status=Status.NOT_CHECKED, detail=NO_CHAIN)
        steps = (*steps, relaxed)
    _show_steps(steps, f"trust class {trust_class}", json=given.json, trust_class=trust_class)
    raise typer.Exit(3 if given.strict and has_gaps(steps) else 0)


def _show_steps(steps: tuple[Step, ...], verdict: str, *, json: bool, trust_class: str | None = None) -> None:
    if json:
        rows = [dataclasses.asdict(step) for step in steps]
        print_json({"passed": trust_class is not None, "trust_class": trust_class, "verdict": verdict, "steps": rows})
        return
    table = Table("step", "", "result", "detail", box=None, pad_edge=False)
    for step in steps:
        table.add_row(str(step.number), step.name, str(step.status), step.detail)
    console = Console(highlight=False)
    console.print(table)
    console.print(verdict, markup=False)
