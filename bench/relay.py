# SPDX-License-Identifier: Apache-2.0
"""What one request, one frame and one stream cost at the shipped proxy, beside nginx and what people use instead.

Every gateway runs alone on core 0 behind TLS; clients and upstream share core 1. "Per core" is answers per second of
the gateway's own processor time, so a slow generator flatters nobody. bombyx runs with everything on: TLS on both
sides, session MAC, admission, receipts verified, SQLite with group commit. Its requests are true envelopes (2.9 kB);
the others forward 1 kB of JSON in clear to an upstream that answers at once. Runs are interleaved; medians are shown.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from _load import STREAM_FRAMES, Load, Pacer, Taken, cpu_of, memory_of, plain_requests, serve_upstream
from _machine import Goal, options, report
from _peers import CORE, Missing, Where, names, pin, start_peer
from _sealed import Surroundings
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bombyx.adapters.processes import stop_children

CHANNELS = 512  # clients; each may ask 50 times a second, so that no limit of the proxy is changed for this
CONNECTIONS = (1, 32, 256)
PACED = 256
FORWARD = "bombyx, forward only"  # session MAC, links and streams: no books, no receipts checked (`_forward.py`)
SLOW = ("litellm", "fastapi+httpx")  # not asked for 256 paced streams: they cannot carry them
Requests = Callable[[str, float], Iterator[tuple[bytes, bytes]]]


@dataclass
class Subject:
    """Something to measure."""

    name: str
    pid: int
    port: int
    requests: Requests
    tls: bool = True
    rate: float = 1000.0  # answers a second at the last run: how many requests to prepare
    taken: dict[str, list[Taken]] = field(default_factory=dict)
    idle_mb: float = 0.0

    def median(self, run: str, of: Callable[[Taken], float]) -> float:
        values = [of(taken) for taken in self.taken.get(run, ()) if taken.answers]
        return statistics.median(values) if values else float("nan")

    def per_core(self, run: str) -> float:
        return self.median(run, lambda taken: taken.answers / taken.cpu)


async def run(subject: Subject, kind: str, connections: int, seconds: float, sent_at: dict[bytes, list[float]]) -> None:
    label = f"{kind} x{connections}"
    sent_at.clear()
    frames = 1 if kind in ("json", "voucher") else STREAM_FRAMES
    requests = subject.requests(kind, connections + subject.rate / frames * seconds * 1.3)
    load = Load(requests, sent_at=sent_at if kind == "paced" else None)
    taken = await load.run(subject.port, connections, seconds, lambda: cpu_of(subject.pid), tls=subject.tls)
    subject.rate = max(300.0, taken.answers / taken.seconds * frames)
    if taken.failed:
        sys.stderr.write(f"{subject.name} {label}: {taken.failed} failed: {taken.first_failure[:400]!r}\n")
    subject.taken.setdefault(label, []).append(taken)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for loopback."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return cert, private


class Field:
    """Everything that is measured, started; `close` stops it."""

    def __init__(self, folder: Path, wanted: list[str] | None) -> None:
        self.folder = folder
        self.wanted = wanted
        self.sent_at: dict[bytes, list[float]] = {}
        self.subjects: list[Subject] = []
        self.skipped: list[str] = []
        self._pacer = Pacer()
        self._stops: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        _, upstream = await serve_upstream(self._pacer, self.sent_at)
        cert, private = certificate(self.folder)
        self.subjects.append(Subject("direct", os.getpid(), upstream, _plain, tls=False))
        if self.wanted is None or "bombyx" in self.wanted:
            await self._ours(cert, private)
        where = Where(self.folder, cert, private, upstream)
        for name in names(self.wanted):
            try:
                peer = await start_peer(name, where)
            except Missing as missing:
                self.skipped.append(str(missing))
                continue
            self._stops.append(functools.partial(asyncio.to_thread, peer.stop))
            self.subjects.append(Subject(name, peer.pid, peer.port, _plain))
        for subject in self.subjects:
            subject.idle_mb = memory_of(subject.pid)
            await run(subject, "json", 8, 0.3, self.sent_at)  # warm
            subject.taken.clear()

    async def _ours(self, cert: Path, private: Path) -> None:
        await self._sealed("bombyx", cert, private)
        await self._sealed(FORWARD, cert, private, program=Path(__file__).with_name("_forward.py"))

    async def _sealed(self, name: str, cert: Path, private: Path, *, program: Path | None = None) -> None:
        around = Surroundings(self.folder / name, self._pacer, self.sent_at)
        child = await around.start((cert, private), CHANNELS, program=program)
        self._stops += [around.stop, lambda: stop_children([child])]
        pin(child.pid, CORE)

        def sealed(kind: str, count: float) -> Iterator[tuple[bytes, bytes]]:
            if kind == "voucher":
                return around.requests("json", int(count), paid="voucher")
            return around.requests(kind, int(count))

        self.subjects.append(Subject(name, child.pid, around.port, sealed))
        kinds = ("session", "voucher") if program is None else ("session",)
        for paid in kinds:  # every session is opened before the clock runs
            warm = Load(around.requests("json", CHANNELS, paid=paid), sent_at=None)
            taken = await warm.run(around.port, 4, 60, lambda: 0.0)
            if taken.failed:
                raise SystemExit(f"warm-up: {taken.failed} failed: {taken.first_failure!r}")
        around.confirmed()

    async def round(self, seconds: float, paced_seconds: float) -> None:
        """Every run once, the gateways taking turns."""
        for connections in CONNECTIONS:
            for subject in self.subjects:
                await run(subject, "json", connections, seconds, self.sent_at)
        for subject in self.subjects:
            if subject.name == "bombyx":
                await run(subject, "voucher", 32, seconds, self.sent_at)
            for connections in CONNECTIONS[:2]:
                await run(subject, "burst", connections, seconds, self.sent_at)
        for subject in self.subjects:
            if subject.name not in SLOW:
                await run(subject, "paced", PACED, paced_seconds, self.sent_at)

    async def close(self) -> None:
        for stop in self._stops:
            await stop()


def _plain(kind: str, _count: float) -> Iterator[tuple[bytes, bytes]]:
    return plain_requests(kind)


def rows(subjects: list[Subject]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    direct = subjects[0]
    runs = list(dict.fromkeys(label for subject in subjects for label in subject.taken))
    for label in runs:
        frames = 1 if label.startswith(("json", "voucher")) else STREAM_FRAMES
        base = label.replace("voucher", "json")
        for subject in subjects:
            if label not in subject.taken:
                continue
            row: dict[str, object] = {"run": label, "gateway": subject.name}
            row["answers/s"] = subject.median(label, lambda taken: taken.answers / taken.seconds)
            if subject is not direct:
                row["per core"] = subject.per_core(label)
                row["cpu us"] = 1e6 / subject.per_core(label) / frames
                row["of"] = "request" if frames == 1 else "frame"
            row["p50 ms"] = subject.median(label, lambda taken: taken.quantile(0.5, taken.delays or None))
            row["p99 ms"] = subject.median(label, lambda taken: taken.quantile(0.99, taken.delays or None))
            if subject is not direct and not label.startswith("burst"):
                row["added p50"] = float(row["p50 ms"]) - direct.median(  # type: ignore[arg-type]
                    base, lambda taken: taken.quantile(0.5, taken.delays or None)
                )
            failed = sum(taken.failed for taken in subject.taken[label])
            if failed:
                row["failed"] = failed
            found.append(row)
    found += [{"run": "memory", "gateway": one.name, "idle MB": one.idle_mb} for one in subjects[1:]]
    return found


def goals(subjects: list[Subject]) -> list[Goal]:
    by = {subject.name: subject for subject in subjects}
    found: list[Goal] = []
    if "bombyx" not in by:
        return found
    ours, direct = by["bombyx"], subjects[0]

    def ratio(name: str, peer: str, run: str, against: str, bound: float, of: Subject = ours) -> None:
        if peer in by:
            value = of.per_core(run) / by[peer].per_core(against)
            found.append(Goal(f"{name}, requests per core / {peer}", value, ">=", bound))

    for peer, bound in (("nginx", 0.7), ("litellm", 250.0)):
        ratio("forwarding with the session MAC", peer, "json x32", "json x32", bound, by[FORWARD])
    for peer, bound in (("nginx", 0.33), ("litellm", 110.0), ("fastapi+httpx", 28.0)):
        ratio("all-in, session", peer, "json x32", "json x32", bound)
    for peer, bound in (("nginx", 0.17), ("litellm", 60.0)):
        ratio("all-in, a voucher each", peer, "voucher x32", "json x32", bound)
    paced = f"paced x{PACED}"
    if "nginx" in by:
        value = by["nginx"].per_core(paced) / ours.per_core(paced)
        found.append(Goal(f"CPU per frame at {PACED} paced streams / nginx", value, "<=", 1.1))
    added = ours.median("json x1", lambda t: t.quantile(0.5)) - direct.median("json x1", lambda t: t.quantile(0.5))
    found.append(Goal("added p50, one connection, ms", added, "<=", 0.6))
    late = ours.median(paced, lambda t: t.quantile(0.99, t.delays)) - direct.median(
        paced, lambda t: t.quantile(0.5, t.delays)
    )
    found.append(Goal(f"added delay of a frame, p99 at {PACED} paced streams, ms", late, "<=", 1.0))
    return found


async def main() -> None:
    given = options(__doc__, only="gateways to measure, comma-separated: bombyx,nginx,...")
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("this needs two cores: one for the gateway, one for its clients")
    with tempfile.TemporaryDirectory() as folder:
        pin(0, 1)
        field = Field(Path(folder), given.only.split(",") if given.only else None)
        try:
            await field.start()
            for _ in range(1 if given.quick else 5):
                await field.round(1.0 if given.quick else 2.0, 5.0 if given.quick else 8.0)
        finally:
            await field.close()
    for reason in field.skipped:
        sys.stderr.write(f"skipped: {reason}\n")
    report("relay", rows(field.subjects), goals(field.subjects), as_json=given.json)


if __name__ == "__main__":
    uvloop.run(main())
