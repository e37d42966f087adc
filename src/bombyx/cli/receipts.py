# SPDX-License-Identifier: Apache-2.0
"""`bombyx receipts`: what this machine's client was given for its money, and whether it still checks out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from bombyx.adapters.sqlite import SqliteStore
from bombyx.cli.output import print_json
from bombyx.cli.verify import policy_of, show_checks
from bombyx.config import state_home
from bombyx.errors import ConfigError
from bombyx.roles.client.kept import passed
from bombyx.roles.client.receipts import ReceiptBook, summary

app = typer.Typer(help="Receipts of this machine's client.", no_args_is_help=True)
T = TypeVar("T")
StateOption = Annotated[Path | None, typer.Option(help="folder of the client's books")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
NameArgument = Annotated[str, typer.Argument(help="request id, the beginning of one, or `last`")]
COLUMNS = ("at", "request", "trust class", "outcome", "in", "out", "paid", "audit", "text")


@app.command("list")
def list_receipts(
    state: StateOption = None,
    limit: Annotated[int, typer.Option(help="how many, newest first", min=1)] = 20,
    json: JsonOption = False,
) -> None:
    """Print the newest receipts."""
    rows = [summary(kept) for kept in _with_book(state, lambda book: book.newest(limit))]
    if json:
        print_json(rows)
        return
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) for value in _cells(row)))
    Console(highlight=False).print(table if rows else "no receipts yet")


@app.command()
def show(
    name: NameArgument = "last",
    state: StateOption = None,
    out: Annotated[Path | None, typer.Option(help="write a proof that anyone can verify offline")] = None,
    json: JsonOption = False,
) -> None:
    """Print one receipt; with --out, write it with its evidence into one file for `bombyx verify`."""
    row = summary(_with_book(state, lambda book: book.get(name))[1])
    if out is not None:
        out.write_bytes(_with_book(state, lambda book: book.proof(name, with_usage=False)).encode())
    if json:
        print_json(row)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in row.items():
        table.add_row(key.replace("_", " "), str(value))
    Console(highlight=False).print(table)


@app.command()
def verify(
    name: NameArgument = "last",
    state: StateOption = None,
    policy: Annotated[Path | None, typer.Option(help="appraisal policy (TOML); default: the network's")] = None,
    json: JsonOption = False,
) -> None:
    """Check one receipt again, offline: signature, order, charge, evidence."""
    accepted = policy_of(policy)
    checks = _with_book(state, lambda book: book.verify(name, policy=accepted))
    show_checks(checks, json=json)
    raise typer.Exit(0 if passed(checks) else 1)


def _with_book(state: Path | None, use: Callable[[ReceiptBook], Awaitable[T]]) -> T:
    path = (state or state_home() / "client") / "client.db"
    if not path.exists():
        raise ConfigError(f"no client has kept books in {path.parent}: name another folder with --state")

    async def run() -> T:
        store = SqliteStore.open(path)
        try:
            return await use(ReceiptBook(store))
        finally:
            await store.close()

    return asyncio.run(run())


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    at = datetime.fromtimestamp(row["at"] / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    name = row.get("request_id", "")[:12]
    units = (row.get("input_units", 0), row.get("output_units", 0))
    audit = row["audit"].partition(" (")[0]  # the reason stands in `show`
    return (at, name, row["trust_class"], row["outcome"], *units, row["paid"], audit, row["fault"] or row["text"])
