# SPDX-License-Identifier: Apache-2.0
"""The auditable engine: llama.cpp with a sampler of our own, so that every answer can be re-run (spec AUD).

The weights live in a child process (`llama_process.py`) that is started, watched and restarted here. Requests that the
sampler does not cover (tools, grammars, images, embeddings) go to llama.cpp's own server, which is started with the
first of them; what it answers says `audit: none` and why.

Always: what is cached of one conversation (one `cache_salt`) is never used for another; a closed run's sequence is free
before the next token; a crash or a hang fails the runs there are, and the next one starts the child anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Final

from bombyx.adapters.engine_dialect import read_body
from bombyx.adapters.engine_embedded import START_TIMEOUT, EmbeddedEngine, EmbeddedOptions, end_process
from bombyx.adapters.engine_openai import RETRY_AFTER
from bombyx.adapters.gguf import read_gguf
from bombyx.adapters.llama_header import PACKAGE, VERSION
from bombyx.adapters.openai_body import Body, error_object, form_of, usage_object
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.errors import DeadlineExceeded, EngineUnavailable, MalformedMessage
from bombyx.ports import EngineAudit, EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest, EngineUsage
from bombyx.protocol.audit.asked import CHAT, Sampling, read_sampling
from bombyx.protocol.audit.seed import choice_seed, root_of
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.audit import SamplerBlock

ENGINE: Final = f"llama.cpp ({PACKAGE} {VERSION})"
MAX_LINE: Final = 64 << 20  # bytes of one message from the child: the ids of the longest prompt
NO_ROOT: Final = "no seed was given"
REWRITTEN: Final = "usage unverified: the text does not follow from its ids"


class AuditableEngine:
    """An `Engine`. The child starts with the first use, or with `start()`."""

    def __init__(self, options: EmbeddedOptions, index: TokenIndex | None = None) -> None:
        self._options = options
        self._index = index
        self._server: EmbeddedEngine | None = None
        self._starting = asyncio.Lock()
        self._child: _Child | None = None
        self._closed = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The child's process, while there is one."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Make sure that the child runs."""
        await self._ready()

    async def models(self) -> tuple[str, ...]:
        await self._ready()
        return (self._options.name,)

    async def run(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """One request; see `ports.Engine`."""
        asked = read_body(request)
        deadline = asyncio.get_running_loop().time() + request.deadline_seconds
        child = await self._ready()
        sampling = read_sampling(request.path, asked, cap=request.max_output)
        why = sampling.why or child.refuses(request.path)
        if why:
            events = self._elsewhere(request, why)
        else:
            events = self._answer(child, request, asked, sampling, deadline)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def close(self) -> None:
        self._closed = True
        async with self._starting:
            if self._child is not None:
                await self._child.stop()
                self._child = None
            if self._server is not None:
                await self._server.close()

    # --- one answer ---

    async def _answer(
        self, child: _Child, request: EngineRequest, asked: dict[str, Any], sampling: Sampling, deadline: float
    ) -> AsyncGenerator[EngineEvent, None]:
        sampler = sampling.sampler
        assert sampler is not None
        root = root_of(asked, request.audit.root if request.audit else Digest(secrets.token_bytes(32)))
        identity = secrets.token_hex(12)
        form = form_of(request.path, asked, stream=request.stream, identity=identity, created=int(time.time()))
        order = {
            "path": request.path,
            "asked": {name: asked[name] for name in ("messages", "prompt") if asked.get(name) is not None},
            "sampler": sampler.encode().hex(),
            "seeds": [choice_seed(root, choice) for choice in range(sampling.choices)],
            "salt": request.cache_salt.hex(),
            "logprobs": form.logprobs,
        }
        answer = _Answer(Body(form, sampling.choices), request, sampler, sampling.choices, self._room)
        async with contextlib.aclosing(child.run(order, deadline)) as messages:
            async for kind, said in messages:
                if kind == "refused":
                    for event in _refusal(said):
                        yield event
                    return
                for event in answer.take(kind, said):
                    yield event
                if answer.done:
                    break
        for event in answer.end(await self._table()):
            yield event

    async def _elsewhere(self, request: EngineRequest, why: str) -> AsyncGenerator[EngineEvent, None]:
        """llama.cpp's own server answers."""
        if self._server is None:
            self._server = EmbeddedEngine(self._options, await self._table())
        async with contextlib.aclosing(self._server.run(request)) as events:
            async for event in events:
                if isinstance(event, EngineEnd):
                    yield EngineEnd(usage=replace(event.usage, audit_why=why))
                else:
                    yield event

    async def _table(self) -> TokenIndex:
        if self._index is None:
            model = await asyncio.to_thread(read_gguf, self._options.model)
            self._index = await asyncio.to_thread(TokenIndex, model.tokens, model.end_of_text)
        return self._index

    @property
    def _room(self) -> int:
        return self._options.context

    # --- the child ---

    async def _ready(self) -> _Child:
        async with self._starting:
            if self._closed:
                raise EngineUnavailable("the model is being stopped")
            if self._child is None or self._child.pid is None:
                if self._child is not None:
                    await self._child.stop()
                self._child = await _launch(self._options)
                self.starts += 1
            return self._child


class _Answer:
    """One answer on its way: from the child's messages to the port's events."""

    def __init__(self, body: Body, request: EngineRequest, sampler: SamplerBlock, choices: int, room: int) -> None:
        self._body = body
        self._request = request
        self._sampler = sampler
        self._room = room
        self._prompt: tuple[int, ...] = ()
        self._cached = 0
        self._ids: list[list[int]] = [[] for _ in range(choices)]
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._finish = [""] * choices

    @property
    def done(self) -> bool:
        return all(self._finish)

    def take(self, kind: str, said: list[Any]) -> list[EngineEvent]:
        if kind == "started":
            self._prompt, self._cached = tuple(said[0]), said[1]
            if not self._request.stream:
                return []
            opening = self._body.opening()
            head: EngineEvent = EngineHead(status=200, content_type="text/event-stream")
            return [head, self._chunk(opening, ())] if opening else [head]
        choice, token, text, logprob, finish = said
        self._ids[choice].append(token)
        self._texts[choice].append(text)
        self._finish[choice] = finish
        if not self._request.stream:
            self._body.keep(choice, text, logprob, finish)
            return []
        return [self._chunk(self._body.token(choice, text, logprob, finish), ((choice, (token,)),))]

    def end(self, index: TokenIndex) -> list[EngineEvent]:
        ids = tuple(map(tuple, self._ids))
        usage = usage_object(len(self._prompt), self._cached, sum(map(len, ids)))
        if self._request.stream:
            events: list[EngineEvent] = [self._chunk(self._body.closing(usage), ())]
        else:
            told = tuple((choice, made) for choice, made in enumerate(ids) if made)
            events = [
                EngineHead(status=200, content_type="application/json"),
                self._chunk(self._body.whole(usage), told),
            ]
        return [*events, EngineEnd(usage=self._usage(ids, index))]

    def _usage(self, ids: tuple[tuple[int, ...], ...], index: TokenIndex) -> EngineUsage:
        sampler = replace(self._sampler, max_output=min(self._sampler.max_output, self._room - len(self._prompt)))
        fits = self._fits(ids, index)
        why = "" if fits and self._request.audit is not None else NO_ROOT if fits else REWRITTEN
        return EngineUsage(
            input=len(self._prompt),
            cached_input=self._cached,
            output=sum(map(len, ids)),
            ids=ids,
            finish=tuple(self._finish),
            verified=fits,
            note="" if fits else REWRITTEN,
            audit=None if why else EngineAudit(prompt_ids=self._prompt, sampler=sampler, engine=ENGINE),
            audit_why=why,
        )

    def _fits(self, ids: tuple[tuple[int, ...], ...], index: TokenIndex) -> bool:
        """The text is that of the ids; it is not where a stop string follows bytes that are no UTF-8."""
        try:
            return all(
                index.table.matches("".join(text), made, finish, self._sampler.stop)
                for text, made, finish in zip(self._texts, ids, self._finish, strict=True)
            )
        except MalformedMessage:
            return False

    def _chunk(self, data: bytes, ids: tuple[tuple[int, tuple[int, ...]], ...]) -> EngineChunk:
        return EngineChunk(data=data, ids=ids, input=len(self._prompt), cached_input=self._cached)


def _refusal(said: list[Any]) -> list[EngineEvent]:
    status, code, message = said
    nothing = EngineUsage(input=0, cached_input=0, output=0, ids=(), finish=(), verified=True, note="")
    return [
        EngineHead(status=status, content_type="application/json"),
        EngineChunk(data=error_object(message, code)),
        EngineEnd(usage=nothing),
    ]


# --- the child process -----------------------------------------------------------------------------------------------

_Message = tuple[str, list[Any]]


class _Child:
    """One child process and the runs it has. Ends all of them when it ends."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any], idle_timeout: float) -> None:
        self._process = process
        self._auditable = bool(ready["auditable"])
        self._chats = bool(ready["chats"])
        self._idle_timeout = idle_timeout
        self._runs: dict[int, asyncio.Queue[_Message | None]] = {}
        self._numbers = 0
        self._heard = 0.0
        self._killed = False
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int | None:
        alive = self._process.returncode is None and not self._reading.done() and not self._killed
        return self._process.pid if alive else None

    def refuses(self, path: str) -> str:
        """Why this model cannot serve a path auditably; empty when it can."""
        if not self._auditable:
            return "models of this kind are not covered"
        return "" if path != CHAT or self._chats else "the model has no chat template of its own"

    async def run(self, order: dict[str, Any], deadline: float) -> AsyncGenerator[_Message, None]:
        """What the child says of one order, until the reader has enough."""
        self._numbers += 1
        number, inbox = self._numbers, asyncio.Queue[_Message | None]()
        if self.pid is None:
            raise _gone()
        self._runs[number] = inbox
        self._heard = asyncio.get_running_loop().time()
        try:
            await self._say({"run": order | {"number": number}})
            while True:
                yield await self._next(inbox, deadline)
        finally:
            del self._runs[number]
            if self.pid is not None:
                with contextlib.suppress(EngineUnavailable):
                    self._write({"cancel": number})

    async def _next(self, inbox: asyncio.Queue[_Message | None], deadline: float) -> _Message:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(min(deadline, self._heard + self._idle_timeout)):
                    message = await inbox.get()
            except TimeoutError:
                if loop.time() >= deadline:
                    raise DeadlineExceeded("the engine did not finish before the deadline") from None
                if loop.time() >= self._heard + self._idle_timeout:
                    self._kill()
                    raise EngineUnavailable(
                        "the engine hung: it was silent for too long", retry_after=RETRY_AFTER
                    ) from None
                continue
            if message is None:
                raise _gone()
            return message

    async def _say(self, message: dict[str, Any]) -> None:
        self._write(message)
        assert self._process.stdin is not None
        try:
            await self._process.stdin.drain()
        except OSError:
            raise _gone() from None

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
        except (OSError, RuntimeError):
            raise _gone() from None

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                self._heard = loop.time()
                for kind, said in json.loads(line).items():
                    for number, *rest in said:
                        if (inbox := self._runs.get(number)) is not None:
                            inbox.put_nowait((kind, rest))
        except (ValueError, OSError):
            self._kill()  # a line that is none: whatever it is, it is not what we started
        finally:
            for inbox in self._runs.values():
                inbox.put_nowait(None)

    def _kill(self) -> None:
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        await end_process(self._process)
        await asyncio.gather(self._reading, return_exceptions=True)


async def _launch(options: EmbeddedOptions) -> _Child:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bombyx.adapters.llama_process",
        f"--model={options.model}", f"--threads={options.threads}", f"--parallel={options.parallel}",
        f"--context={options.context}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_TIMEOUT):
            ready = json.loads(await process.stdout.readline())
        return _Child(process, ready, options.idle_timeout)
    except (ValueError, TimeoutError, OSError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        words = (await process.stderr.read(65_536)).decode(errors="replace").strip().splitlines()
        await process.wait()
        raise EngineUnavailable(f"the model did not start: {' | '.join(words[-2:])[:400]}") from None
    except BaseException:
        await end_process(process)
        raise


def _gone() -> EngineUnavailable:
    return EngineUnavailable("the engine broke off", retry_after=RETRY_AFTER)
