# SPDX-License-Identifier: Apache-2.0
"""`bombyx deploy`: put the contracts on a chain and write where they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from bombyx.cli.output import print_json
from bombyx.compose.deployment import deploy_contracts
from bombyx.config import state_home


def deploy(
    rpc: Annotated[str, typer.Option(help="JSON-RPC URL of a node of the chain; several: separated by commas")],
    key: Annotated[str, typer.Option(help="name of the key that pays (see `bombyx keys list`)")] = "deployer",
    addresses: Annotated[Path | None, typer.Option(help="address book to add the chain to (JSON, by chain id)")] = None,
    token: Annotated[str | None, typer.Option(help="token to be paid in; without it a worthless one is made")] = None,
    settlement: Annotated[str | None, typer.Option(help="an x402 batch settlement contract that is there")] = None,
    stake_manager: Annotated[str | None, typer.Option(help="EigenLayer's AllocationManager, where it is")] = None,
    stake_strategy: Annotated[str | None, typer.Option(help="with it: the strategy whose stake counts")] = None,
    committee: Annotated[str | None, typer.Option(help="may veto a jury's slash, and grants insurance; none")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Deploy settlement, registry, Reference Values, stake and validation to a chain, and write the address book."""
    where = addresses or state_home() / "addresses.json"
    if not yes:
        typer.confirm(f"Deploy with key {key!r} over {rpc}? It costs gas", abort=True)
    book = asyncio.run(
        deploy_contracts(
            rpc.split(","),
            key=key,
            file=where,
            token=token,
            settlement=settlement,
            stake_manager=stake_manager,
            stake_strategy=stake_strategy,
            committee=committee,
        )
    )
    if json:
        print_json(book)
        return
    for name, value in book.items():
        typer.echo(f"{name:20} {value}")
    typer.echo(f"written to {where}")
