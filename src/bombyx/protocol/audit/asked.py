# SPDX-License-Identifier: Apache-2.0
"""How an OpenAI request wants its tokens chosen, and whether an answer to it can be re-run at all (spec AUD-3).

Worker, client and Verifier read a body with these lines, so that none can claim another temperature than was asked for.

Always: a field that is not known here, and not empty, makes a request uncovered: what it would do to the answer is
unknown. Uncovered requests are served too; their receipts say `audit: none` and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.protocol.wire.audit import (
    ALGORITHM,
    MAX_PENALTY_E6,
    MAX_STOP,
    MAX_STOPS,
    MAX_TEMPERATURE_E6,
    MAX_TOP_K,
    MILLION,
    SamplerBlock,
    SeedSource,
)

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"

# Where the application names none. Written here because both ends must read the same from an empty field.
DEFAULT_TEMPERATURE_E6: Final = 700_000
DEFAULT_TOP_P_E6: Final = 950_000
DEFAULT_TOP_K: Final = 50

MAX_LOGPROBS: Final = 20
_READ: Final = frozenset({
    "model", "messages", "prompt", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "top_k", "seed", "stop", "presence_penalty", "frequency_penalty",
    "logprobs", "top_logprobs",
})  # fmt: skip
_IGNORED: Final = frozenset({  # they change nothing an engine computes
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
})  # fmt: skip
_NEUTRAL: Final[Mapping[str, Callable[[Any], bool]]] = {  # these may stand there as long as they say nothing
    "best_of": lambda value: value == 1,
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value == "none",
    "functions": lambda value: value == [],
    "function_call": lambda value: value == "none",
    "response_format": lambda value: value == {"type": "text"},
    "logit_bias": lambda value: value == {},
    "modalities": lambda value: value == ["text"],
    "min_p": lambda value: value == 0,
    "typical_p": lambda value: value == 1,
    "repetition_penalty": lambda value: value == 1,
    "repeat_penalty": lambda value: value == 1,
}
_ROLES: Final = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """A covered request: `sampler` for each of `choices`. An uncovered one has none, and `why`."""

    sampler: SamplerBlock | None = field(default=None, repr=False)
    choices: int = 1
    why: str = ""


def read_sampling(path: str, asked: Mapping[str, Any], *, cap: int) -> Sampling:
    """`cap`: output tokens the whole answer may have (Meta.max_output); choices share it."""
    if why := uncovered(path, asked):
        return Sampling(why=why)
    choices = _choices(asked)
    limit = min([cap // choices, *_limits(asked)])
    if limit < 1:
        return Sampling(why="no output tokens are allowed for it")
    temperature = _millionths(asked.get("temperature"), DEFAULT_TEMPERATURE_E6)
    source = SeedSource.JOINT if asked.get("seed") is None else SeedSource.APPLICATION
    sampler = SamplerBlock(
        algorithm=ALGORITHM,
        temperature_e6=temperature,
        top_p_e6=max(1, _millionths(asked.get("top_p"), DEFAULT_TOP_P_E6)),
        top_k=_top_k(asked.get("top_k")),
        presence_e6=_millionths(asked.get("presence_penalty"), 0),
        frequency_e6=_millionths(asked.get("frequency_penalty"), 0),
        max_output=limit,
        seed_source=source if temperature else SeedSource.GREEDY,
        stop=stop_strings(asked),
    )
    return Sampling(sampler=sampler, choices=choices)


def uncovered(path: str, asked: Mapping[str, Any]) -> str:
    """Why an answer to this cannot be re-run; empty when it can."""
    if path not in (CHAT, COMPLETIONS):
        return f"{path} is not covered"
    for name, value in asked.items():
        if value is None or name in _READ or name in _IGNORED:
            continue
        neutral = _NEUTRAL.get(name)
        if neutral is None or not neutral(value):
            return f"`{name[:40]}` is not covered"
    return _uncovered_numbers(asked) or (_uncovered_chat(asked) if path == CHAT else _uncovered_prompt(asked))


def stop_strings(asked: Mapping[str, Any]) -> tuple[str, ...]:
    """The strings an answer ends before."""
    stop = asked.get("stop")
    words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return tuple(word for word in words if isinstance(word, str) and word)


# --- parts -----------------------------------------------------------------------------------------------------------


def _uncovered_numbers(asked: Mapping[str, Any]) -> str:
    ranges = {
        "temperature": (0.0, MAX_TEMPERATURE_E6 / MILLION),
        "top_p": (0.0, 1.0),
        "presence_penalty": (0.0, MAX_PENALTY_E6 / MILLION),
        "frequency_penalty": (0.0, MAX_PENALTY_E6 / MILLION),
    }
    for name, (low, high) in ranges.items():
        value = asked.get(name)
        if value is not None and not (_is_number(value) and low <= value <= high):
            return f"`{name}` outside {low:g} .. {high:g} is not covered"
    for name in ("n", "max_tokens", "max_completion_tokens", "top_k", "seed", "top_logprobs"):
        value = asked.get(name)
        if value is not None and not _is_whole(value):
            return f"`{name}` is no whole number"
    if _choices(asked) < 1 or not 0 <= (asked.get("top_logprobs") or 0) <= MAX_LOGPROBS:
        return "`n` or `top_logprobs` is out of range"
    return _uncovered_words(asked)


def _uncovered_words(asked: Mapping[str, Any]) -> str:
    logprobs = asked.get("logprobs")
    if not (logprobs is None or isinstance(logprobs, bool) or (_is_whole(logprobs) and 0 <= logprobs <= MAX_LOGPROBS)):
        return "`logprobs` is out of range"
    stop = asked.get("stop")
    if not (stop is None or isinstance(stop, str) or (isinstance(stop, list) and all(map(_is_text, stop)))):
        return "`stop` is no string"
    words = stop_strings(asked)
    if len(words) > MAX_STOPS or sum(len(word.encode("utf-8", "replace")) for word in words) > MAX_STOP:
        return "so many stop strings are not covered"
    return ""


def _uncovered_chat(asked: Mapping[str, Any]) -> str:
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        return "there are no messages"
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return "a message of another role is not covered"
        if any(value for name, value in message.items() if name not in ("role", "content", "name")):
            return "a message with more than text is not covered"
        if message_text(message) is None:
            return "a message that is not text is not covered"
    if messages[-1]["role"] == "assistant":
        return "going on with the assistant's own words is not covered"
    return ""


def message_text(message: Mapping[str, Any]) -> str | None:
    """The text of one message: its string, or its text parts on lines of their own; None when it has other parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content if _is_text(content) else None
    if not isinstance(content, list) or not content:
        return None
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not _is_text(part.get("text")):
            return None
        parts.append(part["text"])
    return "\n".join(parts)


def _uncovered_prompt(asked: Mapping[str, Any]) -> str:
    prompt = asked.get("prompt")
    if _is_text(prompt) or (isinstance(prompt, list) and prompt and all(map(_is_token, prompt))):
        return ""
    return "several prompts, or none, are not covered"


def _is_token(value: Any) -> bool:
    return _is_whole(value) and 0 <= value < 1 << 31


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    """A string that UTF-8 can write: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and not any(0xD800 <= ord(character) < 0xE000 for character in value)


def _millionths(value: float | None, default: int) -> int:
    return default if value is None else round(value * MILLION)


def _top_k(value: int | None) -> int:
    """Larger ones, and those that mean all, become the largest that can be checked; the block tells."""
    if value is None:
        return DEFAULT_TOP_K
    return min(value, MAX_TOP_K) if value >= 1 else MAX_TOP_K


def _choices(asked: Mapping[str, Any]) -> int:
    wanted: int | None = asked.get("n")
    return 1 if wanted is None else wanted


def _limits(asked: Mapping[str, Any]) -> list[int]:
    given = (asked.get("max_tokens"), asked.get("max_completion_tokens"))
    return [value for value in given if value is not None and value >= 0]
