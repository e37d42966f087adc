# SPDX-License-Identifier: Apache-2.0
"""Inference engines, and the prefill that re-runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bombyx.protocol.audit.margin import Row
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.audit import SamplerBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAsk:
    """An answer that can be re-run is wanted: the root every choice's seed comes from (AUD-1)."""

    root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAudit:
    """How an auditable answer was made: what nobody but the engine knows."""

    prompt_ids: tuple[int, ...] = field(repr=False)
    sampler: SamplerBlock = field(repr=False)
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One OpenAI request. `repr` shows no content."""

    path: str  # "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
    body: bytes = field(repr=False)
    stream: bool
    cache_salt: bytes = field(repr=False)  # the engine isolates its prefix cache by it, or has none
    max_output: int  # tokens
    deadline_seconds: float
    audit: AuditAsk | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHead:
    status: int
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChunk:
    """Bytes for the application (whole SSE events, or the whole JSON body), and the output ids they carry by choice."""

    data: bytes = field(repr=False)
    ids: tuple[tuple[int, tuple[int, ...]], ...] = field(default=(), repr=False)
    input: int | None = None  # tokens of input, where the engine tells before its end: checkpoints bill them
    cached_input: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUsage:
    """What the engine counted. `ids` per choice, or None when the engine gives none; `verified` when both agree."""

    input: int
    cached_input: int
    output: int
    ids: tuple[tuple[int, ...], ...] | None = field(repr=False)
    finish: tuple[str, ...]
    verified: bool
    note: str
    audit: EngineAudit | None = None  # none: this answer cannot be re-run
    audit_why: str = ""  # and why not, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnd:
    usage: EngineUsage


EngineEvent = EngineHead | EngineChunk | EngineEnd


class Engine(Protocol):
    """A model server on loopback, inside the enclave.

    - `run` must yield one EngineHead, then EngineChunks, then one EngineEnd; closing it must cancel the work.
    - Must pass the request through untouched but for what is needed to learn ids and usage, and must take those
      additions out of the answer again.
    - Must raise `EngineUnavailable` for a crash, a hang or garbage, `DeadlineExceeded` past the deadline.
    """

    async def models(self) -> tuple[str, ...]: ...

    def run(self, request: EngineRequest) -> AsyncIterator[EngineEvent]: ...

    async def close(self) -> None: ...


class Prefill(Protocol):
    """The claimed model, read in one pass over a prompt and the answer somebody says it gave: rows, never text.

    - `render` must give the prompt's ids as the pinned chat template and tokenizer make them. What cannot be re-run, or
      is not understood, it must refuse with `BadRequest`, never leave out.
    - `score` must give one row for each output id, in order, each with at least `top` candidates (all there are, if the
      vocabulary is smaller). Row i predicts output_ids[i] from everything before it.
    - Must not block the caller's loop. Must raise `EngineUnavailable` for a crash, a hang or garbage, and
      `BadRequest` for more ids than the model's context holds, or ids it does not have.
    """

    async def render(self, path: str, body: bytes) -> tuple[int, ...]: ...

    async def score(self, prompt_ids: Sequence[int], output_ids: Sequence[int], *, top: int) -> tuple[Row, ...]: ...

    async def close(self) -> None: ...
