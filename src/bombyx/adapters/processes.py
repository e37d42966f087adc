# SPDX-License-Identifier: Apache-2.0
"""Child processes that leave nothing behind: `bombyx up` and the tests start whole networks with them.

A child announces itself with one JSON line on standard output and stops when its standard input closes, so a parent
that is killed takes its children with it, whatever the signal was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bombyx.errors import Unavailable

READY_LINE: Final = 65_536  # bytes
STOP_GRACE: Final = 10.0  # seconds between asking and killing


@dataclass(slots=True)
class Child:
    """One running process. `ready` is what it announced."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    _drain: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def last_words(self, lines: int = 12) -> str:
        """The end of its log: what to show when it did not start."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


async def start_child(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    ready_within: float = 60.0,
    environment: Mapping[str, str] | None = None,
    program: Path | None = None,
) -> Child:
    """Run `python -m bombyx ARGUMENTS`, or the script `program`, and wait for its announcement.

    Raises `Unavailable` with the end of its log when it stops or stays silent for `ready_within` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(("-m", "bombyx") if program is None else (str(program),)),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=sink,
            limit=READY_LINE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # a Ctrl-C in the terminal reaches the parent alone, which then stops in order
        )
    child = Child(name=name, process=process, log=log)
    try:
        child.ready = await asyncio.wait_for(_announcement(process), ready_within)
    except BaseException as error:
        await stop_children([child], grace=2.0)
        if isinstance(error, TimeoutError | ValueError):
            raise Unavailable(f"{name} did not start:\n{child.last_words()}") from None
        raise
    child._drain = asyncio.create_task(_copy_rest(process, log))
    return child


async def stop_children(children: Sequence[Child], *, grace: float = STOP_GRACE) -> None:
    """Ask each to stop, in the order given, and kill what does not."""
    for child in children:
        if child.running:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
    for child in children:
        try:
            await asyncio.wait_for(child.process.wait(), grace)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
            await child.process.wait()
        if child._drain is not None:
            await child._drain


async def _announcement(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("an announcement is a JSON object")
    return value


async def _copy_rest(process: asyncio.subprocess.Process, log: Path) -> None:
    assert process.stdout is not None
    with log.open("ab") as sink:
        while data := await process.stdout.read(READY_LINE):
            sink.write(data)


# --- the child's side ------------------------------------------------------------------------------------------------


def announce(**facts: Any) -> None:
    """Tell the parent that we serve, and where."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def until_stopped(*, watch_parent: bool) -> str:
    """Wait for SIGTERM, SIGINT or, for a child, the parent's end. Returns which it was."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(why: str) -> None:
        if not stopped.done():
            stopped.set_result(why)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    watcher = asyncio.create_task(_parent_gone(stop)) if watch_parent else None
    try:
        return await stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if watcher is not None:
            watcher.cancel()


async def _parent_gone(stop: Any) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    stop("parent gone")
