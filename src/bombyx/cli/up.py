# SPDX-License-Identifier: Apache-2.0
"""`bombyx up`: a whole network on this machine, one question asked and shown, up until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from bombyx.adapters.processes import until_stopped
from bombyx.cli.output import print_json
from bombyx.cli.shown import show_answer, show_ready, wide_console
from bombyx.compose.asking import ask, collect
from bombyx.compose.network import RunningNetwork, running_network

EXAMPLE = "What is the capital of France?"


def up(
    once: Annotated[str | None, typer.Option(help="ask this once, show the answer and exit")] = None,
    json: Annotated[bool, typer.Option("--json", help="with --once: print one JSON object")] = False,
    workers: Annotated[int, typer.Option(help="workers to start", min=1, max=16)] = 3,
    port: Annotated[int, typer.Option(help="port of the OpenAI endpoint; 0 takes a free one")] = 10_000,
    shape: Annotated[str | None, typer.Option(help="shape of answers: constant, bucket or off")] = None,
    state: Annotated[
        Path | None, typer.Option(help="keep keys, books and logs here; default: a folder removed")
    ] = None,
) -> None:
    """Start chain, proxy, workers in simulated enclaves and the client's OpenAI endpoint; ask one question; stay up."""
    if json and once is None:
        raise typer.BadParameter("--json goes with --once")
    console = wide_console(stderr=json)
    logging.basicConfig(level=logging.WARNING)
    extra = ("--shape", shape) if shape else ()
    used_port = 0 if once is not None and port == 10_000 else port
    uvloop.run(_up(once, json, workers, used_port, state, extra, console))


async def _up(
    once: str | None,
    json: bool,
    workers: int,
    port: int,
    state: Path | None,
    extra: tuple[str, ...],
    console: Console,
) -> None:
    task = asyncio.create_task(_live(once, json, workers, port, state, extra, console))
    stopped = asyncio.create_task(until_stopped(watch_parent=False))
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        console.print("\nstopping")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return
    stopped.cancel()
    task.result()


async def _live(
    once: str | None,
    json: bool,
    workers: int,
    port: int,
    state: Path | None,
    extra: tuple[str, ...],
    console: Console,
) -> None:
    began = time.monotonic()

    def progress(what: str) -> None:
        console.print(f"[{time.monotonic() - began:5.1f} s] starting {what}", style="dim", markup=False)

    async with running_network(workers=workers, port=port, folder=state, progress=progress, extra=extra) as network:
        if not json:
            show_ready(console, network, time.monotonic() - began)
        answer, facts = await _ask(network, once or EXAMPLE, console, quiet=json)
        if json:
            print_json(_summary(answer, facts))
        else:
            show_answer(console, facts)
        if once is None:
            await _stay(network, console)


async def _ask(network: RunningNetwork, prompt: str, console: Console, *, quiet: bool) -> tuple[str, dict[str, Any]]:
    def show(text: str) -> None:
        if not quiet:
            console.print(text, end="", markup=False, soft_wrap=True)

    if not quiet:
        console.print(f"\nyou     {prompt}\nanswer  ", end="", markup=False)
    answer, request_id = await ask(network.endpoint, prompt, on_text=show)
    if not quiet:
        console.print()
    return answer, await collect(network.endpoint, network.proxy_url, request_id)


async def _stay(network: RunningNetwork, console: Console) -> None:
    """Until somebody stops us, or a process of the network ends by itself."""
    console.print(f"\nThe endpoint stays on {network.endpoint} until Ctrl-C. In a second terminal:")
    console.print("  bombyx chat", markup=False)
    console.print("  bombyx worker --engine http://127.0.0.1:8000 --join", markup=False)
    console.print(f"  what was checked: {network.endpoint.removesuffix('/v1')}/verification", markup=False)
    known = {child.name for child in network.children}
    while known:
        await asyncio.sleep(1.0)
        for child in network.children:
            if not child.running and child.name in known:
                known.discard(child.name)
                console.print(f"{child.name} has ended; its last words:\n{child.last_words(6)}", markup=False)


def _summary(answer: str, facts: dict[str, Any]) -> dict[str, Any]:
    receipt = facts["receipt"]
    return {
        "answer": answer,
        "model": next(iter(facts["appraisal"]["models"]), None),
        "receipt": receipt,
        "attestation": {
            "trust_class": facts["appraisal"]["trust_class"],
            "operator": facts["appraisal"]["operator"],
            "steps": facts["appraisal"]["steps"],
        },
        "charge": {
            "paid": receipt["paid"],
            "worker": receipt["charge"],
            "commission": receipt["paid"] - receipt["charge"],
        },
        "checks": facts["checks"],
        "proxy_view": facts["view"],
    }
