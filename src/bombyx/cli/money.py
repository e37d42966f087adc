# SPDX-License-Identifier: Apache-2.0
"""`bombyx money`, an operator's statement and tickets for others to claim with; `bombyx watchtower`, the claiming."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.output import print_json, print_rows
from bombyx.compose import money as books
from bombyx.config import NetworkDescriptor, state_home
from bombyx.errors import BombyxError

app = typer.Typer(help="What an operator earns, owes and risks.", no_args_is_help=True)
log = logging.getLogger("bombyx.watchtower")
NetworkOption = Annotated[Path | None, typer.Option(help="network descriptor; default: the network running here")]
StateOption = Annotated[Path | None, typer.Option(help="folder of the role's keys and books")]
StoreOption = Annotated[str, typer.Option(help="PostgreSQL URL, for replicas that share their books")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def show(
    role: Annotated[str, typer.Argument(help="proxy or worker")] = books.PROXY,
    state: StateOption = None,
    network: NetworkOption = None,
    store: StoreOption = "",
    json: JsonOption = False,
) -> None:
    """Print income, debt, exposure and commission, by the books and the chain. Works beside the running role."""
    if role not in (books.PROXY, books.WORKER):
        raise typer.BadParameter("proxy or worker")
    found = asyncio.run(books.money(role, NetworkDescriptor.load(network), state or state_home() / role, store))
    if json:
        print_json(found)
    else:
        print_rows(_flat(found))


@app.command()
def tickets(
    out: Annotated[Path, typer.Option(help="file to write; replaced whole")],
    state: StateOption = None,
    network: NetworkOption = None,
    store: StoreOption = "",
) -> None:
    """Write what the proxy could claim now, signed, for `bombyx watchtower` elsewhere. Repeat it as charges grow."""
    where = state or state_home() / books.PROXY
    text, count = asyncio.run(books.tickets(NetworkDescriptor.load(network), where, store))
    whole = out.with_name(out.name + ".new")
    whole.write_text(text)
    whole.replace(out)
    typer.echo(f"{out}: {count} tickets")


def watchtower(
    files: Annotated[list[Path], typer.Argument(help="files of tickets; read again at every round")],
    network: NetworkOption = None,
    state: StateOption = None,
    every: Annotated[float, typer.Option(help="seconds between rounds", min=1)] = 60.0,
    threshold: Annotated[int | None, typer.Option(help="claim so much even if nobody withdraws", min=1)] = None,
    once: Annotated[bool, typer.Option("--once", help="one round, then end")] = False,
    json: JsonOption = False,
) -> None:
    """Claim for payees that are away, before a withdrawal takes their money. Needs none of their keys; pays gas."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    descriptor, where = NetworkDescriptor.load(network), state or state_home() / "watchtower"

    async def run() -> list[dict[str, Any]]:
        async with books.watchtower(descriptor, where, files, threshold=threshold) as (tower, refused):
            if not json:
                typer.echo(f"watching {len(tower.watched)} channels, {refused} tickets refused")
            while True:
                try:
                    done = [
                        {"channel": str(one.channel), "amount": one.amount, "transaction": str(one.transaction)}
                        for one in await tower.look()
                    ]
                    if once:
                        return done
                    await asyncio.sleep(every)
                    await books.take_in(tower, files)
                except BombyxError as error:
                    if once:
                        raise
                    log.warning("%s", error)
                    await asyncio.sleep(every)

    done = asyncio.run(run())
    if json:
        print_json(done)
    else:
        print_rows([("channel", "amount", "transaction"), *(tuple(str(v) for v in one.values()) for one in done)])


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, inner in value.items():
        title = (prefix + name).replace("_", " ")
        rows += _flat(inner, f"{title}: ") if isinstance(inner, dict) else [(title, str(inner))]
    return rows
