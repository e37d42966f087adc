# SPDX-License-Identifier: Apache-2.0
"""`bombyx keys`: the accounts on this machine. Names and addresses are shown; the keys themselves never are."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bombyx.cli.output import print_json
from bombyx.compose import key_store

app = typer.Typer(help="Keys of accounts on this machine.", no_args_is_help=True)


@app.command("list")
def list_keys(json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Print the accounts that have a key here."""
    accounts = {name: str(address) for name, address in key_store().accounts().items()}
    if json:
        print_json(accounts)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name")
    table.add_column("address")
    for name, address in accounts.items():
        table.add_row(name, address)
    Console().print(table if accounts else "no keys yet: `bombyx keys new NAME`")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="what to call the account, e.g. worker")],
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Make a key. An existing one is never overwritten."""
    address = str(key_store().create(name).address)
    if json:
        print_json({"name": name, "address": address})
    else:
        typer.echo(f"{name}  {address}")
