# SPDX-License-Identifier: Apache-2.0
"""How many paced streams one core carries: the shipped proxy beside nginx and LiteLLM, and the shipped worker.

A stream is 128 frames at 50 a second; N of them run side by side, begun one after the other. N is doubled, then
bisected, while no stream fails and 99 of 100 frames arrive within 20 ms of being sent; beyond that a core is too slow,
or what it keeps waits. What is measured has core 0; clients and upstream share core 1, so `direct` is where they end,
and "at least" stands where a subject went as far. Memory is what the most streams took more than none, for each.

The proxy's streams are sealed, paid and receipted (session mode); nginx and LiteLLM pass plain ones on. The worker
seals and signs for an engine that speaks at that pace. The search ends where file descriptors do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from _load import PACE, STREAM_FRAMES, Load, Pacer, Peak, Taken, cpu_of, memory_of, plain_requests, serve_upstream
from _machine import Goal, options, report
from _peers import CORE, Missing, Where, pin, start_peer
from _sealed import Surroundings
from _worker_load import WorkerLoad
from relay import certificate

from bombyx.adapters.processes import stop_children

LATE = 20.0  # milliseconds
CHANNELS = 512
LIFE = STREAM_FRAMES * PACE  # seconds of one stream
SPARE = 512  # file descriptors left for everything else
Probe = Callable[[int], Awaitable[tuple[Taken, float]]]  # N streams: what was seen, and the most memory


@dataclass
class Level:
    """One probe's outcome."""

    streams: int
    late: float  # ms, p99
    peak_mb: float
    cpu_us: float  # a frame
    busy: float  # share of its core the load itself used
    failed: int

    @property
    def held(self) -> bool:
        return not self.failed and self.late < LATE


@dataclass
class Subject:
    """Something to search."""

    name: str
    pid: int
    probe: Probe
    first: int
    most: int
    idle_mb: float = 0.0
    levels: list[Level] = field(default_factory=list)
    low: int = 0
    high: int = 0  # 0: not found yet

    def following(self, near: float) -> int | None:
        """The next N to try; None: found, as nearly as a share `near`."""
        if not self.levels:
            return self.first
        if not self.high:
            return self.low * 2 if self.low * 2 <= self.most else None
        if self.high - self.low <= max(1, near * self.low):
            return None
        return (self.low + self.high) // 2

    def note(self, level: Level) -> None:
        self.levels.append(level)
        if level.held:
            self.low = max(self.low, level.streams)
        else:
            self.high = min(self.high or level.streams, level.streams)

    def at(self, streams: int) -> Level:
        return next(level for level in self.levels if level.streams == streams)

    @property
    def best(self) -> Level | None:
        return self.at(self.low) if self.low else None

    def kilobytes(self) -> float:
        """Of a stream: the most memory it ever took, beyond what it takes idle, for the most streams tried."""
        peak = max(level.peak_mb for level in self.levels)
        return (peak - self.idle_mb) * 1024 / max(level.streams for level in self.levels)


