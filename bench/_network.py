# SPDX-License-Identifier: Apache-2.0
"""A whole network as processes, and an engine in this one that follows a script: for `soak.py` and `slow.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from aiohttp import web

from bombyx.adapters.processes import Child, start_child, stop_children
from bombyx.compose import new_simulated_platform
from bombyx.config import NetworkDescriptor, ProxyAddress
from bombyx.protocol.primitives import Address

MODEL = "scripted"


class Engine:
    """Speaks the vLLM dialect: `words` tokens of `pause` seconds each; what is asked of it, it has not read."""

    def __init__(self, *, words: int = 24, pause: float = 0.005) -> None:
        self.words = words
        self.pause = pause
        self.word = " silk"
        self.running = 0
        self.ended_early: list[float] = []  # when an answer was left before its end, by the loop's clock

    async def start(self) -> str:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4096).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.running += 1
        try:
            return await (self._stream(request) if asked.get("stream") else self._whole())
        except asyncio.CancelledError:
            self.ended_early.append(asyncio.get_running_loop().time())
            raise
        except ConnectionError:
            self.ended_early.append(asyncio.get_running_loop().time())
            return web.Response()  # to nobody
        finally:
            self.running -= 1

    async def _whole(self) -> web.Response:
        await asyncio.sleep(self.pause * self.words)
        ids = list(range(self.words))
        said = {"role": "assistant", "content": self.word * self.words}
        choice = {"index": 0, "message": said, "token_ids": ids, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "prompt_token_ids": list(range(40)), "usage": self._usage()})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        words = self.words
        prompt: dict[str, Any] = {"prompt_token_ids": list(range(40))}
        for at in range(words):
            await asyncio.sleep(self.pause)
            finish = "stop" if at == words - 1 else None
            choice = {"index": 0, "delta": {"content": self.word}, "token_ids": [at], "finish_reason": finish}
            await response.write(b"data: " + json.dumps({"choices": [choice], **prompt}).encode() + b"\n\n")
            prompt = {}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": self._usage()}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _usage(self) -> dict[str, int]:
        return {"prompt_tokens": 40, "completion_tokens": self.words, "total_tokens": 40 + self.words}


class Network:
    """Chain, proxy, workers, client. Every role keeps its folder when it is started again."""

    def __init__(self, folder: Path, *, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.children: dict[str, Child] = {}
        self._environment = {"BOMBYX_HOME": str(folder), **(environment or {})}
        self._file = folder / "network.json"
        self._workers: tuple[str, ...] = ()

    async def up(self, engine: str, *, workers: int, capacity: int, shape: str) -> str:
        """The client's endpoint."""
        self._policy = new_simulated_platform(self.folder / "platform")
        devnet = await self._start("devnet", "devnet", "--kind", "memory")
        self._describe(devnet, ())
        proxy = await self._start("proxy", "proxy", "--port", "0", *self._common("proxy"))
        address = ProxyAddress(address=Address.parse(proxy.ready["address"]), url=str(proxy.ready["url"]))
        self._describe(devnet, (address,))
        self._workers = ("--engine", engine, "--dialect", "vllm", "--capacity", str(capacity))
        for number in range(workers):
            await self.start_worker(number)
        client = await self._start("client", "client", "--port", "0", "--shape", shape, *self._common("client"))
        return str(client.ready["url"])

    async def start_worker(self, number: int) -> None:
        name = f"worker-{number}"
        await self._start(name, "worker", *self._workers, *self._common(name))

    async def restart_worker(self, number: int) -> None:
        """As an operator does it: asked to stop, it drains; then it is started again."""
        child = self.children[f"worker-{number}"]
        os.kill(child.pid, signal.SIGTERM)
        await asyncio.wait_for(child.process.wait(), 60)
        await self.start_worker(number)

    async def down(self) -> None:
        """Those who pay first: claims are made by those who are paid."""
        for names in (("client",), tuple(n for n in self.children if n.startswith("worker")), ("proxy",), ("devnet",)):
            await stop_children([self.children[name] for name in names if name in self.children], grace=30.0)

    def _common(self, name: str) -> tuple[str, ...]:
        return "--network", str(self._file), "--state", str(self.folder / name)

    def _describe(self, devnet: Child, proxies: tuple[ProxyAddress, ...]) -> None:
        network = NetworkDescriptor(
            chain_url=devnet.ready["url"], proxies=proxies, policy=self._policy, simulated=self._policy.parent
        )
        self._file.write_text(network.to_json())

    async def _start(self, name: str, *arguments: str) -> Child:
        log = self.folder / f"{name}.log"
        child = await start_child(name, [*arguments, "--child"], log=log, environment=self._environment)
        self.children[name] = child
        return child
