# SPDX-License-Identifier: Apache-2.0
"""How good is the choice of a worker? A simulation: Poisson arrivals at slow, failing and lying workers (spec MKT-5).

Rules compared, all on the same arrivals: Cocoon's (least running x average time, failures count as time, first wins
ties), power of two choices on running requests, ours among the client's k candidates, an omniscient choice among the
same k (it knows true speeds and remaining work), and the omniscient choice among all workers.

A worker runs its streams side by side, each slowed by the share of its capacity that is busy. Latency is from the
request to the last unit, failovers included.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from _machine import Goal, report

from bombyx.protocol.market import Contender, Load, WorkerStats, choose, draw
from bombyx.protocol.primitives import Address, Amount, Digest, Secret

FAIL_SECONDS = 0.05  # a failing worker refuses this fast
WARM_UP = 0.2  # share of the run that is not counted
PRICE = Amount(1000)


@dataclass
class Worker:
    """Truth about one worker, which only the omniscient rules may read."""

    index: int
    speed: float  # units per second of a stream that is alone
    capacity: int
    failing: bool = False
    served: float = 0.0  # units every stream has received so far (virtual time)
    at: float = 0.0
    running: list[tuple[float, int]] = field(default_factory=list)  # (virtual end, request)
    stats: WorkerStats = field(default_factory=lambda: WorkerStats.fresh("cpu"))
    average: float = 0.0  # Cocoon's: mean time of all requests, failures too
    count: int = 0

    @property
    def digest(self) -> Digest:
        return Digest(hashlib.sha256(self.index.to_bytes(4)).digest())

    @property
    def share(self) -> float:
        return len(self.running) / self.capacity

    def rate(self) -> float:
        return self.speed / (1.0 + self.share)

    def advance(self, now: float) -> None:
        if self.running:
            self.served += (now - self.at) * self.rate()
        self.at = now

    def next_end(self) -> float:
        return self.at + (self.running[0][0] - self.served) / self.rate() if self.running else math.inf

    def true_seconds(self, units: int) -> float:
        if self.failing or len(self.running) >= self.capacity:
            return math.inf
        return units * (1.0 + (len(self.running) + 1) / self.capacity) / self.speed


Rule = Callable[[Sequence[Worker], int, float, random.Random], list[Worker]]


def cocoon(workers: Sequence[Worker], units: int, now: float, rng: random.Random) -> list[Worker]:
    able = [w for w in workers if len(w.running) < w.capacity]
    return sorted(able, key=lambda w: len(w.running) * w.average)[:1]


def power_of_two(workers: Sequence[Worker], units: int, now: float, rng: random.Random) -> list[Worker]:
    pair = rng.sample(list(workers), min(2, len(workers)))
    able = [w for w in pair if len(w.running) < w.capacity]
    return sorted(able, key=lambda w: len(w.running))


def ours(workers: Sequence[Worker], units: int, now: float, rng: random.Random) -> list[Worker]:
    contenders = [
        Contender(worker=w.digest, price=PRICE, load=Load(active=len(w.running), queued=0, capacity=w.capacity),
                  stats=w.stats)
        for w in workers
    ]  # fmt: skip
    by_digest = {w.digest: w for w in workers}
    choice = choose(contenders, output_units=units, now=now, lottery=rng.random())
    return [by_digest[d] for d in choice.ranking]


def omniscient(workers: Sequence[Worker], units: int, now: float, rng: random.Random) -> list[Worker]:
    able = [w for w in workers if w.true_seconds(units) < math.inf]
    return sorted(able, key=lambda w: w.true_seconds(units))


@dataclass
class Result:
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    dispatches: int = 0
    to_failing: int = 0

    def p(self, q: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else math.inf

    @property
    def failing_share(self) -> float:
        return self.to_failing / max(1, self.dispatches)


class Simulation:
    """One rule, one population, one stream of arrivals."""

    def __init__(self, rule: Rule, workers: list[Worker], k: int | None, load: float, requests: int, seed: int) -> None:
        self.rule, self.workers, self.rng = rule, workers, random.Random(seed)
        self.requests, self.seed, self.k = requests, seed, k
        honest = [w for w in workers if not w.failing]
        mean_units = 160.0
        self.interval = mean_units / (load * sum(w.speed * w.capacity / 2.0 for w in honest))
        self.operators = [Address(hashlib.sha256(b"op" + w.index.to_bytes(4)).digest()[:20]) for w in workers]
        self.clients = [Secret(hashlib.sha256(b"client" + i.to_bytes(4)).digest()) for i in range(200)]
        self.by_operator = dict(zip(self.operators, workers, strict=True))
        self.drawn: dict[int, list[Worker]] = {}
        self.open: dict[int, tuple[float, float, int, float]] = {}  # request -> arrived, started, units, share
        self.result = Result()

    def candidates(self, client: int) -> list[Worker]:
        if self.k is None:
            return self.workers
        if client not in self.drawn:
            picked = draw(self.clients[client], Digest.zero(), 0, self.operators, self.k)
            self.drawn[client] = [self.by_operator[o] for o in picked]
        return self.drawn[client]

    def run(self) -> Result:
        arrivals = random.Random(self.seed + 1)
        now = 0.0
        for number in range(self.requests):
            now += arrivals.expovariate(1.0 / self.interval)
            units = max(1, min(1024, int(arrivals.lognormvariate(math.log(110), 0.85))))
            client = arrivals.randrange(len(self.clients))
            self.finish_until(now)
            self.place(number, client, units, now, counted=number >= self.requests * WARM_UP)
        self.finish_until(math.inf)
        return self.result

    def finish_until(self, now: float) -> None:
        while True:
            worker = min(self.workers, key=Worker.next_end)
            end = worker.next_end()
            if end > now or end == math.inf:
                return
            worker.advance(end)
            _, number = heapq.heappop(worker.running)
            arrived, started, units, share = self.open.pop(number)
            worker.stats = worker.stats.finished(end, units, end - started, share)
            self.note_average(worker, end - started)
            if number >= self.requests * WARM_UP:
                self.result.latencies.append(end - arrived)

    def place(self, number: int, client: int, units: int, now: float, *, counted: bool) -> None:
        """Try the rule's ranking in order; Cocoon has no second try, so its list holds one."""
        lost = 0.0
        for worker in self.rule(self.candidates(client), units, now, self.rng):
            worker.stats = worker.stats.dispatched(now)
            if counted:
                self.result.dispatches += 1
                self.result.to_failing += worker.failing
            if worker.failing:
                worker.stats = worker.stats.failed(now)
                self.note_average(worker, FAIL_SECONDS)
                lost += FAIL_SECONDS
                continue
            worker.advance(now)
            share = (len(worker.running) + 1) / worker.capacity
            heapq.heappush(worker.running, (worker.served + units, number))
            self.open[number] = (now - lost, now, units, share)
            return
        self.result.refused += counted

    @staticmethod
    def note_average(worker: Worker, seconds: float) -> None:
        worker.count += 1
        worker.average += (seconds - worker.average) / min(worker.count, 100)


