# SPDX-License-Identifier: Apache-2.0
"""Selection and directory with 10, 1,000 and 100,000 workers: decisions per second, memory, and how good the choice is.

In one process, without a network: the proxy's directory and choice, the client's reading of it, its draw and its
appraisals. Evidence is real, but made only for the workers the client's secret will draw: were it to fetch another's,
the run would end there. Quality: requests arrive and leave at a steady 60 % of all capacity; each goes to the best of
three drawn at random, or to the best of all, by the same expectation of time and price. "Of the best" compares means.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from _machine import Goal, options, report
from _sealed import CLOCK, ENTROPY, MANIFEST, MODEL, PRICE

from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.simulator import SimulatedEnclave, SimulatedEndorsements, SimulatedPlatform, development_policy
from bombyx.ports import Operator, OperatorRole, ProxyTransport
from bombyx.protocol.market import Contender, Load, WorkerStats, choose, draw, epoch_of
from bombyx.protocol.market.choice import PRICE_WEIGHT, expected_seconds
from bombyx.protocol.primitives import Address, Amount, Digest, RequestId, Secret, sha256
from bombyx.protocol.seal import GatewayKey, Kem, parse_key_configs
from bombyx.protocol.wire.market import Directory, DirectoryReader, Offer, PriceSheet, write_directory
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.candidates import Candidates
from bombyx.roles.client.evidence import EvidenceCache
from bombyx.roles.client.network import Network
from bombyx.roles.client.settings import ClientSettings, ProxyLine
from bombyx.roles.client.tally import Tally
from bombyx.roles.worker.evidence import EvidenceMaker
from bombyx.roles.worker.keys import BootKeys, Keyring
from bombyx.roles.worker.settings import Timings

SIZES = (10, 1_000, 100_000)
K = 3
PROXY = Address(b"P" * 20)
SECRET = Secret(bytes(range(32)))
UTILISATION = 0.6
CAPACITY = 4
OUTPUT = 200  # units of one answer


def name(text: str) -> Digest:
    return sha256(text.encode())


def resident() -> float:
    """Megabytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(milliseconds of processor time, what it gave)."""
    began = time.process_time()
    found = work()
    return (time.process_time() - began) * 1000, found


# --- a network of any size -------------------------------------------------------------------------------------------


@dataclass
class Population:
    """Operators, their registry lines and offers; evidence for those that will be drawn."""

    size: int
    ledger: BigLedger
    platform: SimulatedPlatform
    offers: list[Offer] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)

    async def make(self) -> None:
        operators = [Address(name(f"operator {n}")[:20]) for n in range(self.size)]
        epoch = epoch_of(CLOCK.now())  # and the next, should it begin while we measure
        drawn = {who for one in (epoch, epoch + 1) for who in draw(SECRET, MODEL, one, operators, K)}
        self.blobs[MODEL.hex()] = MANIFEST.encode()
        until = CLOCK.now().plus(seconds=3600)
        for number, operator in enumerate(operators):
            sheet = PriceSheet(v=1, operator=operator, grain=16, prices=(PRICE,)).encode()
            self.blobs[sha256(sheet).hex()] = sheet
            line = Operator(
                address=operator, role=OperatorRole.WORKER, endpoint="", receipt_address=operator,
                pay_authorizer=operator, pay_key_config=b"", price_sheet=sha256(sheet), models=(MODEL,),
            )  # fmt: skip
            offer = Offer(
                v=1, operator=operator, bundle=name(f"bundle {number}"), candidates=(name(f"key {number}"),),
                models=(MODEL,), price_sheet=sha256(sheet), hardware="h100", not_after=until,
            )  # fmt: skip
            if operator in drawn:
                line, offer = await self._proven(line, offer)
            self.ledger.lines.append(line)
            self.offers.append(offer)

    async def _proven(self, line: Operator, offer: Offer) -> tuple[Operator, Offer]:
        boot, keyring = BootKeys.make(ENTROPY), Keyring()
        maker = EvidenceMaker(
            operator=line.address, chain=await self.ledger.info(), boot=boot, manifests=[MANIFEST],
            device=SimulatedEnclave(platform=self.platform),
            endorser=SimulatedEndorsements(platform=self.platform, clock=CLOCK),
            ledger=self.ledger, clock=CLOCK, timings=Timings(),
        )  # fmt: skip
        period = await maker.period(keyring.new_gateways(ENTROPY))
        self.blobs[period.bundle_digest.hex()] = period.bundle
        ids = tuple(config.candidate_id() for config in parse_key_configs(period.keyset.ohttp_key_config))
        line = replace(line, receipt_address=boot.receipt.address, pay_authorizer=boot.pay_authorizer.address)
        return line, replace(offer, bundle=period.bundle_digest, candidates=ids)

    def directory(self) -> bytes:
        bare = Directory(v=1, proxy=PROXY, commission_bps=500, at=CLOCK.now(), offers=())
        return write_directory(bare, [offer.encode() for offer in self.offers])

    # as a `ProxyTransport`

    async def get(self, path: str) -> tuple[int, bytes]:
        if path == "/v1/directory":
            return 200, self.directory()
        digest = path.removeprefix("/v1/blob/")
        if digest not in self.blobs:
            raise SystemExit("the client fetched evidence of a worker that was not drawn")
        return 200, self.blobs[digest]


class BigLedger(MemoryLedger):
    """A chain whose registry lists whom we say."""

    def __init__(self) -> None:
        super().__init__(CLOCK)
        self.lines: list[Operator] = []

    async def operators(self, role: OperatorRole) -> tuple[Operator, ...]:
        return tuple(self.lines) if role is OperatorRole.WORKER else ()


# --- the client ------------------------------------------------------------------------------------------------------


async def client(size: int, platform: SimulatedPlatform, requests: int) -> dict[str, float]:
    """One client's first request and many later ones."""
    people = Population(size, BigLedger(), platform)
    await people.make()
    store, settings = MemoryStore(), ClientSettings(single_share_bps=0)
    blobs = Blobs(store)
    evidence = EvidenceCache(development_policy(platform).offline(), clock=CLOCK, ledger=people.ledger, blobs=blobs)
    network = Network(settings, clock=CLOCK, ledger=people.ledger, blobs=blobs)
    candidates = Candidates(settings, SECRET, clock=CLOCK, evidence=evidence, blobs=blobs, tally=Tally())
    line = ProxyLine(address=PROXY, transport=cast(ProxyTransport, people), url="memory")
    encoded = people.directory()
    reader = DirectoryReader()
    before = resident()
    first_read, kept = timed(lambda: reader.read(encoded))
    memory = resident() - before
    later_read, _ = timed(lambda: reader.read(encoded))
    del kept
    view = await network.view(line)
    model = await network.resolve(MANIFEST.name, view)

    async def draws(count: int) -> float:
        began = time.process_time()
        for _ in range(count):
            chosen = await candidates.choose(view, model, RequestId(ENTROPY.bytes(16)))
            assert len(chosen) == min(K, size)
        return (time.process_time() - began) / count

    first = await draws(1)
    later = await draws(requests)
    return {
        "directory MB": len(encoded) / 2**20,
        "read first ms": first_read,
        "read again ms": later_read,
        "client MB": max(0.0, memory),
        "first draw ms": first * 1000,
        "draws/s": 1 / later,
        "appraised": float(len(evidence.all())),
    }


