# SPDX-License-Identifier: Apache-2.0
"""Writes OpenAI answers, whole or as server-sent events, chat and completions. No I/O; `engine_auditable` fills them.

Always: one object a stream event, every event with choices unless it is the usage the application asked for; log
probabilities only where asked for, in the form of the path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.protocol.audit.asked import CHAT

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What every part of one answer repeats."""

    path: str
    model: str
    identity: str
    created: int
    stream: bool
    include_usage: bool
    logprobs: int | None

    @property
    def chat(self) -> bool:
        return self.path == CHAT


def form_of(path: str, asked: Mapping[str, Any], *, stream: bool, identity: str, created: int) -> Form:
    """From a covered request (`protocol/audit/asked.py`)."""
    options = asked.get("stream_options")
    logprobs, top = asked.get("logprobs"), asked.get("top_logprobs") or 0
    wanted = None if logprobs is None or logprobs is False else top if logprobs is True else logprobs
    return Form(
        path=path,
        model=str(asked.get("model", "")),
        identity=("chatcmpl-" if path == CHAT else "cmpl-") + identity,
        created=created,
        stream=stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        logprobs=wanted,
    )


@dataclass(slots=True)
class _Grown:
    """One choice of a whole answer."""

    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str = ""


class Body:
    """One answer's bytes."""

    def __init__(self, form: Form, choices: int) -> None:
        self._form = form
        self._grown = [_Grown() for _ in range(choices)]
        self._offsets = [0] * choices  # completions tell where in the text each token begins

    # --- streams ---

    def opening(self) -> bytes:
        """A chat's first event of each choice says who speaks."""
        if not self._form.chat:
            return b""
        roles: dict[str, Any] = {"role": "assistant", "content": ""}
        return b"".join(
            self._event({"index": index, "delta": roles, "finish_reason": None}) for index in range(len(self._grown))
        )

    def token(self, index: int, text: str, logprob: dict[str, Any] | None, finish: str) -> bytes:
        """The events of one token: its text, and the end where it is the last."""
        if self._form.chat:
            return self._chat_token(index, text, logprob, finish)
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": finish or None}
        if logprob is not None:
            choice["logprobs"] = self._legacy(index, [logprob])
        return self._event(choice)

    def _chat_token(self, index: int, text: str, logprob: dict[str, Any] | None, finish: str) -> bytes:
        said = b""
        if text or logprob is not None or not finish:
            choice: dict[str, Any] = {"index": index, "delta": {"content": text}, "finish_reason": None}
            if logprob is not None:
                choice["logprobs"] = {"content": [logprob], "refusal": None}
            said = self._event(choice)
        return said + self._event({"index": index, "delta": {}, "finish_reason": finish}) if finish else said

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The usage, where it was asked for, and the end."""
        if not self._form.include_usage:
            return DONE
        return _sse({**self._frame("chunk"), "choices": [], "usage": usage}) + DONE

    def _event(self, choice: dict[str, Any]) -> bytes:
        event = {**self._frame("chunk"), "choices": [choice]}
        if self._form.include_usage:
            event["usage"] = None
        return _sse(event)

    # --- whole answers ---

    def keep(self, index: int, text: str, logprob: dict[str, Any] | None, finish: str) -> None:
        grown = self._grown[index]
        grown.text.append(text)
        grown.finish = finish or grown.finish
        if logprob is not None:
            grown.logprobs.append(logprob)

    def whole(self, usage: dict[str, Any]) -> bytes:
        choices = [self._choice(index, grown) for index, grown in enumerate(self._grown)]
        return _dump({**self._frame(""), "choices": choices, "usage": usage})

    def _choice(self, index: int, grown: _Grown) -> dict[str, Any]:
        text, wanted = "".join(grown.text), self._form.logprobs is not None
        if self._form.chat:
            said = {"role": "assistant", "content": text}
            logprobs: Any = {"content": grown.logprobs, "refusal": None} if wanted else None
            return {"index": index, "message": said, "logprobs": logprobs, "finish_reason": grown.finish}
        legacy = self._legacy(index, grown.logprobs) if wanted else None
        return {"index": index, "text": text, "logprobs": legacy, "finish_reason": grown.finish}

    # --- parts ---

    def _frame(self, kind: str) -> dict[str, Any]:
        form = self._form
        if form.chat:
            name = "chat.completion.chunk" if kind else "chat.completion"
        else:
            name = "text_completion"
        return {"id": form.identity, "object": name, "created": form.created, "model": form.model}

    def _legacy(self, index: int, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Log probabilities as completions show them: four lists side by side."""
        offsets = []
        for entry in entries:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }


def usage_object(read: int, cached: int, output: int) -> dict[str, Any]:
    """`usage` as applications see it."""
    return {
        "prompt_tokens": read,
        "completion_tokens": output,
        "total_tokens": read + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error_object(message: str, code: str) -> bytes:
    """A refusal."""
    return _dump({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + _dump(value) + b"\n\n"


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
