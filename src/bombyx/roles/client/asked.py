# SPDX-License-Identifier: Apache-2.0
"""What an application asks, as far as a client must know: model, streamed or not, and how large it can get at most.

The body is read, never rewritten: what the worker opens is byte for byte what the application sent.

Bounds (spec CLI-3). A token spells at least one byte, so an input has at most as many tokens as the body has bytes,
plus what the chat template adds, and never more than the model's context for each prompt. Images count by a flat
bound, as their bytes say nothing about their tokens. The bounds set what is reserved, not what is charged.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import BadRequest
from bombyx.protocol.primitives import Address

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
SERVED: Final = (CHAT, COMPLETIONS, EMBEDDINGS)

TEMPLATE_TOKENS: Final = 256  # what a chat template may add by itself: a default system prompt, generation markers
MESSAGE_TOKENS: Final = 16  # role markers around one message; known templates use 3 .. 8
IMAGE_TOKENS: Final = 16_384  # one image; the largest tiling in use takes about 10 000
MAX_CHOICES: Final = 128  # OpenAI's own limit of `n`
MAX_PROMPTS: Final = 2048  # OpenAI's own limit of one embeddings request


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`conversation` is empty where there is none: then every request is a conversation of its own."""

    path: str
    model: str
    stream: bool
    input_bound: int  # tokens, before the model's context is considered
    output_bound: int  # tokens per choice
    prompts: int
    choices: int  # answers in all: prompts x n
    conversation: bytes
    stop: tuple[str, ...]
    echo: bool  # the answer repeats the prompt (completions): its text is not that of the output ids
    method: str = "POST"
    only: tuple[Address, ...] = ()  # the workers that can answer; empty: whoever is drawn

    def max_input(self, context: int) -> int:
        """Tokens; `context` 0 means the model's is unknown."""
        return min(self.input_bound, context * self.prompts) if context > 0 else self.input_bound

    def max_output(self, context: int) -> int:
        per_choice = min(self.output_bound, context) if context > 0 else self.output_bound
        return per_choice * self.choices


def read_asked(path: str, body: bytes, *, default_output: int, max_body: int) -> Asked:
    """Raises `BadRequest` (404, 413, 400) for what no worker could serve."""
    if path not in SERVED:
        raise BadRequest(f"unknown path {path[:80]!r}", status=404, code="not_found", rule="CLI-1")
    if len(body) > max_body:
        raise BadRequest(f"a body of {len(body)} bytes, at most {max_body}", status=413, rule="CLI-1")
    asked = _object(body)
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("`model` is missing", rule="CLI-1", code="missing_model")
    prompts = _prompts(path, asked)
    return Asked(
        path=path,
        model=model,
        stream=path != EMBEDDINGS and asked.get("stream") is True,
        input_bound=_input_bound(path, asked, len(body)),
        output_bound=_output_bound(path, asked, default_output),
        prompts=prompts,
        choices=prompts * _choices(path, asked),
        conversation=_conversation(path, asked),
        stop=_stop(asked),
        echo=asked.get("echo") is True,
    )


def cache_salt(process_secret: bytes, conversation: bytes) -> bytes:
    """32 bytes by which an engine isolates its prefix cache: one conversation of one process shares with itself alone.

    `process_secret` is random and never stored, so that salts of two runs cannot be linked by a worker.
    """
    return hmac.new(process_secret, b"bombyx cache salt v1\x00" + conversation, hashlib.sha256).digest()


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("the body is not JSON", rule="CLI-1", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", rule="CLI-1", code="invalid_json")
    return value


def _prompts(path: str, asked: dict[str, Any]) -> int:
    if path == CHAT:
        return 1
    given = asked.get("prompt" if path == COMPLETIONS else "input")
    if not isinstance(given, list) or not given or isinstance(given[0], int):
        return 1
    if len(given) > MAX_PROMPTS:
        raise BadRequest(f"{len(given)} prompts, at most {MAX_PROMPTS}", rule="CLI-3")
    return len(given)


def _choices(path: str, asked: dict[str, Any]) -> int:
    n = _positive(asked, "n") or 1
    if path == COMPLETIONS:
        n = max(n, _positive(asked, "best_of") or 1)
    if n > MAX_CHOICES:
        raise BadRequest(f"`n` is {n}, at most {MAX_CHOICES}", rule="CLI-3")
    return n


def _output_bound(path: str, asked: dict[str, Any], default: int) -> int:
    if path == EMBEDDINGS:
        return 0
    names = ("max_completion_tokens", "max_tokens") if path == CHAT else ("max_tokens",)
    found = [value for value in (_positive(asked, name) for name in names) if value is not None]
    return max(found) if found else default


def _input_bound(path: str, asked: dict[str, Any], size: int) -> int:
    messages = asked.get("messages") if path == CHAT else None
    count = len(messages) if isinstance(messages, list) else 1
    images, image_bytes = _images(messages)
    return size - image_bytes + images * IMAGE_TOKENS + TEMPLATE_TOKENS + MESSAGE_TOKENS * count


def _images(messages: object) -> tuple[int, int]:
    """How many images, and how many bytes of the body are theirs (base64 data URLs)."""
    count = size = 0
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") != "image_url":
                continue
            count += 1
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            if isinstance(url, str) and url.startswith("data:") and url.isascii():
                size += len(url)
    return count, size


def _conversation(path: str, asked: dict[str, Any]) -> bytes:
    """Everything up to the first user message: all turns of one chat share it, different chats seldom do."""
    messages = asked.get("messages") if path == CHAT else None
    if not isinstance(messages, list):
        return b""
    first = next((i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "user"), None)
    if first is None:
        return b""
    opening = [asked.get("model"), messages[: first + 1]]
    try:
        return hashlib.sha256(orjson.dumps(opening, option=orjson.OPT_SORT_KEYS)).digest()
    except orjson.JSONEncodeError:  # nested deeper than orjson writes: no shared cache then
        return b""


def _stop(asked: dict[str, Any]) -> tuple[str, ...]:
    stop = asked.get("stop")
    given = [stop] if isinstance(stop, str) else stop
    return tuple(word for word in given if isinstance(word, str)) if isinstance(given, list) else ()


def _positive(asked: dict[str, Any], name: str) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequest(f"`{name}` must be a whole number, not negative", rule="CLI-3", code="invalid_parameter")
    return min(value, 1 << 32)
