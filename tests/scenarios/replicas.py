# SPDX-License-Identifier: Apache-2.0
"""Several proxy processes over one real PostgreSQL, beside `procs.py`: same key, own ports, workers linked to each."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from tests.postgres import postgres_server
from tests.scenarios.procs import Processes

from bombyx.adapters.processes import stop_children
from bombyx.compose import new_simulated_platform
from bombyx.config import NetworkDescriptor, ProxyAddress
from bombyx.protocol.primitives import Address


class ReplicaProcesses(Processes):
    """`proxy-0`, `proxy-1`, ... are one proxy."""

    async def start_replica(self, name: str, *, port: int = 0) -> None:
        key = self.state("proxy-0") / "proxy.key"
        if name != "proxy-0":
            self.state(name).mkdir(parents=True, exist_ok=True)
            shutil.copy(key, self.state(name) / key.name)
        await super().start_proxy(name=name, port=port)

    @property
    def replicas(self) -> list[str]:
        return sorted(name for name in self.children if name.startswith("proxy-"))

    def url(self, name: str) -> str:
        return str(self.children[name].ready["url"])

    def _descriptor(self, name: str, proxy_url: str) -> Path:
        lines = tuple(
            ProxyAddress(address=Address.parse(self.children[proxy].ready["address"]), url=self.url(proxy))
            for proxy in self.replicas
        )
        descriptor = NetworkDescriptor(
            chain_url=self.children["devnet"].ready["url"],
            proxies=() if name.startswith("proxy-") else lines,
            policy=self.policy,
            simulated=self.policy.parent,
        )
        path = self.folder / f"{name}.network.json"
        path.write_text(descriptor.to_json())
        return path

    async def account(self, name: str, channel: str) -> dict[str, Any]:
        """What one replica says is booked on a channel."""
        return dict(await self.json(f"{self.url(name)}/v1/channel/{channel}"))

    async def linked(self, name: str, workers: int) -> None:
        """Wait until so many workers are linked to a replica."""
        async with asyncio.timeout(30):
            while len((await self.json(f"{self.url(name)}/network"))["workers"]) < workers:
                await asyncio.sleep(0.05)

    async def keeper(self, channel: str) -> str:
        """Which replica kept the channel last, from its log."""
        return next(n for n in self.replicas if channel in self.log(n))


@asynccontextmanager
async def network_of_replicas(
    folder: Path, *, replicas: int = 2, workers: int = 1, worker_arguments: tuple[str, ...] = ()
) -> AsyncIterator[ReplicaProcesses]:
    """Devnet, PostgreSQL, proxies over it, workers, client."""
    url = await postgres_server().database()
    net = ReplicaProcesses(folder=folder, policy=new_simulated_platform(folder / "simulated-platform"))
    net.environment = {"BOMBYX_PROXY_STORE": url}
    try:
        await net.start_devnet()
        for number in range(replicas):
            await net.start_replica(f"proxy-{number}")
        await asyncio.gather(*(net.start_worker(f"worker-{n}", *worker_arguments) for n in range(workers)))
        for name in net.replicas:
            await net.linked(name, workers)
        await net.start_client()
        yield net
    finally:
        await stop_children(list(net.children.values())[::-1], grace=5.0)


async def chat(endpoint: str, *, tokens: int = 8, stream: bool = False, seconds: float = 60.0) -> tuple[int, str]:
    """One plain request: status and body."""
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": tokens,
        "stream": stream,
    }
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(endpoint + "/chat/completions", json=body) as got,
    ):
        return got.status, await got.text()
