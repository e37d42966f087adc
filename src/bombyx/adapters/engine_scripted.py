# SPDX-License-Identifier: Apache-2.0
"""An engine that follows a script: for tests and demonstrations. NOT a model; it answers from a small word list.

The same request always gets the same answer, token by token, in the shapes of the OpenAI API. A `Script` says how fast
it speaks and how it misbehaves: crash, hang, garbage, no ids, a wrong count. `TOKENS` is the table its ids are from.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from bombyx.adapters.engine_dialect import CHAT, EMBEDDINGS, PATHS
from bombyx.adapters.sse import data_event
from bombyx.errors import BadRequest, DeadlineExceeded, EngineUnavailable
from bombyx.ports import EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest, EngineUsage
from bombyx.protocol.wire.tokens import TokenTable

_WORDS: Final = (  # noqa: SIM905  # reads better as a sentence
    "the silk moth worm leaf thread spins a quiet net of proof and light; each stitch is checked once, then kept "
    "mulberry branch cocoon answer question seal channel voucher worker north south wind water stone bread"
).split()
_PIECES: Final = [bytes((byte,)) for byte in range(256)] + [b"<end>"] + [f" {word}".encode() for word in _WORDS]
END: Final = 256
FIRST_WORD: Final = 257

TOKENS: Final = TokenTable.build(_PIECES, special=[END])

_UTF8: Final = codecs.getincrementaldecoder("utf-8")  # holds back half a character, as engines do

Reply = Callable[[dict[str, Any]], str]


class Fault(StrEnum):
    """What goes wrong, after `Script.fault_after` tokens."""

    NONE = "none"
    CRASH = "crash"
    HANG = "hang"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How the engine behaves. `reply` gives the text; without it, words that depend on the request alone."""

    name: str = "scripted"
    seconds_per_token: float = 0.0
    reply: Reply | None = None
    words: int = 24  # length of an answer without `reply`
    ids: bool = True
    count_error: int = 0  # added to the engine's own count
    cached_input: int = 0
    fault: Fault = Fault.NONE
    fault_after: int = 3
    idle_timeout: float = 120.0  # seconds until a hang is noticed


