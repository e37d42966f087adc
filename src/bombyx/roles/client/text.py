# SPDX-License-Identifier: Apache-2.0
"""The text of each choice of an OpenAI answer, gathered as it passes: what billed ids are held against (spec RCT-6).

Reads, never changes. Tool calls, reasoning and refusals are rewritten by the engine from the same ids, so a choice that
holds one has no text of its own to compare: it is `None`, and the record says that it was not checked.

Always: memory is bounded; an event that is not JSON is left out, as the application will see it itself.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage, Peer
from bombyx.roles.client.asked import CHAT, COMPLETIONS

MAX_EVENT: Final = 4 << 20  # bytes of one SSE event
MAX_TEXT: Final = 16 << 20  # characters of all choices
MAX_INDEX: Final = 4096
MAX_ID: Final = 128  # characters
_REWRITTEN: Final = ("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal", "audio")


class AnswerText:
    """Feed the body's bytes; `done` turns true at `[DONE]`."""

    def __init__(self, path: str, *, streamed: bool) -> None:
        self._chat = path == CHAT
        self._none = path not in (CHAT, COMPLETIONS)
        self._streamed = streamed
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._texts: dict[int, list[str]] = {}
        self._rewritten: set[int] = set()
        self._size = 0
        self.done = False
        self.id = ""  # the answer's own name for itself

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        if self._none:
            return
        self._buffer += data
        if self._streamed:
            self._lines()
        if len(self._buffer) > (MAX_EVENT if self._streamed else 4 * MAX_TEXT):
            raise MalformedMessage("an event of the answer is too large", peer=Peer.WORKER, rule="CLI-5")

    @property
    def between_events(self) -> bool:
        """Whether something of our own could follow without running into an unfinished event."""
        return not self._data and not self._buffer

    def texts(self) -> list[str | None]:
        """By index, from 0; None where there is nothing to compare."""
        if not self._streamed and not self._none:
            self._whole()
        indices = set(self._texts) | self._rewritten
        count = max(indices) + 1 if indices else 0
        return [None if i in self._rewritten else "".join(self._texts.get(i, [])) for i in range(count)]

    def _lines(self) -> None:
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                event, self._data = b"\n".join(self._data), []
                self._event(event)

    def _event(self, event: bytes) -> None:
        if event.strip() == b"[DONE]":
            self.done = True
            return
        for choice in self._choices(event):
            self._take(choice, choice.get("delta") if self._chat else choice)

    def _whole(self) -> None:
        body, self._buffer = bytes(self._buffer), bytearray()
        for choice in self._choices(body):
            self._take(choice, choice.get("message") if self._chat else choice)

    def _take(self, choice: dict[str, Any], part: object) -> None:
        index = choice.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < MAX_INDEX or not isinstance(part, dict):
            return
        if any(part.get(name) for name in _REWRITTEN):
            self._rewritten.add(index)
        text = part.get("content" if self._chat else "text")
        pieces = self._texts.setdefault(index, [])
        if isinstance(text, str) and text:
            pieces.append(text)
            self._size += len(text)
        if self._size > MAX_TEXT:
            raise MalformedMessage("the answer's text is too large", peer=Peer.WORKER, rule="CLI-5")

    def _choices(self, data: bytes) -> list[dict[str, Any]]:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return []
        if not isinstance(value, dict):
            return []
        if not self.id and isinstance(value.get("id"), str):
            self.id = value["id"][:MAX_ID]
        choices = value.get("choices")
        return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
