# SPDX-License-Identifier: Apache-2.0
"""A canary: an ordinary question made from 32 bytes, so that whoever knows them can make it again (spec AUD-51).

A validator asks canaries as any client would. It commits to the seeds first; a juror later makes the same bodies from
them, so nobody can be accused with prompts written to make honest arithmetic differ.

Not here: when they are asked, and of whom (`plan.py`, `roles/validator`). Always: the same arguments give the same
bytes; every body is plain text chat or completion, which every auditable engine can re-run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from bombyx.protocol.audit.canary_texts import (
    CODE,
    LANGUAGES,
    NAMES,
    PLACES,
    PROSE,
    QUESTIONS,
    SUBJECTS,
    SUMS,
    SYSTEMS,
    TURNS,
)
from bombyx.protocol.primitives import Digest, tagged_hash

T = TypeVar("T")
CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
SHORTEST: Final = 8  # tokens; a plan's bound on answers lies above it
LONGEST: Final = 1_024

_LENGTHS: Final = (16, 24, 32, 48, 64, 96, 100, 128, 150, 200, 256, 300, 400, 512, 1_000)
_TEMPERATURES: Final = (0.7, 0.7, 0.7, 0.7, 0.7, 1.0, 1.0, 0, 0, 0.5)
_TOP_P: Final = (None, None, None, 0.95, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One request, as an application would have written it."""

    path: str
    body: bytes = field(repr=False)


def compose(seed: Digest, model: str, most: int) -> Canary:
    """The canary of `seed` for the model an application calls `model`; its answer has at most `most` tokens."""
    if not SHORTEST <= most <= LONGEST:
        raise ValueError(f"canaries have answers of {SHORTEST} .. {LONGEST} tokens, not {most}")
    chance = _Chance(seed)
    words = _words(chance)
    if chance.below(10) == 0:
        body: dict[str, Any] = {"model": model, "prompt": chance.one_of(PROSE).format(**words)}
        path = COMPLETIONS
    else:
        body, path = {"model": model, "messages": _messages(chance, words)}, CHAT
    body |= _settings(chance, most)
    return Canary(path=path, body=json.dumps(body, ensure_ascii=False).encode())


def _messages(chance: _Chance, words: dict[str, str]) -> list[dict[str, str]]:
    messages = []
    system = chance.one_of(SYSTEMS)
    if system:
        messages.append({"role": "system", "content": system})
    if chance.below(5) == 0:
        asked, said = chance.one_of(TURNS)
        messages.append({"role": "user", "content": asked.format(**words)})
        messages.append({"role": "assistant", "content": said.format(**words)})
    kind = chance.one_of((QUESTIONS, QUESTIONS, LANGUAGES, SUMS, CODE))
    messages.append({"role": "user", "content": chance.one_of(kind).format(**words)})
    return messages


def _settings(chance: _Chance, most: int) -> dict[str, Any]:
    """What applications set: temperature nearly always, the rest sometimes."""
    fitting = [length for length in _LENGTHS if length <= most] or [most]
    settings: dict[str, Any] = {"max_tokens": chance.one_of(fitting), "temperature": chance.one_of(_TEMPERATURES)}
    top_p = chance.one_of(_TOP_P)
    if top_p is not None:
        settings["top_p"] = top_p
    if chance.below(2):
        settings["stream"] = True
    return settings


def _words(chance: _Chance) -> dict[str, str]:
    name, other = chance.one_of(NAMES), chance.one_of(NAMES)
    return {
        "name": name,
        "other": other,
        "place": chance.one_of(PLACES),
        "subject": chance.one_of(SUBJECTS),
        "few": str(2 + chance.below(7)),
        "many": str(15 + chance.below(45)),
        "hour": str(8 + chance.below(12)),
        "a": str(11 + chance.below(80)),
        "b": str(3 + chance.below(40)),
        "c": str(101 + chance.below(800)),
    }


class _Chance:
    """Picks by a seed: SHA-256 in counter mode, four bytes a pick."""

    def __init__(self, seed: Digest) -> None:
        self._seed = seed
        self._picks = 0

    def below(self, bound: int) -> int:
        word = tagged_hash("bombyx canary v1", self._seed, self._picks.to_bytes(4))
        self._picks += 1
        return int.from_bytes(word[:8]) % bound

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]
