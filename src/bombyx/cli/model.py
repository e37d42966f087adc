# SPDX-License-Identifier: Apache-2.0
"""`bombyx model manifest DIR`: what a model is, as digests of its files."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bombyx.adapters.calibrations import read_calibration
from bombyx.adapters.model_files import EngineChoice, model_manifest, token_table_of
from bombyx.cli.output import print_json
from bombyx.errors import ConfigError
from bombyx.protocol.wire.evidence import ModelManifest

app = typer.Typer(help="Models and their manifests.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `manifest` a command of its own, however many there are."""


@app.command()
def manifest(
    folder: Annotated[Path, typer.Argument(help="the model's folder: weights, tokenizer, configuration")],
    name: Annotated[str, typer.Option(help="what applications call it; default: the folder's name")] = "",
    engine: Annotated[str, typer.Option(help="engine and build that runs it")] = "unknown",
    argument: Annotated[list[str] | None, typer.Option(help="argument of the engine; repeat, in order")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="folder of an adapter (LoRA); may repeat")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="what its honest answers look like, of `bombyx calibrate --out`")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the manifest here, for `bombyx worker --manifest`")] = None,
    tokens: Annotated[Path | None, typer.Option(help="write the token table here, for `--tokens`")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Hash a model's files into its manifest; the manifest's digest is the model's identity."""
    choice = EngineChoice(engine=engine, arguments=tuple(argument or ()))
    made = _hashed(folder, name or folder.resolve().name, choice, adapter or [])
    if calibration is not None:
        made = replace(made, calibration=read_calibration(calibration))
    if out is not None:
        _write(out, made.encode())
    if tokens is not None:
        table = token_table_of(folder)
        if table is None:
            raise ConfigError(f"{folder} has no tokenizer whose ids have bytes of their own")
        _write(tokens, table.encode())
    print_json(_row(made)) if json else _show(made)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _hashed(folder: Path, name: str, choice: EngineChoice, adapters: list[Path]) -> ModelManifest:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("hashing", total=None)

        def report(file: str, done: int, total: int) -> None:
            bar.update(task, description=file[-40:], completed=done, total=total)

        return model_manifest(folder, name=name, engine=choice, adapters=adapters, progress=report)


def _row(made: ModelManifest) -> dict[str, object]:
    return {
        "digest": made.digest().hex(),
        "name": made.name,
        "files": [{"name": f.name, "sha256": f.sha256.hex(), "size": f.size} for f in made.weights],
        "tokenizer": made.tokenizer.hex() if made.tokenizer else None,
        "chat_template": made.chat_template.hex() if made.chat_template else None,
        "quantisation": made.quantisation,
        "engine": made.engine,
        "arguments": list(made.arguments),
        "context": made.context,
        "parameters": made.parameters,
        "calibration": None if made.calibration is None else asdict(made.calibration),
    }


def _show(made: ModelManifest) -> None:
    typer.echo(f"{made.digest().hex()}  {made.name}")
    for file in made.weights:
        typer.echo(f"  {file.sha256.hex()}  {file.size:>14,}  {file.name}")
    table = made.tokenizer.hex() if made.tokenizer else "none: clients cannot hold text against output ids"
    typer.echo(f"  token table    {table}")
    typer.echo(f"  chat template  {made.chat_template.hex() if made.chat_template else 'none'}")
    judged = "none: validators leave this model alone"
    if made.calibration is not None:
        judged = f"{made.calibration.family}, from {made.calibration.responses} honest answers"
    typer.echo(f"  calibration    {judged}")
    typer.echo(f"  quantisation   {made.quantisation}, context {made.context}, engine {made.engine}")
