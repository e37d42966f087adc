# SPDX-License-Identifier: Apache-2.0
"""`bombyx verify` of an agent's statement: what it says, then every line that was checked."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from bombyx.cli.output import print_json
from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.attest.statement import read_statement
from bombyx.protocol.primitives import Instant
from bombyx.roles.client.kept import Check
from bombyx.roles.client.statements import accepted, verify_statement

_SHOWN = {True: "passed", False: "FAILED", None: "not checked"}


def is_statement(data: bytes) -> bool:
    """By its form alone."""
    try:
        read_statement(data)
    except MalformedMessage:
        return False
    return True


def verify_statement_file(
    data: bytes,
    policy: AppraisalPolicy | None,
    *,
    now: Instant,
    endorsements: tuple[bytes, ...],
    key_roots: tuple[bytes, ...],
    json: bool,
) -> int:
    """Show it; the exit code: 0 accepted, 1 refused, 3 not enough to decide."""
    if policy is None:
        raise ConfigError("a statement is appraised by a policy: name one with --policy")
    checks = verify_statement(data, policy, now=now, endorsements=endorsements, key_roots=key_roots)
    good = accepted(checks)
    if json:
        _, body = read_statement(data)
        rows = [check.as_dict() for check in checks]
        print_json({"passed": good, "said": body.said, "asked": body.asked, "at": int(body.at), "checks": rows})
    else:
        _show(data, checks, good=good)
    return 0 if good else 1 if any(check.ok is False for check in checks) else 3


def _show(data: bytes, checks: tuple[Check, ...], *, good: bool) -> None:
    _, body = read_statement(data)
    table = Table("result", "check", "detail", box=None, pad_edge=False)
    for check in checks:
        table.add_row(_SHOWN[check.ok], check.name, check.detail)
    console = Console(highlight=False)
    console.print(table)
    typer.echo(f"said:  {body.said!r}")
    typer.echo(f"asked: {body.asked!r} (the agent's word)")
    typer.echo("accepted" if good else "NOT accepted")
