# SPDX-License-Identifier: Apache-2.0
"""Reads one answer of an engine: takes out what `engine_dialect` had added, keeps ids and usage. No I/O.

Always: the ids of all chunks, joined, are the ids of the final usage; an event nothing had to be taken from is passed
on byte for byte; what is not the OpenAI shape is `EngineUnavailable`, and the message never quotes it; usage called
verified has as many ids as were counted, and their bytes are the text (where a table is at hand to tell).
"""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

from bombyx.adapters.engine_dialect import IdSource, Plan
from bombyx.adapters.sse import data_event, event_data
from bombyx.adapters.token_gaps import GapFiller, TokenIndex
from bombyx.errors import EngineUnavailable, MalformedMessage
from bombyx.ports import EngineAudit, EngineChunk, EngineUsage

DONE: Final = b"[DONE]"
MAX_ID: Final = 2**31
MAX_TEXT: Final = 16 * 1024 * 1024  # characters of all choices
OTHER_THAN_TEXT: Final = ("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal", "audio")

NO_IDS: Final = "usage unverified: this engine gives no ids"
NO_USAGE: Final = "usage unverified: the engine gave no usage"


class Answer:
    """One answer, from its first byte to its usage. Without `index`, ids that a stream withholds stay lost."""

    def __init__(self, plan: Plan, index: TokenIndex | None = None) -> None:
        self._plan = plan
        self._index = index
        self._texts: list[list[str]] = [[] for _ in range(plan.choices)]
        self._size = 0
        self._no_text: set[int] = set()  # choices with tool calls or reasoning: nobody can compare these
        self._fillers = [GapFiller(index) for _ in range(plan.choices)] if index is not None else []
        self._ids: list[list[int]] = [[] for _ in range(plan.choices)]
        self._finish = [""] * plan.choices
        self._counts: list[int | None] = [None] * plan.choices
        self._usage: dict[str, Any] | None = None
        self._last_finished = 0
        self._by_word: set[int] = set()  # choices that ended at a stop string
        self._prompt: tuple[int, ...] = ()  # its ids, where the answer is to be re-run
        self.done = False

    # --- streams ---

    def event(self, raw: bytes) -> EngineChunk | None:
        """What the application gets of one event; None when it was only for us."""
        if self.done:
            return None  # nothing after the end reaches an application
        data = event_data(raw)
        if data is None:
            return EngineChunk(data=raw)
        if data == DONE:
            self.done = True
            return EngineChunk(data=raw, ids=self._settle())
        value = _object(data)
        if "error" in value:
            raise EngineUnavailable("the engine reported an error inside its stream")
        self._take_prompt(value)
        new = self._take_choices(value, _count_of(value.get("timings"), "predicted_n"))
        self._take_usage(value.get("usage"))
        if (_inner(value, "__verbose") or {}).get("stop_type") == "word":
            self._by_word.add(self._last_finished)
        read, cached = _read_so_far(value)
        for_us_alone = "usage" in self._plan.drop and value.get("choices") == [] and "usage" in value
        changed = self._strip(value)
        if for_us_alone:
            return EngineChunk(data=b"", ids=new, input=read, cached_input=cached) if new else None
        shown = data_event(_dump(value)) if changed else raw
        return EngineChunk(data=shown, ids=new, input=read, cached_input=cached)

    # --- whole bodies ---

    def body(self, raw: bytes) -> EngineChunk:
        """The whole answer, as the application gets it."""
        value = _object(raw)
        self.done = True
        if self._plan.ids is IdSource.VERBOSE:
            verbose = value.get("__verbose")
            self._ids[0].extend(_ids(verbose.get("tokens") if isinstance(verbose, dict) else None))
        self._take_prompt(value)
        self._take_choices(value, None)
        self._take_usage(value.get("usage"))
        new = tuple((choice, tuple(ids)) for choice, ids in enumerate(self._ids) if ids)
        read, cached = _read_so_far(value)
        return EngineChunk(data=_dump(value) if self._strip(value) else raw, ids=new, input=read, cached_input=cached)

    # --- the end ---

    def usage(self) -> EngineUsage:
        """What is to be billed and how sure it is."""
        counted = _count_of(self._usage, "completion_tokens")
        shown = sum(map(len, self._ids))
        ids = None if self._plan.ids is IdSource.NOWHERE else tuple(map(tuple, self._ids))
        if not shown and counted and not any(filler.lost for filler in self._fillers):
            ids = None  # an engine that was asked for ids and does not know them
        note = self._doubt(counted, shown, ids is None)
        return EngineUsage(
            input=_count_of(self._usage, "prompt_tokens") or 0,
            cached_input=_count_of(_inner(self._usage, "prompt_tokens_details"), "cached_tokens") or 0,
            # Never more than can be shown: ids that were lost are the worker's loss.
            output=(counted or 0) if ids is None else shown,
            ids=ids,
            finish=tuple(self._finish),
            verified=not note,
            note=note,
            audit=self._audit(verified=not note),
            audit_why=self._plan.why,
        )

    def _audit(self, *, verified: bool) -> EngineAudit | None:
        """What makes the answer one that can be re-run; the engine's own name is added by who knows it."""
        if self._plan.sampler is None or not self._prompt or not verified:
            return None
        return EngineAudit(prompt_ids=self._prompt, sampler=self._plan.sampler, engine="")

    def _doubt(self, counted: int | None, shown: int, without_ids: bool) -> str:
        if counted is None and self._usage is None:
            return NO_USAGE
        if without_ids:
            return NO_IDS if counted else ""  # an embedding has no output
        lost = sum(filler.lost for filler in self._fillers)
        if lost:
            return f"usage unverified: ids of {lost} output tokens are unknown"
        if any(filler.ambiguous for filler in self._fillers):
            return "usage unverified: some ids have more than one reading"
        if not self._plan.counts_all and None in self._counts:
            return "usage unverified: this engine counts only the first of several choices"
        if not self._texts_fit():
            return "usage unverified: the engine rewrote the text of its ids"  # llama.cpp: around JSON it was asked for
        expected = counted if self._plan.counts_all else sum(count or 0 for count in self._counts)
        return (
            ""
            if expected == shown
            else f"usage unverified: the engine counts {expected} output tokens, gave {shown} ids"
        )

    def _texts_fit(self) -> bool:
        if self._index is None:
            return True
        table, stop = self._index.table, self._plan.stop
        try:
            return all(
                choice in self._no_text or table.matches("".join(self._texts[choice]), ids, self._finish[choice], stop)
                for choice, ids in enumerate(self._ids)
            )
        except MalformedMessage:
            return False  # an id the table does not have

    # --- parts ---

    def _take_choices(self, value: dict[str, Any], count: int | None) -> tuple[tuple[int, tuple[int, ...]], ...]:
        choices = value.get("choices")
        if not isinstance(choices, list):
            if self._plan.ids is not IdSource.NOWHERE:
                raise EngineUnavailable("the engine's answer has no choices")
            return ()
        new = []
        for choice in choices:
            index = _index(choice, self._plan.choices)
            if isinstance(reason := choice.get("finish_reason"), str):
                self._finish[index], self._last_finished = reason, index
            self._take_text(choice, index)
            if ids := self._choice_ids(choice, index, count):
                self._ids[index].extend(ids)
                new.append((index, ids))
        return tuple(new)

    def _take_prompt(self, value: dict[str, Any]) -> None:
        """vLLM tells the prompt's ids once: beside the choices of a chat, inside the first of a completion."""
        if self._plan.sampler is None or self._prompt:
            return
        for holder in (value, *(choice for choice in value.get("choices") or () if isinstance(choice, dict))):
            if isinstance(told := holder.get("prompt_token_ids"), list):
                self._prompt = _ids(told)
                return

    def _take_text(self, choice: dict[str, Any], index: int) -> None:
        said = _inner(choice, "delta") or _inner(choice, "message") or {}
        if any(said.get(name) for name in OTHER_THAN_TEXT):
            self._no_text.add(index)
        for part in (said.get("content"), choice.get("text")):
            if isinstance(part, str):
                self._texts[index].append(part)
                self._size += len(part)
        if self._size > MAX_TEXT:
            raise EngineUnavailable(f"the engine's answer is longer than {MAX_TEXT} characters")

    def _choice_ids(self, choice: dict[str, Any], index: int, count: int | None) -> tuple[int, ...]:
        if self._plan.ids is IdSource.TOKEN_IDS:
            return _ids(choice.get("token_ids") or [])
        if self._plan.ids is not IdSource.LOGPROBS:
            return ()
        entries = (_inner(choice, "logprobs") or {}).get("content") or []
        if not isinstance(entries, list):
            raise EngineUnavailable("the engine's logprobs are not a list")
        ids = _ids([entry.get("id") if isinstance(entry, dict) else None for entry in entries])
        if not self._fillers or not self._plan.stream:
            return ids
        return self._fillers[index].take(_shown_text(choice), ids, count)

    def _take_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        if self._usage is None or self._plan.counts_all:
            self._usage = usage
        # llama.cpp: several choices send one usage each, right after the choice's end and without its index
        self._counts[self._last_finished] = _count_of(usage, "completion_tokens")

    def _settle(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        new: list[tuple[int, tuple[int, ...]]] = []
        for index, filler in enumerate(self._fillers if self._plan.ids is IdSource.LOGPROBS else []):
            count = self._counts[index]
            by_model = self._finish[index] == "stop" and index not in self._by_word
            if count is not None and (ids := filler.end(count, by_model=by_model)):
                self._ids[index].extend(ids)
                new.append((index, ids))
        return tuple(new)

    def _strip(self, value: dict[str, Any]) -> bool:
        drop, before = self._plan.drop, len(value)
        for name in drop & {"usage", "__verbose"} if self._plan.stream else drop & {"__verbose"}:
            value.pop(name, None)
        if "token_ids" in drop:
            value.pop("prompt_token_ids", None)
        if "timings" in drop and not _ends(value):
            value.pop("timings", None)  # the last event carries them by itself
        changed = len(value) != before
        for choice in value.get("choices") or []:
            before = len(choice)
            if "logprobs" in drop and choice.get("logprobs") is not None:
                choice["logprobs"] = None
                if "text" not in choice:  # chat answers without logprobs have no such field; completions say null
                    del choice["logprobs"]
                changed = True
            if "token_ids" in drop:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
            changed |= len(choice) != before
        return changed


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:  # half of a surrogate pair, and what else Python's own reader is lenient about
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise EngineUnavailable("the engine's answer is not JSON") from None
    if not isinstance(value, dict):
        raise EngineUnavailable("the engine's answer is not a JSON object")
    return value


def _dump(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # half of a surrogate pair, written as an escape
        return json.dumps(value, separators=(",", ":")).encode()


def _inner(value: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    found = value.get(name) if value is not None else None
    return found if isinstance(found, dict) else None


def _count_of(value: Any, name: str) -> int | None:
    count = value.get(name) if isinstance(value, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < MAX_ID else None


def _read_so_far(value: dict[str, Any]) -> tuple[int | None, int]:
    """(input, cached input), where this engine tells both: in its usage, or in llama.cpp's timings."""
    usage, timings = _inner(value, "usage"), _inner(value, "timings")
    if (read := _count_of(usage, "prompt_tokens")) is not None:
        return read, _count_of(_inner(usage, "prompt_tokens_details"), "cached_tokens") or 0
    if (fresh := _count_of(timings, "prompt_n")) is not None:
        cached = _count_of(timings, "cache_n") or 0
        return fresh + cached, cached
    # vLLM's first event has the prompt's ids, but not how many were cached: a bill from it might have to shrink later
    return None, 0


def _index(choice: Any, choices: int) -> int:
    index = choice.get("index", 0) if isinstance(choice, dict) else -1
    if not isinstance(index, int) or not 0 <= index < choices:
        raise EngineUnavailable("the engine answered with a choice nobody asked for")
    return index


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(isinstance(value, int) and 0 <= value < MAX_ID for value in values):
        raise EngineUnavailable("the engine's output ids are not a list of ids")
    return tuple(values)


def _shown_text(choice: dict[str, Any]) -> bytes:
    delta = _inner(choice, "delta") or {}
    parts = (delta.get("reasoning_content"), delta.get("content"), choice.get("text"))
    return "".join(part for part in parts if isinstance(part, str)).encode("utf-8", "surrogatepass")


def _ends(value: dict[str, Any]) -> bool:
    choices = value.get("choices") or []
    return not choices or any(choice.get("finish_reason") for choice in choices)
