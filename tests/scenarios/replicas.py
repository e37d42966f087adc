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
from tests.scenarios.procs import MODEL, Processes

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
            contracts=self.children["devnet"].ready.get("contracts"),
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
            while len((await self.json(f"{self.url(name)}/network"))["workers"]) < workers:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@asynccontextmanager
async def network_of_replicas(
    folder: Path,
    *,
    replicas: int = 2,
    workers: int = 1,
    chain: str = "memory",
    chain_arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> AsyncIterator[ReplicaProcesses]:
    """Devnet, PostgreSQL, proxies over it, workers, client."""
    url = await postgres_server().database()
    net = ReplicaProcesses(folder=folder, policy=new_simulated_platform(folder / "simulated-platform"))
    net.environment = {"BOMBYX_PROXY_STORE": url, **(environment or {})}
    try:
        await net.start_devnet(chain, *chain_arguments)
        for number in range(replicas):
            await net.start_replica(f"proxy-{number}")
        await asyncio.gather(*(net.start_worker(f"worker-{n}") for n in range(workers)))
        for name in net.replicas:
            await net.linked(name, workers)
        await net.start_client()
        yield net
    finally:
        await stop_children(list(net.children.values())[::-1], grace=5.0)


def _question(tokens: int, stream: bool) -> dict[str, Any]:
    words = [{"role": "user", "content": "Tell a long story about silk."}]
    return {"model": MODEL, "messages": words, "max_tokens": tokens, "stream": stream}


async def chat(endpoint: str, *, tokens: int = 8, stream: bool = False, seconds: float = 60.0) -> tuple[int, str]:
    """One plain request: status and body."""
    url, body, timeout = endpoint + "/chat/completions", _question(tokens, stream), aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.post(url, json=body) as got:
        return got.status, await got.text()


@asynccontextmanager
async def streaming(endpoint: str, *, tokens: int = 1_000) -> AsyncIterator[None]:
    """Inside, an answer has begun and goes on."""
    url, body = endpoint + "/chat/completions", _question(tokens, stream=True)
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as got:
        assert got.status == 200
        await got.content.readany()
        yield