class ScriptedEngine:
    """An `Engine`. `requests` remembers what it was asked, `cancelled` how many runs were closed before their end."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.requests: list[EngineRequest] = []
        self.cancelled = 0
        self.running = 0

    async def models(self) -> tuple[str, ...]:
        return (self.script.name,)

    async def close(self) -> None:
        return None

    async def run(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """One request; see `ports.Engine`."""
        self.requests.append(request)
        self.running += 1
        finished = False
        try:
            deadline = asyncio.get_running_loop().time() + request.deadline_seconds
            async for event in self._answer(_Turn(self.script, request), deadline):
                yield event
            finished = True
        except (EngineUnavailable, DeadlineExceeded, BadRequest):
            finished = True
            raise
        finally:
            self.running -= 1
            self.cancelled += not finished

    async def _answer(self, turn: _Turn, deadline: float) -> AsyncGenerator[EngineEvent, None]:
        if turn.refusal is not None:
            yield EngineHead(status=400, content_type="application/json")
            yield EngineChunk(data=turn.refusal)
            yield EngineEnd(
                usage=EngineUsage(input=0, cached_input=0, output=0, ids=(), finish=(), verified=True, note="")
            )
            return
        if turn.request.stream:
            yield EngineHead(status=200, content_type="text/event-stream")
        for at in range(max(map(len, turn.ids), default=0)):
            await self._speak(at, deadline)
            for chunk in turn.chunks_at(at) if turn.request.stream else ():
                yield chunk
        if turn.request.stream:
            for chunk in turn.last_chunks():
                yield chunk
        else:
            yield EngineHead(status=200, content_type="application/json")
            yield EngineChunk(data=turn.body(), ids=turn.all_ids() if self.script.ids else ())
        yield EngineEnd(usage=turn.usage())

    async def _speak(self, at: int, deadline: float) -> None:
        """Take the time of one token, or the fault that stands in the script here."""
        script, clock = self.script, asyncio.get_running_loop().time
        pause = script.seconds_per_token
        if at == script.fault_after and script.fault is not Fault.NONE:
            if script.fault is not Fault.HANG:
                raise EngineUnavailable(f"the scripted engine met its {script.fault}")
            pause = script.idle_timeout
        late = clock() + pause > deadline
        if pause or late:
            await asyncio.sleep(max(0.0, min(pause, deadline - clock())))
        if late:
            raise DeadlineExceeded("the scripted engine did not finish before the deadline")
        if at == script.fault_after and script.fault is Fault.HANG:
            raise EngineUnavailable("the scripted engine hung")


class _Turn:
    """One request and its whole answer, worked out before the first word."""

    def __init__(self, script: Script, request: EngineRequest) -> None:
        if request.path not in PATHS:
            raise BadRequest("no engine path of this name", status=404)
        self.script, self.request = script, request
        self.asked, self.refusal = _asked(request)
        self.chat = request.path == CHAT
        self.ids: list[tuple[int, ...]] = []
        self.finish: list[str] = []
        self._decoders: list[codecs.IncrementalDecoder] = []
        choices = 0 if request.path == EMBEDDINGS or self.refusal else int(self.asked.get("n") or 1)
        for choice in range(choices):
            ids, finish = self._speech(choice, choices)
            self.ids.append(ids)
            self.finish.append(finish)
            self._decoders.append(_UTF8("replace"))

    def _speech(self, choice: int, choices: int) -> tuple[tuple[int, ...], str]:
        if self.script.reply is not None:
            ids = (*_tokenise(self.script.reply(self.asked).encode()), END)
        else:
            seed = hashlib.sha256(self.request.body + bytes((choice,))).digest()
            ids = (*(FIRST_WORD + seed[at % 32] % len(_WORDS) for at in range(self.script.words)), END)
        limits = [
            self.asked.get("max_tokens"),
            self.asked.get("max_completion_tokens"),
            self.request.max_output // choices,
        ]
        limit = min(value for value in limits if isinstance(value, int) and value >= 0)
        return (ids, "stop") if len(ids) <= limit else (ids[:limit], "length")

    # --- shapes of the API ---

    def chunks_at(self, at: int) -> list[EngineChunk]:
        """The events of the token at this position, one for each choice that has one."""
        made = []
        for choice, ids in enumerate(self.ids):
            if at < len(ids):
                text = self._decoders[choice].decode(TOKENS.piece(ids[at]))
                given = ((choice, (ids[at],)),) if self.script.ids else ()
                body = {"delta": {"content": text}} if self.chat else {"text": text}
                made.append(self._event({"index": choice, **body, "finish_reason": None}, given))
        return made

    def last_chunks(self) -> list[EngineChunk]:
        made = []
        for choice, reason in enumerate(self.finish):
            body: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            made.append(self._event({"index": choice, **body, "finish_reason": reason}, ()))
        options = self.asked.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            made.append(EngineChunk(data=data_event(_dump({**self._frame(), "choices": [], "usage": self._counts()}))))
        return [*made, EngineChunk(data=data_event(b"[DONE]"))]

    def body(self) -> bytes:
        """The whole answer as one JSON object."""
        if self.request.path == EMBEDDINGS:
            vector = [byte / 255 for byte in hashlib.sha256(self.request.body).digest()]
            data = [{"object": "embedding", "index": 0, "embedding": vector}]
            return _dump({"object": "list", "data": data, "model": self.script.name, "usage": self._counts()})
        choices = []
        for choice, ids in enumerate(self.ids):
            text = self._decoders[choice].decode(TOKENS.detokenise(ids))
            body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": choice, **body, "finish_reason": self.finish[choice]})
        return _dump({**self._frame(), "choices": choices, "usage": self._counts()})

    def all_ids(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        return tuple(enumerate(self.ids))

    def usage(self) -> EngineUsage:
        shown, counted = sum(map(len, self.ids)), self._counts()["completion_tokens"]
        note = "" if self.script.ids or not shown else "usage unverified: this engine gives no ids"
        if not note and shown != counted:
            note = f"usage unverified: the engine counts {counted} output tokens, gave {shown} ids"
        return EngineUsage(
            input=self._counts()["prompt_tokens"],
            cached_input=self.script.cached_input,
            output=shown if self.script.ids else counted,
            ids=tuple(self.ids) if self.script.ids else None,
            finish=tuple(self.finish),
            verified=not note,
            note=note,
        )

    def _event(self, choice: dict[str, Any], ids: tuple[tuple[int, tuple[int, ...]], ...]) -> EngineChunk:
        data = data_event(_dump({**self._frame(), "choices": [choice]}))
        read = self._counts()["prompt_tokens"]
        return EngineChunk(data=data, ids=ids, input=read, cached_input=self.script.cached_input)

    def _frame(self) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        kind += ".chunk" if self.request.stream and self.chat else ""
        return {"id": f"scripted-{hashlib.sha256(self.request.body).hexdigest()[:12]}", "object": kind, "created": 0,
                "model": self.script.name}  # fmt: skip

    def _counts(self) -> dict[str, Any]:
        said = self.asked.get("messages") or self.asked.get("prompt") or self.asked.get("input") or ""
        read = len(json.dumps(said)) // 4 + 1
        made = sum(map(len, self.ids)) + (self.script.count_error if self.ids else 0)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made,
                "prompt_tokens_details": {"cached_tokens": self.script.cached_input}}  # fmt: skip


def _asked(request: EngineRequest) -> tuple[dict[str, Any], bytes | None]:
    """(the request, None) or (nothing, the refusal an application would get)."""
    try:
        asked = json.loads(request.body)
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is not JSON") from None
    if not isinstance(asked, dict):
        raise BadRequest("the request's body is not a JSON object")
    if request.path == CHAT and not isinstance(asked.get("messages"), list):
        return {}, _dump({"error": {"message": "'messages' is required", "type": "invalid_request_error", "code": 400}})
    return asked, None


def _tokenise(text: bytes) -> list[int]:
    """Longest word first, else single bytes."""
    ids, at = [], 0
    by_bytes = {piece: token for token, piece in enumerate(_PIECES) if token != END}
    while at < len(text):
        size = next(size for size in range(12, 0, -1) if text[at : at + size] in by_bytes)
        ids.append(by_bytes[text[at : at + size]])
        at += size
    return ids


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
