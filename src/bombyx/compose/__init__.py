# SPDX-License-Identifier: Apache-2.0
"""The one place where roles meet adapters: one file a role.

Nothing here decides; it builds, starts and stops. Imports of a role's parts stand inside these functions, so that a
client needs no library that only workers or proxies use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.keys import KeyFiles
from bombyx.adapters.machine import Finding, chain_node, examine
from bombyx.config import (
    ClientConfig,
    NetworkDescriptor,
    ProxyConfig,
    SellConfig,
    ValidatorConfig,
    WorkerConfig,
    state_home,
)

if TYPE_CHECKING:
    from bombyx.compose.service import Service
    from bombyx.compose.wallet import Ask
    from bombyx.roles.client.core import Client

__all__ = [
    "build_client",
    "examine_machine",
    "key_store",
    "new_simulated_platform",
    "start_cheater",
    "start_devnet",
    "start_endpoint",
    "start_proxy",
    "start_selling",
    "start_validator",
    "start_worker",
]


def key_store(folder: Path | None = None) -> KeyFiles:
    """Account keys of this machine, or of `folder`."""
    return KeyFiles(folder or state_home() / "keys", SystemEntropy())


def examine_machine() -> list[Finding]:
    """What is here and what is missing, for `bombyx doctor`."""
    from bombyx.compose.worker import packaged_model

    return examine(packaged_model, ClientConfig().port, state_home())


def examine_chain_node() -> Finding:
    """Whether a chain node is installed."""
    return chain_node()


def new_simulated_platform(folder: Path) -> Path:
    """Make a simulated platform in `folder` and the policy that accepts it beside it; gives the policy's path."""
    from bombyx.adapters.simulator import SimulatedPlatform, development_policy
    from bombyx.protocol.attest import policy_to_toml

    platform = SimulatedPlatform.create(seed=SystemEntropy().bytes(32), now=SystemClock().now())
    platform.save(folder)
    policy = folder / "policy.toml"
    policy.write_text(policy_to_toml(development_policy(platform)))
    return policy


async def start_devnet(port: int, *, kind: str, block_time: float) -> Service:
    """A development chain on loopback: `evm`, `memory`, or `auto`, which is `evm` where a node is installed."""
    from bombyx.compose.devnet import start_evm, start_memory

    if kind == "memory" or (kind == "auto" and not examine_chain_node().ok):
        return await start_memory(port)
    return await start_evm(port, block_time)


async def start_proxy(config: ProxyConfig, network: NetworkDescriptor, state: Path) -> Service:
    """A proxy that listens."""
    from bombyx.compose.proxy import start

    return await start(config, network, state)


async def start_worker(config: WorkerConfig, network: NetworkDescriptor, state: Path) -> Service:
    """A worker that has dialled every proxy of the network."""
    from bombyx.compose.worker import start

    return await start(config, network, state)


async def start_validator(config: ValidatorConfig, network: NetworkDescriptor, state: Path) -> Service:
    """A validator that is a member of its set and listens."""
    from bombyx.compose.validator import start

    return await start(config, network, state)


async def start_cheater(
    config: WorkerConfig, network: NetworkDescriptor, state: Path, *, only: Path | None = None
) -> Service:
    """A worker that lies about its model; for demonstrations, where enclaves are simulated."""
    from bombyx.compose.cheater import start

    return await start(config, network, state, only=only)


async def start_endpoint(
    config: ClientConfig, network: NetworkDescriptor, state: Path, *, expose: bool, ask: Ask | None = None
) -> Service:
    """A client and its local OpenAI endpoint. `ask` is asked for the passphrase of an encrypted owner key."""
    from bombyx.compose.client import start

    return await start(config, network, state, expose=expose, ask=ask)


async def start_selling(
    sell: SellConfig, config: ClientConfig, network: NetworkDescriptor, state: Path, *, ask: Ask | None = None
) -> Service:
    """A client whose answers strangers buy by x402."""
    from bombyx.compose.sell import start

    return await start(sell, config, network, state, ask=ask)


async def build_client(
    network: str | dict[str, Any] | None = None, *, state_dir: Path | None = None, budget: int | None = None
) -> Client:
    """A started client, for the SDK. `network`: a descriptor's path, its content, or None for the one running here."""
    from bombyx.compose.client import build

    return await build(network, state_dir=state_dir, budget=budget)
