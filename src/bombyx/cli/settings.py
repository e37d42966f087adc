# SPDX-License-Identifier: Apache-2.0
"""`bombyx config show`: every setting of a role, its value, and where the value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bombyx.cli.output import print_json
from bombyx.config import ROLES, explain, help_of, shown

app = typer.Typer(help="Settings of the roles.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `show` a command of its own, however many there are."""


@app.command()
def show(
    role: Annotated[str, typer.Argument(help="client, proxy or worker; all when left out")] = "",
    config: Annotated[Path | None, typer.Option(help="TOML file with one table a role")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Print the settings in force."""
    if role and role not in ROLES:
        raise typer.BadParameter(f"{role!r} is not one of {', '.join(ROLES)}")
    wanted = {role: ROLES[role]} if role else ROLES
    found = {name: explain(kind, file=config) for name, kind in wanted.items()}  # type: ignore[type-var]
    if json:
        print_json({n: {"values": shown(v), "origin": o} for n, (v, o) in found.items()})
        return
    for name, (values, origin) in found.items():
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        for column in ("setting", "value", "from", "meaning"):
            table.add_column(column)
        for key, value in shown(values).items():
            table.add_row(key, repr(value), origin[key], help_of(wanted[name], key))
        Console().print(table, "")