class Field:
    """Everything that is measured, started one beside the other; `close` stops it."""

    def __init__(self, folder: Path, *, rounds: int, most: int) -> None:
        self.folder = folder
        self.subjects: list[Subject] = []
        self.skipped: list[str] = []
        self._rounds = rounds
        self._most = most
        self._pacer = Pacer()
        self._sent_at: dict[bytes, list[float]] = {}
        self._stops: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        _, upstream = await serve_upstream(self._pacer, self._sent_at)
        cert, private = certificate(self.folder)
        self._add("direct", os.getpid(), self._plain(upstream, tls=False), 1024)
        around = Surroundings(self.folder / "proxy", self._pacer, self._sent_at)
        child = await around.start((cert, private), CHANNELS)
        self._stops += [around.stop, lambda: stop_children([child])]
        pin(child.pid, CORE)
        await self._warm(around)
        self._add("bombyx proxy", child.pid, self._sealed(around, child.pid), 256)
        where = Where(self.folder, cert, private, upstream)
        for name, first in (("nginx", 256), ("litellm", 16)):
            try:
                peer = await start_peer(name, where)
            except Missing as missing:
                self.skipped.append(str(missing))
                continue
            self._stops.append(functools.partial(asyncio.to_thread, peer.stop))
            self._add(name, peer.pid, self._plain(peer.port, peer.pid), first)
        load = WorkerLoad(self.folder / "worker", self._pacer, self._sent_at)
        worker = await load.start()
        self._stops += [load.stop, lambda: stop_children([worker])]
        pin(worker.pid, CORE)
        self._add("bombyx worker", worker.pid, lambda streams: load.run(streams, LIFE, self._rounds), 64)
        for subject in self.subjects:
            await subject.probe(4)  # what is loaded once is no stream's
            subject.idle_mb = memory_of(subject.pid)

    def _add(self, name: str, pid: int, probe: Probe, first: int) -> None:
        self.subjects.append(Subject(name, pid, probe, first, self._most))

    def _plain(self, port: int, pid: int | None = None, *, tls: bool = True) -> Probe:
        def requests(_count: int) -> Iterator[tuple[bytes, bytes]]:
            return plain_requests("paced")

        return self._probe(requests, port, pid, tls)

    def _sealed(self, around: Surroundings, pid: int) -> Probe:
        return self._probe(lambda count: around.requests("paced", count), around.port, pid, True)

    def _probe(
        self, requests: Callable[[int], Iterator[tuple[bytes, bytes]]], port: int, pid: int | None, tls: bool
    ) -> Probe:
        of = pid or os.getpid()

        async def probe(streams: int) -> tuple[Taken, float]:
            self._sent_at.clear()
            load = Load(requests(streams * (self._rounds + 1)), sent_at=self._sent_at)
            with Peak(of) as peak:
                taken = await load.run(port, streams, LIFE * self._rounds, lambda: cpu_of(of), tls=tls)
            await asyncio.sleep(0.2)
            return taken, peak.megabytes

        return probe

    async def _warm(self, around: Surroundings) -> None:
        """Every session is opened before the clock runs."""
        warm = Load(around.requests("json", CHANNELS), sent_at=None)
        taken = await warm.run(around.port, 4, 60, lambda: 0.0)
        if taken.failed:
            raise SystemExit(f"warm-up: {taken.failed} failed: {taken.first_failure!r}")
        around.confirmed()

    async def search(self, near: float) -> None:
        """Every subject's next N in turn, until each is found."""
        searched = list(self.subjects)
        while searched:
            for subject in list(searched):
                streams = subject.following(near)
                if streams is None:
                    searched.remove(subject)
                    continue
                subject.note(await self._level(subject, streams))

    async def _level(self, subject: Subject, streams: int) -> Level:
        loop = asyncio.get_running_loop()
        began, mine = loop.time(), cpu_of(os.getpid())
        try:
            taken, peak = await subject.probe(streams)
        except (TimeoutError, OSError) as error:
            sys.stderr.write(f"{subject.name}, {streams} streams: {type(error).__name__}\n")
            return Level(streams, float("inf"), 0.0, float("nan"), float("nan"), streams)
        busy = (cpu_of(os.getpid()) - mine) / (loop.time() - began)
        frames = max(1, len(taken.delays))
        level = Level(
            streams, taken.quantile(0.99, taken.delays), peak,
            taken.cpu / frames * 1e6, busy, taken.failed,
        )  # fmt: skip
        sys.stderr.write(
            f"{subject.name}, {streams} streams: p99 {level.late:.1f} ms, {taken.failed} failed, to {peak:.0f} MB\n"
        )
        if taken.failed:
            sys.stderr.write(f"  {taken.first_failure[:300]!r}\n")
        return level

    async def close(self) -> None:
        for stop in self._stops:
            with contextlib.suppress(Exception):
                await stop()


def rows(subjects: list[Subject]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for subject in subjects:
        best = subject.best
        row: dict[str, object] = {"subject": subject.name, "streams": subject.low}
        if not subject.high:
            row["streams"] = f"at least {subject.low}"
        if best is not None:
            row |= {"p99 ms": best.late, "cpu us a frame": best.cpu_us, "load's core busy": best.busy}
            if subject.name != "direct":
                row["kB a stream"] = subject.kilobytes()
        if subject.high:
            row |= {"too many": subject.high, "p99 then": subject.at(subject.high).late}
        row["idle MB"] = subject.idle_mb
        found.append(row)
    return found


def goals(subjects: list[Subject]) -> list[Goal]:
    by = {subject.name: subject for subject in subjects}
    found: list[Goal] = []
    ours, nginx = by["bombyx proxy"], by.get("nginx")
    if nginx is not None and nginx.low:
        found.append(Goal("streams a core, proxy / nginx", ours.low / nginx.low, ">=", 1.0))
        found.append(Goal("memory of a stream, proxy / nginx", ours.kilobytes() / nginx.kilobytes(), "<=", 2.0))
    litellm = by.get("litellm")
    if litellm is not None and litellm.low:
        found.append(Goal("streams a core, proxy / litellm", ours.low / litellm.low, ">=", 40.0))
    found.append(Goal("streams one worker core seals", float(by["bombyx worker"].low), ">=", 256))
    return found


def more_descriptors() -> int:
    """As many file descriptors as this user may have; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def main() -> None:
    given = options(__doc__)
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("this needs two cores: one for the gateway, one for its clients")
    most = min(4_096, (more_descriptors() - SPARE) // 2)  # two ends of a connection may lie in one process here
    with tempfile.TemporaryDirectory() as folder:
        pin(0, 1)
        field = Field(Path(folder), rounds=1 if given.quick else 3, most=most)
        try:
            await field.start()
            await field.search(0.34 if given.quick else 0.07)
        finally:
            await field.close()
    for reason in field.skipped:
        sys.stderr.write(f"skipped: {reason}\n")
    report("streams", rows(field.subjects), goals(field.subjects), as_json=given.json)


if __name__ == "__main__":
    uvloop.run(main())
