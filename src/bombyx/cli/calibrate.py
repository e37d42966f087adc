# SPDX-License-Identifier: Apache-2.0
"""`bombyx calibrate`: what honest answers of a model look like on this machine, as a file a model manifest takes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bombyx.cli.output import print_json, print_rows
from bombyx.compose.calibrate import Measured, calibrate_model
from bombyx.compose.calibrate_engines import calibrate_engines
from bombyx.protocol.audit.calibration import FAMILY, to_json

QUICK_ANSWERS, QUICK_TOKENS = 12, 32


def calibrate(
    model: Annotated[
        str, typer.Option(help="the GGUF file, default: the packaged model; with --engine its name there")
    ] = "",
    engine: Annotated[
        list[str] | None,
        typer.Option(help="URL of a vLLM with the seeded sampler; again for each further machine of the same model"),
    ] = None,
    engine_key: Annotated[str, typer.Option(envvar="BOMBYX_ENGINE_KEY", help="bearer key the engines ask for")] = "",
    answers: Annotated[int, typer.Option(min=4, help="honest answers to measure")] = 400,
    tokens: Annotated[int, typer.Option(min=16, max=512, help="output tokens of each, at most")] = 64,
    family: Annotated[
        str, typer.Option(help=f"the engine family this is true for; default: {FAMILY}, or what the engine tells")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="a dozen short answers: shows that it works, no more")] = False,
    out: Annotated[Path | None, typer.Option(help="write the calibration here")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Run a model honestly in several ways, re-run every answer, and bound what honesty looks like.

    The calibration goes into the model's manifest; validators judge by it. Few answers give a weak bound on how often
    honest answers fail, never a false one.
    """
    count, length = (QUICK_ANSWERS, QUICK_TOKENS) if quick else (answers, tokens)

    async def measured(told: Callable[[int, int], None]) -> Measured:
        if engine:
            return await calibrate_engines(
                engine, model=model, key=engine_key, answers=count, tokens=length, family=family, told=told
            )
        file = Path(model) if model else None
        return await calibrate_model(file, answers=count, tokens=length, family=family or FAMILY, told=told)

    found = _shown(measured, count)
    if out is not None:
        out.write_text(to_json(found.calibration), encoding="utf-8")
    _print(found, as_json=json)


def _shown(measured: Callable[[Callable[[int, int], None]], Coroutine[Any, Any, Measured]], count: int) -> Measured:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("honest answers", total=count)

        def told(done: int, _: int) -> None:
            bar.update(task, completed=done)

        return asyncio.run(measured(told))


def _print(found: Measured, *, as_json: bool) -> None:
    made = found.calibration
    numbers = asdict(made)
    if as_json:
        print_json(
            {"weights": found.weights and found.weights.hex(), "calibration": numbers, "configurations": found.rows()}
        )
        return
    rows = found.rows()
    print_rows([tuple(rows[0]), *(tuple(str(value) for value in row.values()) for row in rows)])
    weights = "those of the engines: not hashed here" if found.weights is None else found.weights.hex()
    typer.echo(f"\nfamily {made.family}\nweights {weights}")
    typer.echo(f"m0 {made.m0_e6 / 1e6:g}: twice the worst mean margin of a configuration or a temperature")
    typer.echo(
        f"p0 {made.p0_e6 / 1e6:g}: at most so many honest answers fail (95 %), from {made.responses} answers, "
        f"{made.tokens} tokens"
    )
