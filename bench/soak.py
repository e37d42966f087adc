# SPDX-License-Identifier: Apache-2.0
"""Minutes of constant load on a network of processes, then more than it can take: flat memory, no lost receipt.

Chain, proxy, two workers and a client, with an engine that follows a script. Applications ask without pause: whole
answers, streams, and streams they leave half way; one worker is restarted. Memory is watched in every role. Then more
ask than the workers hold: the rest must be turned away at once, those let in served in time, and all be well 2 s later.
At the end every role is stopped and its books are read: what client, proxy and workers say each was paid must agree to
the unit, and every whole answer have its receipt. `make soak`; SOAK_SECONDS sets the length (600; --quick: 45).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import _books
import aiohttp
import uvloop
from _load import memory_of
from _machine import Goal, options, report
from _network import MODEL, Engine, Network

from bombyx.adapters.ledger_http import HttpLedger

APPLICATIONS = 5  # one worker alone holds them, while the other is started again
WORKERS, CAPACITY = 2, 8
BPS = 500
CROWD = 3  # times as many as the workers hold
NOISE = 4.0  # MB a role may come and go by
IDS = 0.5  # MB per 1,000 requests: ids of ended ones, so that none is charged twice; the newest 4,096 a channel
PHASE = 6.0  # seconds at capacity, and beyond it
LIMITS = {"BOMBYX_PROXY_RATE_PER_CHANNEL": "100000", "BOMBYX_PROXY_OPEN_PER_CHANNEL": "250"}
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "leaf " * 60}], "max_tokens": 64}


@dataclass
class Seen:
    """What the applications saw."""

    whole: int = 0  # answers that were read to their end
    left: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    served: list[float] = field(default_factory=list)  # seconds
    shed: list[float] = field(default_factory=list)
    silent: int = 0  # refusals without Retry-After
    words: Counter[str] = field(default_factory=Counter)


class Applications:
    """Ask the client's endpoint."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._rng = random.Random(1)

    async def close(self) -> None:
        await self._http.close()

    async def run(self, count: int, seconds: float, seen: Seen, *, mixed: bool) -> None:
        until = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < until:
                kind = self._rng.choices(("whole", "stream", "left"), (9, 9, 2))[0] if mixed else "whole"
                await asyncio.sleep(await self.ask(kind, seen))

        await asyncio.gather(*(one() for _ in range(count)))

    async def ask(self, kind: str, seen: Seen) -> float:
        """Seconds until this application may ask again."""
        body = {**QUESTION, "stream": kind != "whole"}
        began = time.monotonic()
        async with self._http.post(f"{self._url}/chat/completions", json=body) as answer:
            seen.statuses[answer.status] += 1
            if kind == "left" and answer.status == 200:
                await answer.content.readany()
                seen.left += 1
                return 0.0  # leaving the block closes the connection
            text = await answer.read()
            took = time.monotonic() - began
            if answer.status == 200 and (kind == "whole" or text.rstrip().endswith(b"[DONE]")):
                seen.whole += 1
                seen.served.append(took)
                return 0.0
            if answer.status in (429, 503):
                seen.shed.append(took)
                seen.silent += "Retry-After" not in answer.headers
            seen.words[text[-200:].decode(errors="replace")] += 1
            return float(answer.headers.get("Retry-After", 0.1))


class Memory:
    """Every role's, each second."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.samples: dict[str, list[tuple[int, float]]] = {}  # answers so far, MB

    async def watch(self, seen: Seen) -> None:
        while True:
            for name, child in self._network.children.items():
                if child.running:
                    self.samples.setdefault(name, []).append((seen.whole + seen.left, memory_of(child.pid)))
            await asyncio.sleep(1.0)

    def slope(self, name: str) -> float:
        """MB per 1,000 requests, least squares over the last half."""
        half = self._half(name)
        mean_x = sum(x for x, _ in half) / len(half)
        mean_y = sum(y for _, y in half) / len(half)
        spread = sum((x - mean_x) ** 2 for x, _ in half)
        return sum((x - mean_x) * (y - mean_y) for x, y in half) / spread * 1000 if spread else 0.0

    def growth(self, name: str) -> float:
        """What the last half added, of what it may: noise, and IDS for what must be remembered of each request."""
        half = self._half(name)
        requests = (half[-1][0] - half[0][0]) / 1000
        return self.slope(name) * requests / (NOISE + IDS * requests)

    def _half(self, name: str) -> list[tuple[int, float]]:
        return self.samples[name][len(self.samples[name]) // 2 :]


def quantile(values: list[float], share: float) -> float:
    """Milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else float("nan")


async def steady(network: Network, applications: Applications, seconds: float) -> tuple[Seen, Memory]:
    seen, memory = Seen(), Memory(network)
    watching = asyncio.create_task(memory.watch(seen))

    async def restart() -> None:
        await asyncio.sleep(seconds / 4)
        await network.restart_worker(1)

    await asyncio.gather(applications.run(APPLICATIONS, seconds, seen, mixed=True), restart())
    watching.cancel()
    return seen, memory


