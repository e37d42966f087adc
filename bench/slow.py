# SPDX-License-Identifier: Apache-2.0
"""Applications that leave, and ones that do not read: how soon work stops, and what memory they cost.

A whole network of processes. Leaving: from closing the connection to the client's endpoint until the engine's run is
ended, through client, proxy and worker. Not reading: an answer of many megabytes is asked for and left unread; every
role must hold what its windows allow and no more, and another application's answer must not wait for it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop
from _load import memory_of
from _machine import Goal, options, report
from _network import MODEL, Engine, Network

ROLES = ("client", "proxy", "worker-0")
UNREAD = 60_000  # words of the answer nobody reads, a kilobyte each
FILLING = 8.0  # seconds until the sockets' buffers between the roles are full
PATIENCE = 6.0  # seconds it is left unread after that
ALLOWED = 2.0  # MB a role may grow by then: it has stopped
PIECE = 4_096  # bytes read before the application stops reading


def question(stream: bool, tokens: int) -> bytes:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "leaf " * 60}], "max_tokens": tokens}
    return json.dumps({**asked, "stream": stream}).encode()


async def leaving(url: str, engine: Engine, times: int) -> list[float]:
    """Milliseconds from the application's leaving to the engine's stopping."""
    engine.words, engine.pause = 500, 0.02
    took = []
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession() as http:
        for _ in range(times):
            ended = len(engine.ended_early)
            answer = await http.post(f"{url}/chat/completions", data=question(True, 600), headers=headers)
            await answer.content.readany()
            await asyncio.sleep(0.05)
            left = asyncio.get_running_loop().time()
            answer.close()
            async with asyncio.timeout(10):
                while len(engine.ended_early) == ended:  # noqa: ASYNC110 - the engine is told of by its web server
                    await asyncio.sleep(0.001)
            took.append((engine.ended_early[-1] - left) * 1000)
    return took


@dataclass
class Unread:
    """Memory in MB, by role: for the unread answer at the most, and of that, after the sockets were full."""

    held: dict[str, float]
    grown: dict[str, float]
    alone: float  # seconds of another's answer before
    beside: float  # and beside the unread one


async def unread(url: str, engine: Engine, network: Network) -> Unread:
    engine.words, engine.pause = 8, 0.0
    alone = await other(url)
    before = memory(network)
    engine.words, engine.word = UNREAD, " silk" * 200
    host, port = url.split("//")[1].split("/")[0].split(":")
    mouth = socket.socket()
    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
    mouth.setblocking(False)
    await asyncio.get_running_loop().sock_connect(mouth, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=mouth, limit=PIECE)
    body = question(True, UNREAD + 10)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await reader.read(PIECE)
    engine.words, engine.word = 8, " silk"
    await asyncio.sleep(FILLING)
    full = memory(network)
    beside = await other(url)
    await asyncio.sleep(PATIENCE)
    after = memory(network)
    writer.transport.abort()
    held = {name: max(full[name], after[name]) - before[name] for name in ROLES}
    return Unread(held, {name: after[name] - full[name] for name in ROLES}, alone, beside)


def memory(network: Network) -> dict[str, float]:
    return {name: memory_of(network.children[name].pid) for name in ROLES}


async def other(url: str) -> float:
    """Seconds of a short whole answer, the median of five."""
    took = []
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession() as http:
        for _ in range(5):
            began = time.monotonic()
            async with http.post(f"{url}/chat/completions", data=question(False, 64), headers=headers) as answer:
                text = await answer.read()
                if answer.status != 200:
                    raise SystemExit(text.decode())
            took.append(time.monotonic() - began)
    return statistics.median(took)


async def measure(quick: bool) -> tuple[list[dict[str, object]], list[Goal]]:
    engine = Engine()
    address = await engine.start()
    with tempfile.TemporaryDirectory() as folder:
        network = Network(Path(folder))
        try:
            url = await network.up(address, workers=1, capacity=8, shape="off")
            took = sorted(await leaving(url, engine, 15 if quick else 60))
            found = await unread(url, engine, network)
        finally:
            await network.down()
            await engine.stop()
    rows: list[dict[str, object]] = [
        {"what": "left: engine stopped after, p50", "ms": statistics.median(took)},
        {"what": "left: engine stopped after, longest", "ms": took[-1]},
        *({"what": f"unread: {name} holds", "MB": megabytes} for name, megabytes in found.held.items()),
        *({"what": f"unread: {name} grew then by", "MB": megabytes} for name, megabytes in found.grown.items()),
        {"what": "another's answer, alone", "ms": found.alone * 1000},
        {"what": "another's answer, beside the unread one", "ms": found.beside * 1000},
    ]
    goals = [Goal("left: engine stopped, p50 ms", statistics.median(took), "<=", 50)]
    goals += [Goal(f"unread: {name} grew, sockets full, MB", more, "<=", ALLOWED) for name, more in found.grown.items()]
    goals.append(Goal("another's answer, beside the unread one / alone", found.beside / found.alone, "<=", 2.0))
    return rows, goals


def main() -> None:
    given = options(__doc__)
    rows, goals = uvloop.run(measure(given.quick))
    report("slow", rows, goals, as_json=given.json)


if __name__ == "__main__":
    main()
