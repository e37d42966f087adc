# SPDX-License-Identifier: Apache-2.0
"""Measures what honest answers of a model look like: asks engines that run it, re-runs what they say (spec JDG-6).

Every engine given is honest by construction: our own, with the weights in hand. They differ in threads, slots, machines
and how many answers run at once, which is what moves logits. Prefill against decode is in every answer.

Not here: engines and weights (`compose`), the bound itself (`protocol/audit/calibration.py`).
Always: an answer that cannot be re-run ends the measurement; leaving it out would make the rest look better.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bombyx.errors import ConfigError, EngineUnavailable
from bombyx.ports import AuditAsk, Engine, EngineChunk, EngineEnd, EngineHead, EngineRequest, EngineUsage, Prefill
from bombyx.protocol.audit.asked import CHAT, COMPLETIONS
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.audit.margin import needed
from bombyx.protocol.audit.seed import choice_seed
from bombyx.protocol.audit.verdict import ResponseVerdict, judge, scored_ids
from bombyx.protocol.primitives import Digest, tagged_hash
from bombyx.protocol.wire.audit import Calibration

RULE: Final = "JDG-6"
DEADLINE: Final = 600.0  # seconds of one answer on a busy machine
SHOWN: Final = "List five facts about honey bees."


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One honest configuration."""

    name: str
    engine: Engine
    at_once: int  # answers asked for at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is measured."""

    name: str  # what its engines call it
    prefill: Prefill
    ends: tuple[int, ...]
    chats: bool  # it has a chat template


async def measure(
    way: Way, subject: Subject, start: Calibration, *, first: int, count: int, tokens: int, told: Callable[[], None]
) -> list[ResponseVerdict]:
    """Verdicts on `count` honest answers of up to `tokens` tokens. Raises `ConfigError` if they cannot be re-run."""
    gate = asyncio.Semaphore(way.at_once)

    async def one(number: int) -> ResponseVerdict:
        async with gate:
            root = seed_of(number)
            path, body = asking(root, subject, tokens)
            usage = await answered(way.engine, path, body, root, tokens)
            verdict = await judged(subject, start, path, body, root, usage)
        told()
        return verdict

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(first, first + count)]
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


def seed_of(number: int) -> Digest:
    """What question and answer `number` are drawn by."""
    return tagged_hash("bombyx calibration v1", number.to_bytes(8))


def asking(seed: Digest, subject: Subject, tokens: int) -> tuple[str, bytes]:
    """Path and body of one question: a canary, for workers are judged by their answers to those."""
    canary = compose(seed, subject.name, tokens)
    while not subject.chats and canary.path != COMPLETIONS:
        seed = tagged_hash("bombyx calibration v1", seed)
        canary = compose(seed, subject.name, tokens)
    return canary.path, json.dumps(json.loads(canary.body) | {"stream": False}).encode()


def by_temperature(
    verdicts: Sequence[ResponseVerdict], subject: Subject, tokens: int
) -> dict[str, list[ResponseVerdict]]:
    """Verdicts in the order of their numbers, from 0, by the temperature that was asked for."""
    kinds: dict[str, list[ResponseVerdict]] = {}
    for number, verdict in enumerate(verdicts):
        asked = json.loads(asking(seed_of(number), subject, tokens)[1])
        kinds.setdefault(f"temperature {asked['temperature']:g}", []).append(verdict)
    return dict(sorted(kinds.items()))


def trial(subject: Subject, tokens: int) -> tuple[str, bytes]:
    """A question whose answer another seed changes."""
    body: dict[str, Any] = {"model": subject.name, "max_tokens": tokens, "temperature": 1}
    if subject.chats:
        return CHAT, json.dumps(body | {"messages": [{"role": "user", "content": SHOWN}]}).encode()
    return COMPLETIONS, json.dumps(body | {"prompt": SHOWN}).encode()


async def answered(engine: Engine, path: str, body: bytes, root: Digest, tokens: int) -> EngineUsage:
    """One answer, drawn by `root`. Raises `ConfigError` for an engine whose answers cannot be re-run."""
    request = EngineRequest(
        path=path, body=body, stream=False, cache_salt=root, max_output=tokens, deadline_seconds=DEADLINE,
        audit=AuditAsk(root=root),
    )  # fmt: skip
    status, said = 200, b""
    async with contextlib.aclosing(_typed(engine, request)) as events:
        async for event in events:
            if isinstance(event, EngineHead):
                status = event.status
            elif isinstance(event, EngineChunk):
                said = event.data[:200]
            elif isinstance(event, EngineEnd):
                if event.usage.audit is not None and event.usage.ids:
                    return event.usage
                raise ConfigError(
                    f"this engine's answers cannot be re-run: {_why(event.usage, status, said)}", rule=RULE
                )
    raise EngineUnavailable("an answer without an end")


def _why(usage: EngineUsage, status: int, said: bytes) -> str:
    if status != 200:
        return f"it refuses the request (status {status}): {said.decode(errors='replace')}"
    return usage.audit_why or usage.note or "it does not tell the ids of prompt and answer"


def _typed(engine: Engine, request: EngineRequest) -> Any:
    return engine.run(request)  # an asynchronous generator, whatever the port calls it


async def judged(
    subject: Subject, start: Calibration, path: str, body: bytes, root: Digest, usage: EngineUsage
) -> ResponseVerdict:
    """One answer, re-run."""
    audit, ids = usage.audit, usage.ids
    assert audit is not None
    assert ids
    prompt = await subject.prefill.render(path, body)
    if prompt != audit.prompt_ids:
        raise ConfigError("engine and prefill make different prompts of one request: other templates?", rule=RULE)
    scored = scored_ids(ids[0], finish=usage.finish[0], ends=subject.ends, stopped_by_text=False)
    rows = await subject.prefill.score(prompt, scored, top=needed(audit.sampler, start, len(scored)))
    return judge(rows, scored, sampler=audit.sampler, seed=choice_seed(root, 0), calibration=start)


def shares(count: int, ways: Sequence[object]) -> list[int]:
    """How many of `count` answers each configuration gives."""
    return [count // len(ways) + (place < count % len(ways)) for place in range(len(ways))]
