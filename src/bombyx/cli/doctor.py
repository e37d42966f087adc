# SPDX-License-Identifier: Apache-2.0
"""`bombyx doctor`: what is missing on this machine, and how to mend it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bombyx.cli.output import print_json
from bombyx.compose import examine_machine


def doctor(json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Say what works here, what is missing, and how to mend it. Exit code 1 when something needed is missing."""
    findings = examine_machine()
    missing = [f for f in findings if f.needed and not f.ok]
    if json:
        print_json({"ok": not missing, "findings": [f.as_dict() for f in findings]})
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "mend"):
            table.add_column(column)
        for f in findings:
            mark = "ok" if f.ok else ("MISSING" if f.needed else "absent")
            table.add_row(mark, f.what, f.found, "" if f.ok else f.mend)
        Console().print(table)
    raise typer.Exit(1 if missing else 0)
