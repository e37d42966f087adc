# SPDX-License-Identifier: Apache-2.0
"""What it costs that answers can be re-run: the auditable engine beside llama.cpp's own server, same model and threads.

Output tokens per second of processor time, of engine and worker process together, so that a neighbour's load counts
little; one answer at a time, and four at once. The same prompts in the same run, turn about. Prompts are read by both
without their prefix cache. Linux only: another process' processor time is read from /proc.

    python bench/engines.py [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from _machine import Goal, options, report

from bombyx.adapters.engine_auditable import AuditableEngine
from bombyx.adapters.engine_embedded import EmbeddedEngine, EmbeddedOptions
from bombyx.adapters.gguf import find_packaged_model
from bombyx.ports import AuditAsk, EngineEnd, EngineRequest
from bombyx.protocol.primitives import Digest

QUESTIONS = (
    "Explain how silk is made, step by step.",
    "Write a short story about a lighthouse keeper.",
    "Why do leaves change colour in autumn?",
    "Describe a walk through a busy harbour.",
)
Engine = AuditableEngine | EmbeddedEngine
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    given = options(__doc__)
    if not Path("/proc/self/stat").exists():
        sys.stderr.write("skipped: processor time of another process is read from /proc\n")
    rounds, tokens = (2, 48) if given.quick else (6, 128)
    found = asyncio.run(_measured(rounds, tokens))
    rows: list[dict[str, object]] = []
    goals = []
    for together in (1, 4):
        ours, theirs = found["auditable", together], found["server", together]
        ratio = _rate(ours) / _rate(theirs)
        rows += [
            {"engine": name, "at once": together, "tokens": int(sum(t for t, _ in runs)), "tok_per_cpu_s": _rate(runs)}
            for name, runs in (("auditable", ours), ("llama.cpp server", theirs))
        ]
        goals.append(Goal(f"auditable / server, {together} at once", ratio, ">=", 0.8))
    report("engines", rows, goals, as_json=given.json)


async def _measured(rounds: int, tokens: int) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(tokens, processor seconds) of every turn."""
    chosen = EmbeddedOptions(model=find_packaged_model(), name="model", parallel=4, context=1024)
    engines: dict[str, Engine] = {"auditable": AuditableEngine(chosen), "server": EmbeddedEngine(chosen)}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    try:
        for engine in engines.values():
            await _turn(engine, QUESTIONS[:1], 4)
        for turn in range(rounds):
            for together in (1, 4):
                asked = [QUESTIONS[(turn + place) % len(QUESTIONS)] for place in range(together)]
                for name, engine in engines.items():
                    found.setdefault((name, together), []).append(await _turn(engine, asked, tokens))
    finally:
        for engine in engines.values():
            await engine.close()
    return found


async def _turn(engine: Engine, asked: Sequence[str], tokens: int) -> tuple[float, float]:
    before = _spent(engine)
    made = await asyncio.gather(*(_ask(engine, question, tokens) for question in asked))
    return float(sum(made)), _spent(engine) - before


async def _ask(engine: Engine, question: str, tokens: int) -> int:
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 50,
        "seed": 7,
        "stream": True,
    }
    request = EngineRequest(
        path="/v1/chat/completions",
        body=json.dumps(body).encode(),
        stream=True,
        cache_salt=secrets.token_bytes(32),
        max_output=tokens,
        deadline_seconds=300.0,
        audit=AuditAsk(root=Digest.zero()),
    )
    output = 0
    async with aclosing(engine.run(request)) as events:
        async for event in events:
            if isinstance(event, EngineEnd):
                output = event.usage.output
    return output


def _spent(engine: Engine) -> float:
    """Processor seconds of this process and of the engine's."""
    other = 0.0
    if engine.pid is not None:
        fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
        other = (int(fields[11]) + int(fields[12])) / TICK
    return time.process_time() + other


def _rate(turns: Sequence[tuple[float, float]]) -> float:
    return sum(tokens for tokens, _ in turns) / sum(seconds for _, seconds in turns)


if __name__ == "__main__":
    main()