def equal_with_one_failing() -> list[Worker]:
    return [Worker(index=i, speed=50.0, capacity=8, failing=i == 3) for i in range(8)]


def mixed() -> list[Worker]:
    """24 workers: fast, ordinary, slow ones; two fail fast; all claim the same hardware class, so slow ones lie."""
    speeds = [120.0] * 4 + [60.0] * 12 + [20.0] * 6 + [60.0] * 2
    return [Worker(index=i, speed=s, capacity=8, failing=i >= 22) for i, s in enumerate(speeds)]


def median_over(seeds: int, make: Callable[[int], Result], value: Callable[[Result], float]) -> float:
    return statistics.median(value(make(seed)) for seed in range(seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    requests, seeds = (4_000, 3) if options.quick else (20_000, 5)

    def simulate(rule: Rule, people: Callable[[], list[Worker]], k: int | None, load: float) -> list[Result]:
        return [Simulation(rule, people(), k, load, requests, 100 + s).run() for s in range(seeds)]

    def median(results: list[Result], value: Callable[[Result], float]) -> float:
        return statistics.median(value(r) for r in results)

    rows: list[dict[str, object]] = []

    def row(where: str, rule: str, k: int | None, results: list[Result]) -> dict[str, float]:
        figures = {
            "p50_s": median(results, lambda r: r.p(0.5)),
            "p95_s": median(results, lambda r: r.p(0.95)),
            "failing_share": median(results, lambda r: r.failing_share),
            "refused_share": median(results, lambda r: r.refused / max(1, requests * (1 - WARM_UP))),
        }
        rows.append({"where": where, "rule": rule, "k": k or "all", **{n: round(v, 4) for n, v in figures.items()}})
        return figures

    one = "8 equal workers, one fails fast"
    row(one, "Cocoon", None, simulate(cocoon, equal_with_one_failing, None, 0.5))
    row(one, "power of two", None, simulate(power_of_two, equal_with_one_failing, None, 0.5))
    mine = row(one, "bombyx", 3, simulate(ours, equal_with_one_failing, 3, 0.5))
    many = "24 mixed workers, 2 fail, 6 slow"
    row(many, "Cocoon", None, simulate(cocoon, mixed, None, 0.5))
    row(many, "power of two", None, simulate(power_of_two, mixed, None, 0.5))
    p95_ours = row(many, "bombyx", 3, simulate(ours, mixed, 3, 0.5))["p95_s"]
    p95_same = row(many, "omniscient, same k", 3, simulate(omniscient, mixed, 3, 0.5))["p95_s"]
    p95_best = row(many, "omniscient, all", None, simulate(omniscient, mixed, None, 0.5))["p95_s"]
    for k in (1, 2, 5, 8):
        row(many, "bombyx", k, simulate(ours, mixed, k, 0.5))
    for entry in rows:
        if entry["where"] == many:
            entry["p95_to_global_best"] = round(float(str(entry["p95_s"])) / p95_best, 3)
    report(
        "market",
        rows,
        [
            Goal("share of traffic a fast-failing worker gets", mine["failing_share"], "<", 0.01),
            Goal("p95 to an omniscient choice among the same k", p95_ours / p95_same, "<=", 1.10),
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
