# SPDX-License-Identifier: Apache-2.0
"""`bombyx enclave ...`: dstack's guest agent, simulated, for code that is to run in an enclave later.

Everything printed says `simulated`: it protects from nobody who owns this machine.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.adapters.dstack_server import DEFAULT_PORT
from bombyx.adapters.processes import announce, until_stopped
from bombyx.compose import agent
from bombyx.config import state_home

app = typer.Typer(help="A simulated dstack enclave for code of your own.", no_args_is_help=True)
ComposeOption = Annotated[Path | None, typer.Option(help="app-compose file that is measured")]
PlatformOption = Annotated[Path | None, typer.Option(help="simulated platform; default: that of the network here")]


@app.command()
def simulate(
    folder: Annotated[Path | None, typer.Option(help="where the sockets go")] = None,
    port: Annotated[int, typer.Option(help="loopback HTTP port; 0 takes a free one, -1 none")] = DEFAULT_PORT,
    compose: ComposeOption = None,
    program: Annotated[list[Path] | None, typer.Option(help="file whose bytes are measured; repeatable")] = None,
    platform: PlatformOption = None,
    json: Annotated[bool, typer.Option("--json", help="announce readiness as one JSON line")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="log each call's name")] = False,
    child: Annotated[bool, typer.Option("--child", hidden=True, help="stop when standard input closes")] = False,
) -> None:
    """Serve dstack.sock, tappd.sock and an HTTP port, until stopped."""
    logging.basicConfig(level=logging.INFO if verbose or child else logging.WARNING)
    where = folder or state_home() / "enclave"
    image = agent.image_of(compose, tuple(program or ()))
    asyncio.run(_simulate(image, where, port, platform, json=json or child, child=child))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    program: Annotated[Path, typer.Argument(help="Python program: its bytes are what is measured")],
    platform: PlatformOption = None,
) -> None:
    """Run a program inside a simulated enclave of its own; what follows its name is passed to it."""
    image = agent.image_of(None, (program,))
    raise typer.Exit(asyncio.run(agent.run_inside(image, program, context.args, platform)))


@app.command()
def policy(
    program: Annotated[list[Path], typer.Argument(help="program as it was measured; several where several were")],
    compose: ComposeOption = None,
    platform: PlatformOption = None,
) -> None:
    """Print an appraisal policy that accepts this program, computed from its bytes, and the worker's image."""
    image = agent.image_of(compose, tuple(program))
    typer.echo(agent.policy_for(image, platform), nl=False)


async def _simulate(
    image: agent.Image, folder: Path, port: int, platform: Path | None, *, json: bool, child: bool
) -> None:
    async with agent.serving(image, folder, port=None if port < 0 else port, platform=platform) as facts:
        announce(**facts) if json else _show(facts)
        await until_stopped(watch_parent=child)


def _show(facts: dict[str, Any]) -> None:
    typer.echo("simulated enclave ready: not hardware, it protects from nobody who owns this machine")
    for name, value in facts.items():
        typer.echo(f"  {name:<14}{value}")
    typer.echo(f"  clients find it with DSTACK_SIMULATOR_ENDPOINT={facts['dstack']}")