async def appraisals(platform: SimulatedPlatform, count: int) -> dict[str, object]:
    """What remembering one worker's evidence costs."""
    import tracemalloc

    people = Population(count, BigLedger(), platform)
    people.blobs[MODEL.hex()] = MANIFEST.encode()
    lines, offers = [], []
    for number in range(count):
        operator = Address(name(f"operator {number}")[:20])
        line = Operator(
            address=operator, role=OperatorRole.WORKER, endpoint="", receipt_address=operator, pay_authorizer=operator,
            pay_key_config=b"", price_sheet=Digest.zero(), models=(MODEL,),
        )  # fmt: skip
        offer = Offer(
            v=1, operator=operator, bundle=Digest.zero(), candidates=(), models=(MODEL,), price_sheet=Digest.zero(),
            hardware="h100", not_after=CLOCK.now().plus(seconds=3600),
        )  # fmt: skip
        made = await people._proven(line, offer)
        lines.append(made[0])
        offers.append(made[1])
    people.ledger.lines = lines
    blobs = Blobs(MemoryStore(), memory=0)
    evidence = EvidenceCache(development_policy(platform).offline(), clock=CLOCK, ledger=people.ledger, blobs=blobs)
    proxy = ProxyLine(address=PROXY, transport=cast(ProxyTransport, people), url="memory")
    began = time.process_time()
    for offer, line in zip(offers[: count // 2], lines, strict=False):
        await evidence.appraised(offer, line, proxy)
    cold = (time.process_time() - began) / (count // 2)
    tracemalloc.start()
    for offer, line in list(zip(offers, lines, strict=True))[count // 2 :]:
        await evidence.appraised(offer, line, proxy)
    size = tracemalloc.get_traced_memory()[0] / (count - count // 2)
    tracemalloc.stop()
    began = time.process_time()
    for _ in range(10):
        for offer, line in zip(offers, lines, strict=True):
            await evidence.appraised(offer, line, proxy)
    again = (time.process_time() - began) / 10 / count
    return {"what": "evidence", "appraise ms": cold * 1000, "again us": again * 1e6, "kept kB": size / 1024}


# --- the proxy -------------------------------------------------------------------------------------------------------


@dataclass
class Seated:
    """One worker as a proxy weighs it."""

    id: Digest
    price: Amount
    stats: WorkerStats
    active: int = 0

    def contender(self) -> Contender:
        load = Load(active=self.active, queued=0, capacity=CAPACITY)
        return Contender(worker=self.id, price=self.price, load=load, stats=self.stats)

    def score(self) -> float:
        """As `choose` weighs: expected seconds times the price factor. All are of one reputation here."""
        return expected_seconds(self.contender(), OUTPUT, 0.0) * float(int(self.price) ** PRICE_WEIGHT)


def seated(size: int, rng: random.Random) -> list[Seated]:
    found = []
    for number in range(size):
        pace = 1 / rng.uniform(20, 120)
        stats = replace(WorkerStats.fresh("h100"), seconds_per_unit=pace, first_frame=rng.uniform(0.1, 0.6), seen=100)
        found.append(Seated(name(f"seat {number}"), Amount(rng.randrange(800, 1600)), stats))
    return found


def three(people: list[Seated], rng: random.Random) -> Callable[[], Seated]:
    """The shipped rule: three drawn, the proxy's choice among them; full ones are drawn again by other clients."""
    by_id = {one.id: one for one in people}

    def pick() -> Seated:
        while True:
            drawn = rng.sample(people, min(K, len(people)))
            choice = choose([one.contender() for one in drawn], output_units=OUTPUT, now=0.0, lottery=rng.random())
            if choice.worker is not None:
                return by_id[choice.worker]

    return pick


class Best:
    """The best of all, from a heap whose stale entries are dropped when they surface."""

    def __init__(self, people: list[Seated]) -> None:
        self._people = people
        self._heap = [(one.score(), n, 0) for n, one in enumerate(people)]
        self._at = {one.id: n for n, one in enumerate(people)}
        self._version = [0] * len(people)
        heapq.heapify(self._heap)

    def __call__(self) -> Seated:
        while True:
            _, number, version = self._heap[0]
            if version == self._version[number] and self._people[number].active < CAPACITY:
                return self._people[number]
            heapq.heappop(self._heap)

    def changed(self, one: Seated) -> None:
        number = self._at[one.id]
        self._version[number] += 1
        if one.active < CAPACITY:
            heapq.heappush(self._heap, (one.score(), number, self._version[number]))


def mean_score(people: list[Seated], pick: Callable[[], Seated], rng: random.Random, counted: int) -> float:
    """Fill to the utilisation, turn over, then look at `counted` decisions."""
    running: list[Seated] = []
    told = getattr(pick, "changed", lambda _: None)
    scores = []
    fill = int(len(people) * CAPACITY * UTILISATION)
    for step in range(fill + fill // 2 + counted):
        if step >= fill:
            place = rng.randrange(len(running))
            running[place], running[-1] = running[-1], running[place]
            gone = running.pop()
            gone.active -= 1
            told(gone)
        chosen = pick()
        if step >= fill + fill // 2:
            scores.append(chosen.score())
        chosen.active += 1
        running.append(chosen)
        told(chosen)
    return statistics.fmean(scores)


def quality(size: int, counted: int) -> float:
    """Mean score of the best possible choice over ours: 1 is as good as it gets."""
    ours, best = (seated(size, random.Random(1)) for _ in range(2))
    mine = mean_score(ours, three(ours, random.Random(2)), random.Random(3), counted)
    theirs = mean_score(best, Best(best), random.Random(3), counted)
    return theirs / mine


def decisions(size: int, count: int) -> float:
    """Choices a second: three candidates looked up, weighed, ranked."""
    rng = random.Random(4)
    people = seated(size, rng)
    by_id = {one.id: one for one in people}
    drawn = [[one.id for one in rng.sample(people, min(K, size))] for _ in range(1000)]
    gc.collect()
    gc.freeze()  # as a proxy does when it has started

    def work() -> None:
        for n in range(count):
            found = [by_id[one].contender() for one in drawn[n % 1000]]
            choose(found, output_units=OUTPUT, now=0.0, lottery=0.5)

    return count / timed(work)[0] * 1000


def directory_ms(size: int) -> float:
    """Making a proxy's directory anew after one worker came or went; offers are encoded when a worker comes."""
    one = Offer(
        v=1, operator=PROXY, bundle=MODEL, candidates=(MODEL, MODEL), models=(MODEL,), price_sheet=MODEL,
        hardware="h100", not_after=CLOCK.now(),
    ).encode()  # fmt: skip
    offers = [one] * size
    bare = Directory(v=1, proxy=PROXY, commission_bps=500, at=CLOCK.now(), offers=())
    return min(timed(lambda: write_directory(bare, offers))[0] for _ in range(5))


async def measure(quick: bool) -> tuple[list[dict[str, object]], list[Goal]]:
    platform = SimulatedPlatform.create(seed=bytes(32), now=CLOCK.now().plus(seconds=-60))
    GatewayKey.generate(1, Kem.MLKEM768_X25519, ENTROPY)  # what is loaded once is not what a worker costs
    rows: list[dict[str, object]] = []
    for size in SIZES:
        sys.stderr.write(f"{size} workers\n")
        found: dict[str, object] = {"what": f"{size} workers"}
        found |= await client(size, platform, 500 if quick else 5_000)
        found["choices/s"] = decisions(size, 5_000 if quick else 50_000)
        found["made in ms"] = directory_ms(size)
        found["of the best"] = quality(size, 2_000 if quick else 20_000)
        rows.append(found)
    many = await client(10_000, platform, 500)
    rows.append({"what": "10000 bundles", **many})
    rows.append(await appraisals(platform, 60 if quick else 400))
    return rows, goals(rows, many)


def goals(rows: list[dict[str, object]], many: dict[str, float]) -> list[Goal]:
    few, some, large = ({name: float(str(value)) for name, value in row.items() if name != "what"} for row in rows[:3])
    again = large["read again ms"] / large["read first ms"]
    return [
        Goal("draws/s, 100,000 workers / 10", large["draws/s"] / few["draws/s"], ">=", 0.25),
        Goal("choices/s, 100,000 workers / 10", large["choices/s"] / few["choices/s"], ">=", 0.25),
        Goal("best possible / ours, mean score, 1,000 workers", some["of the best"], ">=", 0.7),
        Goal("best possible / ours, mean score, 100,000 workers", large["of the best"], ">=", 0.7),
        Goal("a directory of 100,000 read again / the first time", again, "<=", 0.2),
        Goal("evidence appraised of 10,000 bundles", many["appraised"], "==", 3),
    ]


def main() -> None:
    given = options(__doc__)
    rows, found = asyncio.run(measure(given.quick))
    report("scale", rows, found, as_json=given.json)


if __name__ == "__main__":
    main()
