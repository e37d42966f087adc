# SPDX-License-Identifier: Apache-2.0
"""`bombyx up`: a whole network on this machine, one question asked and shown, up until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from bombyx.adapters.processes import until_stopped
from bombyx.cli.cheated import show_trial
from bombyx.cli.output import print_json
from bombyx.cli.shown import show_answer, show_ready, show_settlement, wide_console
from bombyx.compose.asking import ask, collect
from bombyx.compose.network import RunningNetwork, Trial, running_network

EXAMPLE = "What is the capital of France?"
DEFAULT_PORT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line."""

    once: str | None
    json: bool
    workers: int
    port: int
    state: Path | None
    extra: tuple[str, ...]
    chain: str
    trial: Trial | None


def up(
    once: Annotated[str | None, typer.Option(help="ask this once, show the answer and exit")] = None,
    json: Annotated[bool, typer.Option("--json", help="with --once: print one JSON object")] = False,
    workers: Annotated[int | None, typer.Option(help="workers to start; default 3", min=1, max=16)] = None,
    port: Annotated[int, typer.Option(help="port of the OpenAI endpoint; 0 takes a free one")] = DEFAULT_PORT,
    shape: Annotated[str | None, typer.Option(help="shape of answers: constant, bucket or off")] = None,
    state: Annotated[
        Path | None, typer.Option(help="keep keys, books and logs here; default: a folder removed")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="an in-memory chain instead of a real node")] = False,
    with_cheater: Annotated[
        bool, typer.Option("--with-cheater", help="add a worker that lies, and validators who find out; five workers")
    ] = False,
    validators: Annotated[int, typer.Option(help="validators, with --with-cheater", min=3, max=16)] = 6,
) -> None:
    """Start chain, proxy, workers in simulated enclaves and the client's OpenAI endpoint; ask one question; stay up."""
    if json and once is None and not with_cheater:
        raise typer.BadParameter("--json goes with --once or --with-cheater")
    if with_cheater and (memory or once is not None):
        raise typer.BadParameter("--with-cheater needs the real node, and asks its own questions")
    console = wide_console(stderr=json)
    logging.basicConfig(level=logging.WARNING)
    options = Options(
        once=once,
        json=json,
        workers=workers or (5 if with_cheater else 3),
        port=0 if once is not None and port == DEFAULT_PORT else port,
        state=state,
        extra=("--shape", shape) if shape else (),
        chain="memory" if memory else "evm" if with_cheater else "auto",
        trial=Trial(validators=validators) if with_cheater else None,
    )
    uvloop.run(_up(options, console))


async def _up(options: Options, console: Console) -> None:
    """The first stop signal winds down in order, so that accounts are settled; a second one cuts."""
    stop, standing = asyncio.Event(), asyncio.Event()
    live = asyncio.create_task(_live(options, console, stop, standing))
    while not live.done():
        signalled = asyncio.create_task(until_stopped(watch_parent=False))
        await asyncio.wait({live, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if not live.done():
            if stop.is_set() or not standing.is_set():
                live.cancel()
            console.print("\nstopping", markup=False)
            stop.set()
        signalled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await live


async def _live(options: Options, console: Console, stop: asyncio.Event, standing: asyncio.Event) -> None:
    began = time.monotonic()

    def progress(what: str) -> None:
        console.print(f"[{time.monotonic() - began:5.1f} s] starting {what}", style="dim", markup=False)

    async with running_network(
        workers=options.workers,
        port=options.port,
        folder=options.state,
        progress=progress,
        extra=options.extra,
        chain=options.chain,
        trial=options.trial,
    ) as network:
        standing.set()
        if not options.json:
            show_ready(console, network, time.monotonic() - began)
        if options.trial is not None:
            told = await show_trial(network, console, stop)
            steps = await network.wind_down()
            if options.json:
                print_json(told | {"settlement": steps})
            return
        answer, facts = await _ask(network, options.once or EXAMPLE, console, quiet=options.json)
        if not options.json:
            show_answer(console, facts)
        if options.once is None:
            await _stay(network, console, stop)
        steps = await network.wind_down()
        if options.json:
            print_json(_summary(answer, facts) | {"settlement": steps})
        else:
            show_settlement(console, steps)


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


async def _stay(network: RunningNetwork, console: Console, stop: asyncio.Event) -> None:
    """Until somebody stops us; tells when a process of the network ends by itself."""
    console.print(f"\nThe endpoint stays on {network.endpoint} until Ctrl-C. In a second terminal:")
    console.print("  bombyx chat", markup=False)
    console.print("  bombyx worker --engine http://127.0.0.1:8000 --join", markup=False)
    console.print(f"  what was checked: {network.endpoint.removesuffix('/v1')}/verification", markup=False)
    told: set[str] = set()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        for child in network.children:
            if not child.running and child.name not in told:
                told.add(child.name)
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
