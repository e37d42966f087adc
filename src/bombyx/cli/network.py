# SPDX-License-Identifier: Apache-2.0
"""`bombyx network`: is anybody hiding, inventing or favouring workers?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.output import print_json, print_rows
from bombyx.compose.network_check import check as look
from bombyx.config import ClientConfig, NetworkDescriptor

app = typer.Typer(help="A look at the network from outside.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `check` a command of its own, however many there are."""


@app.command()
def check(
    network: Annotated[Path | None, typer.Option(help="network descriptor; default: the network running here")] = None,
    endpoint: Annotated[
        str, typer.Option(help="endpoint of a client that has watched for a while; empty: ask none")
    ] = f"http://127.0.0.1:{ClientConfig().port}/v1",
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compare proxies' directories with the registry and each other. Exit code 1: an alarm, or no proxy answers."""
    found = asyncio.run(look(NetworkDescriptor.load(network), endpoint or None))
    answered = [row for row in found["proxies"] if row["error"] is None]
    if json:
        print_json(found)
    else:
        _show(found)
    raise typer.Exit(1 if found["alarms"] or not answered else 0)


def _show(found: dict[str, Any]) -> None:
    registered = ", ".join(f"{count} {role}s" for role, count in found["registered"].items())
    typer.echo(f"registered: {registered}")
    rows = [("proxy", "url", "listed", "invented", "expired", "only elsewhere", "error")]
    for row in found["proxies"]:
        counts = (len(row.get(name, ())) for name in ("invented", "expired", "listed_elsewhere_only"))
        listed = str(row.get("listed", ""))
        rows.append((row["proxy"], row["url"], listed, *(str(count) for count in counts), row["error"] or ""))
    print_rows(rows)
    for alarm in found["alarms"]:
        typer.echo(f"ALARM  {alarm.get('proxy')} {alarm.get('kind')}: it {alarm.get('text')}")
    who = found["noticed_by"]
    typer.echo(f"a client watches over time at {who}" if who else "no client here was asked what it noticed over time")
