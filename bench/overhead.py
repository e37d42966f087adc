# SPDX-License-Identifier: Apache-2.0
"""Where one request's time goes: the same request through the whole network and straight to the engine, in turn.

Real processes on loopback (chain, proxy, worker, client), and an engine that answers 500 bytes at once, so that what is
left is ours. Processor time of each process is read from the system. The parts are the pure functions of
one request, timed in this process. `shape off`: the wait for the next tick of the constant shape is a row of its own.
With the embedded model (not in --quick) the last rows show the same beside a real answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from _machine import Goal, options, per_call, report
from _parts import parts
from aiohttp import web

from bombyx.adapters.processes import Child, start_child, stop_children
from bombyx.compose import new_simulated_platform
from bombyx.config import NetworkDescriptor, ProxyAddress
from bombyx.protocol.primitives import Address

TICKS = os.sysconf("SC_CLK_TCK")
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "instant",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "silk " * 60},
            "finish_reason": "stop",
            "token_ids": list(range(60)),
        }
    ],
    "prompt_token_ids": list(range(40)),
    "usage": {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100},
}
QUESTION = {"model": "instant", "messages": [{"role": "user", "content": "leaf " * 200}], "max_tokens": 64}


async def instant_engine() -> tuple[web.AppRunner, str]:
    """An engine that needs no time."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "instant"}]})

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(ANSWER)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


class Network:
    """Chain, proxy, one worker, one client, as processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: dict[str, Child] = {}

    async def start(self, name: str, *arguments: str) -> Child:
        where = ("--state", str(self.folder / name)) if name != "devnet" else ()
        home = {"BOMBYX_HOME": str(self.folder)}
        log = self.folder / f"{name}.log"
        child = await start_child(name, [*arguments, *where, "--child"], log=log, environment=home)
        self.children[name] = child
        return child

    async def up(self, engine: tuple[str, ...], shape: str) -> str:
        policy = new_simulated_platform(self.folder / "platform")
        devnet = await self.start("devnet", "devnet", "--kind", "memory")
        file = self.folder / "network.json"

        def describe(proxies: tuple[ProxyAddress, ...]) -> None:
            network = NetworkDescriptor(
                chain_url=devnet.ready["url"], proxies=proxies, policy=policy, simulated=policy.parent
            )
            file.write_text(network.to_json())

        describe(())
        proxy = await self.start("proxy", "proxy", "--port", "0", "--network", str(file))
        describe((ProxyAddress(address=Address.parse(proxy.ready["address"]), url=proxy.ready["url"]),))
        await self.start("worker", "worker", "--network", str(file), *engine)
        client = await self.start("client", "client", "--port", "0", "--shape", shape, "--network", str(file))
        return str(client.ready["url"])

    async def down(self) -> None:
        await stop_children(list(self.children.values())[::-1])

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time of each role so far."""
        return {name: _cpu(child.pid) for name, child in self.children.items()}


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def timed(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def compare(endpoint: str, engine: str, count: int, network: Network, body: object) -> dict[str, float]:
    """Milliseconds: medians over `count` interleaved pairs, and processor time of each role per request."""
    async with aiohttp.ClientSession() as http:

        async def post(url: str) -> None:
            async with http.post(f"{url}/chat/completions", json=body) as answer:
                text = await answer.read()
                if answer.status != 200:
                    raise SystemExit(text.decode())

        first = await timed(lambda: post(endpoint))
        for _ in range(5):
            await post(endpoint)
            await post(engine)
        direct, through = [], []
        before = network.cpu()
        through += [await timed(lambda: post(endpoint)) for _ in range(count)]
        after = network.cpu()
        for _ in range(count):
            direct.append(await timed(lambda: post(engine)))
            through.append(await timed(lambda: post(endpoint)))
    found = {f"cpu {role}": (after[role] - before[role]) / count * 1000 for role in before}
    return found | {
        "first": first,
        "direct": statistics.median(direct),
        "through": statistics.median(through),
    }


async def measure(count: int, shape: str) -> dict[str, float]:
    runner, url = await instant_engine()
    with tempfile.TemporaryDirectory() as folder:
        network = Network(Path(folder))
        try:
            endpoint = await network.up(("--engine", url, "--dialect", "vllm"), shape)
            return await compare(endpoint, url + "/v1", count, network, QUESTION)
        finally:
            await network.down()
            await runner.cleanup()


async def measure_model(count: int) -> dict[str, float]:
    """With the real model behind one llama.cpp server that both ways share."""
    from bombyx.adapters.gguf import find_packaged_model

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bombyx.adapters.llama_server", "--model", str(find_packaged_model()), "--name", "model",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps({"api_key": ""}).encode() + b"\n")
    port = json.loads(await process.stdout.readline())["port"]
    url = f"http://127.0.0.1:{port}"
    body = {**QUESTION, "model": "model", "messages": [{"role": "user", "content": "Name three rivers."}]}
    with tempfile.TemporaryDirectory() as folder:
        network = Network(Path(folder))
        try:
            endpoint = await network.up(("--engine", url, "--dialect", "llama.cpp"), "off")
            return await compare(endpoint, url + "/v1", count, network, body | {"temperature": 0})
        finally:
            await network.down()
            process.stdin.close()
            await process.wait()


def main() -> None:
    given = options(__doc__)
    count = 60 if given.quick else 400
    rows: list[dict[str, object]] = []
    pieces = parts(per_call)
    rows += [{"part": name, "cpu_ms": seconds * 1000} for name, seconds in pieces.items()]
    plain = asyncio.run(measure(count, "off"))
    shaped = asyncio.run(measure(max(20, count // 4), "constant"))
    overhead = plain["through"] - plain["direct"]
    cpu = sum(value for name, value in plain.items() if name.startswith("cpu ") and name != "cpu devnet")
    rows += [{"part": f"process: {role}", "cpu_ms": plain[f"cpu {role}"]} for role in ("client", "proxy", "worker")]
    rows += [
        {"part": "straight to the engine", "wall_ms": plain["direct"]},
        {"part": "through the network, shape off", "wall_ms": plain["through"], "cpu_ms": cpu},
        {"part": "  more than the engine itself", "wall_ms": overhead, "cpu_ms": cpu},
        {"part": "through the network, constant shape", "wall_ms": shaped["through"]},
        {"part": "  of which waiting for ticks", "wall_ms": shaped["through"] - plain["through"]},
        {"part": "first request after start, shape off", "wall_ms": plain["first"]},
    ]
    if not given.quick:
        model = asyncio.run(measure_model(20))
        rows += [
            {"part": "real model, straight", "wall_ms": model["direct"]},
            {"part": "real model, through the network", "wall_ms": model["through"]},
        ]
    goals = [
        Goal("appraisal cold, ms", pieces["appraisal, cold"] * 1000, "<=", 2.0),
        Goal("overhead wall, ms", overhead, "<=", 2.0),
        Goal("overhead CPU of all roles, ms", cpu, "<=", 1.0),
        Goal("first request, ms more", plain["first"] - plain["through"], "<=", 60.0),
    ]
    report("overhead", rows, goals, as_json=given.json)


if __name__ == "__main__":
    main()