async def overload(applications: Applications) -> tuple[Seen, Seen, Seen]:
    """At capacity, beyond it, and 2 s after."""
    full, beyond, after = Seen(), Seen(), Seen()
    await applications.run(WORKERS * CAPACITY, PHASE, full, mixed=False)
    await applications.run(WORKERS * CAPACITY * CROWD, PHASE, beyond, mixed=False)
    await asyncio.sleep(2.0)
    await applications.run(WORKERS * CAPACITY // 2, 2.0, after, mixed=False)
    return full, beyond, after


async def measure(seconds: float) -> tuple[list[dict[str, object]], list[Goal]]:
    engine = Engine(pause=0.02)
    url = await engine.start()
    with tempfile.TemporaryDirectory() as folder:
        network = Network(Path(folder), environment=LIMITS)
        try:
            applications = Applications(await network.up(url, workers=WORKERS, capacity=CAPACITY, shape="off"))
            seen, memory = await steady(network, applications, seconds)
            phases = await overload(applications)
            await applications.close()
            await asyncio.sleep(3.0)  # answers that were left are settled meanwhile
            ledger = HttpLedger(network.children["devnet"].ready["url"])
            info = await ledger.info()
            await ledger.close()
        finally:
            await network.down()
            await engine.stop()
        books = await _books.read(Path(folder), WORKERS, info)
    answers = seen.whole + sum(phase.whole for phase in phases)
    faults = books.faults(BPS, answers)
    for fault in faults:
        sys.stderr.write(f"books: {fault}\n")
    for phase in (seen, *phases):
        for text, count in phase.words.most_common(3):
            sys.stderr.write(f"{count} times: {text}\n")
    return rows(seen, memory, phases, books), goals(seen, memory, phases, faults)


def rows(seen: Seen, memory: Memory, phases: tuple[Seen, Seen, Seen], books: _books.Books) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for name, one in zip(("steady", "at capacity", "beyond", "2 s after"), (seen, *phases), strict=True):
        row: dict[str, object] = {"what": name, "answers": one.whole, "left": one.left, "shed": len(one.shed)}
        row |= {"p50 ms": quantile(one.served, 0.5), "p99 ms": quantile(one.served, 0.99)}
        if one.shed:
            row |= {"shed p50 ms": quantile(one.shed, 0.5), "shed p99 ms": quantile(one.shed, 0.99)}
        found.append(row)
    for name, samples in memory.samples.items():
        found.append({"what": name, "MB at first": samples[0][1], "MB at last": samples[-1][1],
                      "MB per 1,000": memory.slope(name)})  # fmt: skip
    found.append({"what": "books", "client": books.client_agreed, "proxy": books.proxy_charged,
                  "to workers": books.proxy_agreed, "workers": books.worker_charged})  # fmt: skip
    return found


def goals(seen: Seen, memory: Memory, phases: tuple[Seen, Seen, Seen], faults: list[str]) -> list[Goal]:
    full, beyond, after = phases
    odd, others = (
        sum(count for status, count in one.statuses.items() if status not in (200, 429, 503)) for one in (beyond, seen)
    )
    asked = seen.whole + seen.left + len(seen.shed)
    refusal, answer = quantile(beyond.shed, 0.5), quantile(full.served, 0.5)
    last = quantile(beyond.served, 0.99) / quantile(full.served, 0.99)
    found = [
        Goal(f"memory of {name}: growth of the last half, of what is allowed", memory.growth(name), "<=", 1.0)
        for name in memory.samples
        if name != "devnet"
    ]
    found += [
        Goal("books that do not agree, receipts that are missing", float(len(faults)), "==", 0),
        Goal("steady: refused while a worker restarts, of all", len(seen.shed) / max(1, asked), "<=", 0.05),
        Goal("steady: other failures", float(others), "==", 0),
        Goal("overload: refused", float(len(beyond.shed)), ">", 0),
        Goal("overload: refused without Retry-After", float(beyond.silent), "==", 0),
        Goal("overload: other failures", float(odd), "==", 0),
        Goal("overload: p50 of a refusal / of an answer at capacity", refusal / answer, "<=", 0.5),
        Goal("overload: p99 of answers / at capacity", last, "<=", 2.0),
        Goal("2 s after: refused", float(len(after.shed)), "==", 0),
        Goal("2 s after: p50 / at capacity", quantile(after.served, 0.5) / quantile(full.served, 0.5), "<=", 1.2),
    ]  # fmt: skip
    return found


def main() -> None:
    given = options(__doc__)
    seconds = float(os.environ.get("SOAK_SECONDS") or (45 if given.quick else 600))
    found, met = uvloop.run(measure(seconds))
    report("soak", found, met, as_json=given.json)


if __name__ == "__main__":
    main()
