# SPDX-License-Identifier: Apache-2.0
"""The embedded engine: llama.cpp in a process of its own, started, watched and restarted here.

Always: what is cached of one conversation (one `cache_salt`) is never used for another: a slot is warm only for the
salt it served last. A crashed server fails the runs it had and is started again by the next one. No run waits for a
slot past its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.engine_dialect import Dialect
from bombyx.adapters.engine_openai import IDLE_TIMEOUT, OpenAIEngine
from bombyx.adapters.gguf import read_gguf
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.errors import DeadlineExceeded, EngineUnavailable
from bombyx.ports import EngineEvent, EngineRequest

START_TIMEOUT: Final = 120.0  # seconds; SmolLM2 takes half a second, a large model from a cold disk a minute
STOP_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """How the server is run. `context` is tokens per request; `parallel` requests run at once, the others wait."""

    model: Path
    name: str
    threads: int = 1  # per core of the worker; more threads than free cores collapse to a tenth of the speed
    parallel: int = 4
    context: int = 4096
    embeddings: bool = False
    idle_timeout: float = IDLE_TIMEOUT

    def arguments(self) -> tuple[str, ...]:
        """What the model manifest says of the engine's settings."""
        fixed = (f"--threads={self.threads}", f"--parallel={self.parallel}", f"--context={self.context}")
        return (*fixed, "--embeddings") if self.embeddings else fixed


class EmbeddedEngine:
    """An `Engine`. The server starts with the first use, or with `start()`."""

    def __init__(self, options: EmbeddedOptions, index: TokenIndex | None = None) -> None:
        self._options = options
        self._index = index
        self._slots = _Slots(options.parallel)
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._http: OpenAIEngine | None = None
        self._closed = False
        self._suspect = False  # a run failed: ask the server whether it still serves before it gets another
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The server's process, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Make sure that the server runs."""
        await self._ready()

    async def models(self) -> tuple[str, ...]:
        return await (await self._ready()).models()

    async def run(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """One request; see `ports.Engine`. Waits for a free slot first."""
        http = await self._ready()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.deadline_seconds
        async with self._slots.hold(request, deadline) as additions:
            left = replace(request, deadline_seconds=deadline - loop.time())
            try:
                async with contextlib.aclosing(http.run_with(left, additions)) as events:
                    async for event in events:
                        yield event
            except EngineUnavailable:
                self._suspect = True
                raise

    async def close(self) -> None:
        self._closed = True
        async with self._starting:
            await self._stop()

    async def _ready(self) -> OpenAIEngine:
        async with self._starting:
            if self._closed:
                raise EngineUnavailable("the model server is being stopped")
            if self._http is None or self.pid is None or not await self._serves(self._http):
                await self._stop()
                self._http = await self._launch()
            self._suspect = False
            return self._http

    async def _serves(self, http: OpenAIEngine) -> bool:
        if self._suspect:
            try:
                await http.models()
            except EngineUnavailable:
                return False
        return True

    async def _launch(self) -> OpenAIEngine:
        if self._index is None:
            model = await asyncio.to_thread(read_gguf, self._options.model)
            self._index = await asyncio.to_thread(TokenIndex, model.tokens, model.end_of_text)
        options, api_key = self._options, secrets.token_urlsafe(32)
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bombyx.adapters.llama_server",
            f"--model={options.model}", f"--name={options.name}", "--port=0", *options.arguments(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        port = await _announced_port(process, api_key)
        self.starts += 1
        self._slots.forget()
        return OpenAIEngine(
            f"http://127.0.0.1:{port}",
            dialect=Dialect.LLAMA_CPP,
            index=self._index,
            api_key=api_key,
            idle_timeout=options.idle_timeout,
        )

    async def _stop(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._process is not None:
            await end_process(self._process)
            self._process = None


class _Slots:
    """Which of the server's slots holds whose prompt. One run holds one slot; a run with several choices holds none."""

    def __init__(self, count: int) -> None:
        self._salts: dict[int, bytes | None] = dict.fromkeys(range(count))  # free slots, longest unused first
        self._changed = asyncio.Condition()
        self._anywhere = 0  # runs with several choices: they may use, and so make cold, any slot

    def forget(self) -> None:
        """Nothing is warm any more."""
        self._salts = dict.fromkeys(self._salts)

    @asynccontextmanager
    async def hold(self, request: EngineRequest, deadline: float) -> AsyncIterator[dict[str, Any]]:
        """The fields that put a run on its slot."""
        if _takes_several(request):
            self._anywhere += 1
            try:
                yield {}
            finally:
                self._anywhere -= 1
                self.forget()
            return
        slot, warm = await self._take(request.cache_salt, deadline)
        clean = False
        try:
            yield {"id_slot": slot, "cache_prompt": warm}
            clean = True
        finally:
            # A run that broke off may still be computing there: its slot goes to the end of the queue, cold.
            self._salts[slot] = request.cache_salt if clean and not self._anywhere else None
            async with self._changed:
                self._changed.notify()

    async def _take(self, salt: bytes, deadline: float) -> tuple[int, bool]:
        try:
            async with asyncio.timeout_at(deadline), self._changed:
                await self._changed.wait_for(lambda: bool(self._salts))
        except TimeoutError:
            raise DeadlineExceeded("no slot of the model server became free before the deadline") from None
        warm = next((slot for slot, held in self._salts.items() if held == salt), None)
        slot = warm if warm is not None else next(iter(self._salts))
        del self._salts[slot]
        return slot, warm is not None and not self._anywhere


def _takes_several(request: EngineRequest) -> bool:
    try:
        asked = json.loads(request.body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("n") not in (None, 1)


async def _announced_port(process: asyncio.subprocess.Process, api_key: str) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_TIMEOUT):
            process.stdin.write(json.dumps({"api_key": api_key}).encode() + b"\n")
            await process.stdin.drain()
            return int(json.loads(await process.stdout.readline())["port"])
    except (ValueError, KeyError, TypeError, TimeoutError, OSError):
        # Nobody has asked it anything yet: its last words hold no content.
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        words = (await process.stderr.read(65_536)).decode(errors="replace").strip().splitlines()
        await process.wait()
        raise EngineUnavailable(f"the model server did not start: {' | '.join(words[-2:])[:400]}") from None
    except BaseException:
        await end_process(process)
        raise


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Close its input, which ends it; kill it when it does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
