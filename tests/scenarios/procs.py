# SPDX-License-Identifier: Apache-2.0
"""A network of real processes for tests, each of which may be killed, started again, or listened to on its sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tests.scenarios.taps import Tap

from bombyx.adapters.processes import Child, start_child, stop_children
from bombyx.compose import new_simulated_platform
from bombyx.config import NetworkDescriptor, ProxyAddress
from bombyx.protocol.primitives import Address

MODEL = "SmolLM2-135M-Instruct"


@dataclass
class Processes:
    """What `network_of_processes` gives. Every role keeps its state folder over restarts."""

    folder: Path
    policy: Path
    children: dict[str, Child] = field(default_factory=dict)
    taps: list[Tap] = field(default_factory=list)
    client_sees: str = ""  # proxy URL as the client is told; a tap's when it is listened to
    workers_see: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    mortal: str = ""  # the role that dies where `orders` says
    client_state: str = "client"
    clients: list[str] = field(default_factory=lambda: ["client"])  # every state folder a client has had

    # --- files ---

    def state(self, name: str) -> Path:
        return self.folder / name

    @property
    def orders(self) -> Path:
        """Where the mortal role finds out at which of its writes to die."""
        return self.folder / "crash-at"

    def log(self, name: str) -> str:
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _descriptor(self, name: str, proxy_url: str) -> Path:
        proxies: tuple[ProxyAddress, ...] = ()
        if "proxy" in self.children:
            address = Address.parse(self.children["proxy"].ready["address"])
            proxies = (ProxyAddress(address=address, url=proxy_url),)
        descriptor = NetworkDescriptor(
            chain_url=self.children["devnet"].ready["url"],
            contracts=self.children["devnet"].ready["contracts"],
            proxies=proxies,
            policy=self.policy,
            simulated=self.policy.parent,
        )
        path = self.folder / f"{name}.network.json"
        path.write_text(descriptor.to_json())
        return path

    # --- starting and ending ---

    async def start(self, name: str, *arguments: str) -> Child:
        child = await start_child(
            name,
            [*arguments, "--child"],
            log=self.folder / "logs" / f"{name}.log",
            environment={
                "BOMBYX_HOME": str(self.folder / "home"),
                **({"BOMBYX_CRASH_AT": str(self.orders)} if self.mortal and name.startswith(self.mortal) else {}),
                **self.environment,
            },
        )
        self.children[name] = child
        return child

    async def start_devnet(self, kind: str = "memory", *arguments: str) -> None:
        """The in-memory chain by default: what these tests are about does not need blocks of a second."""
        await self.start("devnet", "devnet", "--kind", kind, *arguments)

    async def start_proxy(self, *, port: int = 0, listened: bool = False, name: str = "proxy") -> None:
        network = self._descriptor(name, "")
        arguments = ("--port", str(port), "--expose-views", "--network", str(network), "--state", str(self.state(name)))
        child = await self.start(name, "proxy", *arguments)
        self.client_sees = self.workers_see = str(child.ready["url"])
        if listened:
            for attribute in ("client_sees", "workers_see"):
                tap = await Tap.open(
                    int(self.client_sees.rsplit(":", 1)[1]) if attribute == "client_sees" else self.port
                )
                self.taps.append(tap)
                setattr(self, attribute, f"http://127.0.0.1:{tap.port}")

    @property
    def port(self) -> int:
        """Where the proxy really listens."""
        return int(self.children["proxy"].ready["url"].rsplit(":", 1)[1])

    async def start_worker(self, name: str, *arguments: str) -> Child:
        network = self._descriptor(name, self.workers_see)
        where = ("--network", str(network), "--state", str(self.state(name)))
        return await self.start(name, "worker", *where, *arguments)

    async def start_client(self, name: str = "client", *arguments: str) -> Child:
        network = self._descriptor(name, self.client_sees)
        state = self.client_state if name == "client" else name
        where = ("--network", str(network), "--state", str(self.state(state)), "--port", "0")
        return await self.start(name, "client", *where, *arguments)

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        child = self.children[name]
        os.kill(child.pid, number)
        await asyncio.wait_for(child.process.wait(), 30)

    # --- asking ---

    @property
    def endpoint(self) -> str:
        return str(self.children["client"].ready["url"])

    async def json(self, url: str) -> Any:
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert answer.status == 200, (url, answer.status, await answer.text())
            return await answer.json(content_type=None)

    async def verification(self) -> Any:
        return await self.json(self.endpoint.removesuffix("/v1") + "/verification?format=json")

    async def receipts(self) -> list[dict[str, Any]]:
        return list((await self.json(self.endpoint + "/receipts"))["data"])

    async def booked(self, channel: str) -> dict[str, Any]:
        """What the proxy has on the client's channel."""
        return dict(await self.json(f"http://127.0.0.1:{self.port}/v1/channel/{channel}"))


@asynccontextmanager
async def network_of_processes(
    folder: Path,
    *,
    workers: int = 1,
    listened: bool = False,
    worker_arguments: tuple[str, ...] = (),
    chain: str = "memory",
    chain_arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    mortal: str = "",
    on_chain: Callable[[Processes], Awaitable[None]] | None = None,
) -> AsyncIterator[Processes]:
    """Devnet, proxy, workers with the real model, client."""
    policy = new_simulated_platform(folder / "simulated-platform")
    net = Processes(folder=folder, policy=policy, environment=environment or {}, mortal=mortal)
    try:
        await net.start_devnet(chain, *chain_arguments)
        if on_chain is not None:
            await on_chain(net)
        await net.start_proxy(listened=listened)
        await asyncio.gather(*(net.start_worker(f"worker-{n}", *worker_arguments) for n in range(workers)))
        await net.start_client()
        yield net
    finally:
        await stop_children(list(net.children.values())[::-1], grace=5.0)
        for tap in net.taps:
            await tap.close()
