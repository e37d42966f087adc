# SPDX-License-Identifier: Apache-2.0
"""`bombyx validator`: checks others' answers, accuses with evidence, sits on juries; in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bombyx import compose
from bombyx.cli.roles import ChildOption, ConfigOption, JsonOption, NetworkOption, StateOption, VerboseOption, run
from bombyx.config import NetworkDescriptor, ValidatorConfig, WorkerConfig, load, state_home


def validator(
    network: NetworkOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    host: Annotated[str | None, typer.Option(help="address of its page")] = None,
    port: Annotated[int | None, typer.Option(help="port of its page, where jurors fetch evidence")] = None,
    public_url: Annotated[str | None, typer.Option(help="URL others reach that page at")] = None,
    model_file: Annotated[Path | None, typer.Option(help="GGUF file answers are re-run with")] = None,
    engine: Annotated[str | None, typer.Option(help="URL of a vLLM on loopback that re-runs answers instead")] = None,
    manifest: Annotated[Path | None, typer.Option(help="manifest of the model it serves")] = None,
    tokens: Annotated[Path | None, typer.Option(help="the token table that manifest names")] = None,
    stake: Annotated[int | None, typer.Option(help="token base units to stake; 0: what the set demands")] = None,
    canaries: Annotated[int | None, typer.Option(help="canaries per worker, model and epoch")] = None,
    canaries_new: Annotated[int | None, typer.Option(help="the same of new or suspected workers")] = None,
    most_canaries: Annotated[int | None, typer.Option(help="the same at most, however much it serves")] = None,
    most_tokens: Annotated[int | None, typer.Option(help="tokens of a canary's answer, at most")] = None,
    accuse: Annotated[bool | None, typer.Option("--accuse/--no-accuse", help="open cases, or only judge them")] = None,
    decoy: Annotated[str | None, typer.Option(help="address of our own worker that answers wrongly")] = None,
    figures: Annotated[
        bool | None, typer.Option("--figures/--no-figures", help="show everybody what was found of each worker")
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Run a validator: it asks canaries as clients do, re-runs the answers, and puts its stake behind its verdicts."""
    given = {"host": host, "port": port, "public_url": public_url, "stake": stake, "canaries": canaries}
    given |= {"canaries_new": canaries_new, "most_tokens": most_tokens, "accuse": accuse, "decoy": decoy}
    given |= {"figures": figures, "most_canaries": most_canaries}
    files = {"model_file": model_file, "manifest": manifest, "tokens": tokens}
    given |= {name: str(path) if path else None for name, path in files.items()} | {"engine": engine}
    settings = load(ValidatorConfig, file=config, overrides=given)
    where = state or state_home() / "validator"
    run(
        lambda: compose.start_validator(settings, NetworkDescriptor.load(network), where),
        json=json or child,
        verbose=verbose,
        child=child,
    )


def demo_cheater(
    network: NetworkOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    stake: Annotated[int | None, typer.Option(help="token base units staked")] = None,
    only: Annotated[Path | None, typer.Option(help="a file of request digests: honest to all others")] = None,
    appeal: Annotated[bool | None, typer.Option("--appeal/--no-appeal", help="appeal convictions")] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Run a worker that lies about its model. Works with simulated enclaves alone; for demonstrations."""
    settings = load(WorkerConfig, file=config, overrides={"stake": stake, "appeal": appeal})
    where = state or state_home() / "cheater"
    run(
        lambda: compose.start_cheater(settings, NetworkDescriptor.load(network), where, only=only),
        json=json or child,
        verbose=verbose,
        child=child,
    )
