# SPDX-License-Identifier: Apache-2.0
"""`bombyx client | proxy | worker | devnet`: one role, in the foreground.

Until SIGTERM, Ctrl-C or, for a child of another bombyx process, its parent's end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from bombyx import compose
from bombyx.adapters.processes import announce, until_stopped
from bombyx.cli.passphrase import FdOption, asking
from bombyx.compose.service import Service
from bombyx.config import ClientConfig, NetworkDescriptor, ProxyConfig, WorkerConfig, load, state_home

NetworkOption = Annotated[Path | None, typer.Option(help="network descriptor; default: the network running here")]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with settings")]
StateOption = Annotated[Path | None, typer.Option(help="folder for keys and books")]
ChildOption = Annotated[bool, typer.Option("--child", hidden=True, help="stop when standard input closes")]
JsonOption = Annotated[bool, typer.Option("--json", help="announce readiness as one JSON line")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="log what happens (never content)")]


def client(
    network: NetworkOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    host: Annotated[str | None, typer.Option(help="address of the endpoint")] = None,
    port: Annotated[int | None, typer.Option(help="port of the endpoint")] = None,
    shape: Annotated[str | None, typer.Option(help="constant, bucket or off")] = None,
    expose: Annotated[bool, typer.Option("--expose", help="allow an address others can reach")] = False,
    passphrase_fd: FdOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Run the client: an OpenAI endpoint on this machine that seals, checks and pays."""
    settings = load(ClientConfig, file=config, overrides={"host": host, "port": port, "shape": shape})
    where = state or state_home() / "client"
    run(
        lambda: compose.start_endpoint(
            settings, NetworkDescriptor.load(network), where, expose=expose, ask=asking(passphrase_fd)
        ),
        json=json or child,
        verbose=verbose,
        child=child,
    )


def proxy(
    network: NetworkOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on")] = None,
    commission_bps: Annotated[int | None, typer.Option(help="commission, in 1/10 000")] = None,
    expose_views: Annotated[bool | None, typer.Option("--expose-views", help="serve what was seen of requests")] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Run a proxy: it matches sealed requests to workers and cannot read them."""
    given = {"host": host, "port": port, "commission_bps": commission_bps, "expose_views": expose_views}
    settings = load(ProxyConfig, file=config, overrides=given)
    where = state or state_home() / "proxy"
    run(
        lambda: compose.start_proxy(settings, NetworkDescriptor.load(network), where),
        json=json or child,
        verbose=verbose,
        child=child,
    )


def worker(
    join: Annotated[bool, typer.Option("--join", help="join the network (the default; said for clarity)")] = True,
    network: NetworkOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    engine: Annotated[str | None, typer.Option(help="`embedded`, or an OpenAI-compatible server on loopback")] = None,
    dialect: Annotated[str | None, typer.Option(help="vllm, vllm+seeded, sglang, llama.cpp, plain; auto: ask")] = None,
    model: Annotated[str | None, typer.Option(help="model name to offer")] = None,
    model_file: Annotated[Path | None, typer.Option(help="GGUF file for the embedded engine")] = None,
    manifest: Annotated[Path | None, typer.Option(help="an external engine's, of `bombyx model manifest`")] = None,
    tokens: Annotated[Path | None, typer.Option(help="the token table that manifest names")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="the embedded engine's, of `bombyx calibrate --out`; default: what ships")
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="requests at once")] = None,
    enclave: Annotated[str | None, typer.Option(help="simulated, dstack, tappd or configfs")] = None,
    enclave_endpoint: Annotated[str | None, typer.Option(help="socket or URL of the dstack agent")] = None,
    stake: Annotated[int | None, typer.Option(help="token base units staked for the answers")] = None,
    appeal: Annotated[bool | None, typer.Option("--appeal/--no-appeal", help="appeal when a jury convicts")] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Run a worker: an engine inside an enclave, linked to the network's proxies and paid by them."""
    given: dict[str, Any] = {"engine": engine, "dialect": dialect, "model": model, "capacity": capacity}
    given |= {"enclave": enclave, "enclave_endpoint": enclave_endpoint, "stake": stake, "appeal": appeal}
    files = {"model_file": model_file, "manifest": manifest, "tokens": tokens, "calibration": calibration}
    given |= {name: str(path) if path else None for name, path in files.items()}
    settings = load(WorkerConfig, file=config, overrides=given)
    where = state or state_home() / "worker"
    del join
    run(
        lambda: compose.start_worker(settings, NetworkDescriptor.load(network), where),
        json=json or child,
        verbose=verbose,
        child=child,
    )


def devnet(
    port: Annotated[int, typer.Option(help="port to serve on; 0 takes a free one")] = 0,
    kind: Annotated[str, typer.Option(help="evm, memory, or auto: evm where a chain node is installed")] = "auto",
    block_time: Annotated[float, typer.Option(help="seconds between blocks of the evm chain", min=0.1)] = 1.0,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Run the development chain on loopback, our contracts on it, with money that is worth nothing."""
    if kind not in ("auto", "evm", "memory"):
        raise typer.BadParameter(f"{kind!r} is not evm, memory or auto")
    run(
        lambda: compose.start_devnet(port, kind=kind, block_time=block_time),
        json=json or child,
        verbose=verbose,
        child=child,
    )


def run(start: Any, *, json: bool, verbose: bool, child: bool) -> None:
    """Start a role and stay until it is told to stop."""
    logging.basicConfig(
        level=logging.INFO if verbose or child else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    uvloop.run(_serve(start, json=json, child=child))


async def _serve(start: Any, *, json: bool, child: bool) -> None:
    stopped = asyncio.create_task(until_stopped(watch_parent=child))  # one for the whole life: a pipe is watched once
    service = await _started(start(), stopped)
    if service is None:
        return
    _settle_memory()
    try:
        if json:
            announce(**service.facts)
        else:
            facts = dict(service.facts)
            role = facts.pop("role")
            typer.echo(f"{role} ready  " + "  ".join(f"{name}={value}" for name, value in facts.items()))
        await stopped
    finally:
        stopped.cancel()
        await service.stop()


def _settle_memory() -> None:
    """What was loaded stays: the collector need not look at it again, and looks at the rest less often.

    Requests leave no cycles, so it finds next to nothing; with the defaults it took up to 70 ms at a time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _started(starting: Awaitable[Service], stopped: asyncio.Task[str]) -> Service | None:
    """The service, or None when we were told to stop before it stood."""
    task = asyncio.ensure_future(starting)
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None
    return task.result()
