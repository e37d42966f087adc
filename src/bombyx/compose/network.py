# SPDX-License-Identifier: Apache-2.0
"""A whole network on this machine, one process a role: what `bombyx up` starts, shows and stops.

Always: children stop with their parent; the descriptor is announced only while the network stands; a folder made here
is removed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bombyx.adapters.evm import AddressBook, Rpc, settlement_steps
from bombyx.adapters.processes import Child, start_child, stop_children
from bombyx.compose.channels import open_channels
from bombyx.config import ClientConfig, NetworkDescriptor, ProxyAddress, default_descriptor_path, load
from bombyx.errors import BombyxError, ConfigError
from bombyx.protocol.primitives import Address

Progress = Callable[[str], None]
READY_SECONDS = 180.0  # fifteen processes on two cores
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A network in which one worker lies and validators find out. Small canaries: everything here shares two cores."""

    validators: int = 6
    stake: int = 60_000_000  # base units of each worker
    canary_tokens: int = 24

    @property
    def asking(self) -> tuple[str, ...]:
        """What validators are told."""
        few = ("--canaries", "1", "--canaries-new", "1", "--most-canaries", "2")
        short = ("--most-tokens", str(self.canary_tokens))
        return (*few, *short, "--port", "0", "--figures", "--verbose")

    @property
    def environment(self) -> dict[str, str]:
        """What the proxy is told: look at the registry every few seconds, so that an ejected worker goes soon."""
        return {"BOMBYX_PROXY_CLAIM_EVERY": "3"}


@dataclass(slots=True, kw_only=True)
class RunningNetwork:
    """Every process of it."""

    folder: Path
    descriptor: NetworkDescriptor
    devnet: Child
    proxy: Child
    workers: tuple[Child, ...] = ()
    cheater: Child | None = None
    validators: tuple[Child, ...] = ()
    client: Child | None = None
    children: list[Child] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """Base URL of the OpenAI endpoint."""
        assert self.client is not None
        return str(self.client.ready["url"])

    @property
    def proxy_url(self) -> str:
        return str(self.proxy.ready["url"])

    async def wind_down(self) -> list[dict[str, Any]]:
        """End the roles in the order in which money flows, the chain last; gives what the chain says was settled.

        The client goes first and closes its channel together with the proxy, which claims and refunds; then the
        workers, who claim from the proxy; then the proxy.
        """
        signed: dict[str, int] = {}
        if self.client is not None:
            await stop_children([self.client])
            signed = await self._close_channels()
        await stop_children(list(self.validators))
        await stop_children([*self.workers, *([self.cheater] if self.cheater else [])])
        await stop_children([self.proxy])
        return with_vouchers(await settlement(self.descriptor), signed)

    async def _close_channels(self) -> dict[str, int]:
        """What the client did not spend goes back to it. Gives the newest voucher of each channel.

        A proxy that does not answer must not keep us from stopping.
        """
        signed: dict[str, int] = {}
        try:
            async with open_channels(
                load(ClientConfig), self.descriptor, self.folder / "client", ask=None, change=True
            ) as (channels, wallet):
                for channel in wallet.channels():
                    signed[str(channel.id)] = int(channel.ceiling)
                    await channels.close(channel, alone=False)
        except BombyxError as error:
            log.warning("the client's channel was not closed: %s", error)
        return signed


@asynccontextmanager
async def running_network(
    *,
    workers: int,
    port: int,
    folder: Path | None,
    progress: Progress,
    extra: tuple[str, ...] = (),
    chain: str = "auto",
    trial: Trial | None = None,
) -> AsyncIterator[RunningNetwork]:
    """Start everything, announce it, and stop everything. `extra` goes to the client's command line."""
    announced = default_descriptor_path()
    _check_alone(announced)
    state = folder or Path(tempfile.mkdtemp(prefix="bombyx-"))
    children: list[Child] = []
    try:
        network = await _start(state, children, workers, port, progress, extra, chain, trial)
        _announce(announced, network.descriptor)
        yield network
    finally:
        with contextlib.suppress(FileNotFoundError):
            if announced.resolve().parent.exists() and _is_ours(announced, state):
                announced.unlink()
        await stop_children(children[::-1])
        if folder is None:
            shutil.rmtree(state, ignore_errors=True)


async def _start(
    state: Path,
    children: list[Child],
    workers: int,
    port: int,
    progress: Progress,
    extra: tuple[str, ...],
    chain: str,
    trial: Trial | None,
) -> RunningNetwork:
    from bombyx.compose import new_simulated_platform

    simulator = state / "simulated-platform"
    policy = simulator / "policy.toml"
    if not policy.exists():
        policy = new_simulated_platform(simulator)
    progress("chain")
    devnet = await _child(children, state, "devnet", "devnet", "--kind", chain)
    descriptor = NetworkDescriptor(
        chain_url=devnet.ready["url"],
        contracts=devnet.ready["contracts"],
        proxies=(),
        policy=policy.resolve(),
        simulated=simulator.resolve(),
    )
    file = state / "network.json"
    file.write_text(descriptor.to_json())
    progress("proxy")
    proxy = await _child(
        children, state, "proxy", "proxy", "--port", "0", "--expose-views", "--network", str(file),
        "--state", str(state / "proxy"), environment=trial.environment if trial else {},
    )  # fmt: skip
    line = ProxyAddress(address=Address.parse(proxy.ready["address"]), url=proxy.ready["url"])
    descriptor = dataclasses.replace(descriptor, proxies=(line,))
    file.write_text(descriptor.to_json())
    progress(f"{workers} workers")
    staked = ("--stake", str(trial.stake)) if trial else ()
    started = await _many(children, state, "worker", workers, "--network", str(file), *staked)
    cheater: Child | None = None
    validators: tuple[Child, ...] = ()
    if trial is not None:
        progress(f"a worker that lies, {trial.validators} validators")
        cheater = await _child(
            children,
            state,
            "cheater",
            "demo-cheater",
            "--network",
            str(file),
            "--state",
            str(state / "cheater"),
            *staked,
        )
        validators = await _many(children, state, "validator", trial.validators, "--network", str(file), *trial.asking)
    progress("client")
    client = await _child(
        children, state, "client", "client", "--port", str(port), "--network", str(file),
        "--state", str(state / "client"), *extra,
    )  # fmt: skip
    return RunningNetwork(
        folder=state,
        descriptor=descriptor,
        devnet=devnet,
        proxy=proxy,
        workers=started,
        cheater=cheater,
        validators=validators,
        client=client,
        children=children,
    )


async def _many(children: list[Child], state: Path, role: str, count: int, *arguments: str) -> tuple[Child, ...]:
    """So many of one role, side by side, each with a folder of its own."""
    names = [f"{role}-{number}" for number in range(1, count + 1)]
    starting = (_child(children, state, name, role, "--state", str(state / name), *arguments) for name in names)
    return tuple(await asyncio.gather(*starting))


async def _child(
    children: list[Child], state: Path, name: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Child:
    child = await start_child(
        name,
        [*arguments, "--child"],
        log=state / "logs" / f"{name}.log",
        environment=environment,
        ready_within=READY_SECONDS,
    )
    children.append(child)
    return child


def _check_alone(announced: Path) -> None:
    if announced.exists() and _alive(announced):
        raise ConfigError(f"a network runs here already: {announced} announces it. Stop it first, or set BOMBYX_HOME")


def _alive(announced: Path) -> bool:
    """Whether whoever announced a network still runs; what a killed one left behind does not count."""
    try:
        owner = int(json.loads(announced.read_text())["pid"])
        return Path(f"/proc/{owner}").exists() if Path("/proc").exists() else _signal_reaches(owner)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _signal_reaches(owner: int) -> bool:
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _announce(announced: Path, descriptor: NetworkDescriptor) -> None:
    announced.parent.mkdir(parents=True, exist_ok=True)
    told = json.loads(descriptor.to_json()) | {"pid": os.getpid()}
    announced.write_text(json.dumps(told, indent=2))


def _is_ours(announced: Path, state: Path) -> bool:
    try:
        return str(state.resolve()) in announced.read_text()
    except OSError:
        return False


async def settlement(descriptor: NetworkDescriptor) -> list[dict[str, Any]]:
    """Deposits, claims, payouts and refunds as the chain tells them; nothing for the in-memory chain."""
    if descriptor.contracts is None:
        return []
    book = AddressBook.from_dict(descriptor.contracts)
    rpc = Rpc(descriptor.chain_url.split(","))
    try:
        return [step.as_dict() for step in await settlement_steps(rpc, book)]
    finally:
        await rpc.close()


def with_vouchers(steps: list[dict[str, Any]], signed: dict[str, int]) -> list[dict[str, Any]]:
    """The same, and beside each of the client's claims the voucher it presented and the proxy's part of it."""
    told: list[dict[str, Any]] = []
    to_workers = sum(s["amount"] for s in steps if s["step"] == "claim" and s["subject"] not in signed)
    for step in steps:
        if step["step"] == "claim" and step["subject"] in signed:
            told.append({**step, "step": "voucher", "amount": signed[step["subject"]]})
            told.append(step)
            told.append({**step, "step": "commission", "amount": step["amount"] - to_workers})
            to_workers = 0
        else:
            told.append(step)
    return told
