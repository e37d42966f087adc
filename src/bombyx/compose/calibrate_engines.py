# SPDX-License-Identifier: Apache-2.0
"""A calibration run over engines that run elsewhere: vLLM with the seeded sampler, asked and re-run (spec JDG-6).

Each URL is one honest machine. Answers of every machine are re-run on every machine, alone and eight at once, which is
where honest rounding comes from in production. The questions are public, so an engine may be far away; who can alter
what it says makes the calibration, so far away means https.

Not here: proof that the engines run the weights they are said to run. They are the caller's own. Always: an engine is
tried before it is measured, and what it lacks is said: the sampler, ids, `prompt_logprobs`, the same template.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
from yarl import URL

from bombyx.adapters.engine_dialect import Dialect
from bombyx.adapters.engine_openai import OpenAIEngine, is_loopback
from bombyx.adapters.prefill_vllm import VllmPrefill
from bombyx.compose.calibrate import Measured
from bombyx.errors import BadRequest, BombyxError, ConfigError, MalformedMessage
from bombyx.protocol.audit.asked import CHAT
from bombyx.protocol.audit.calibration import DEFAULT, calibrate, checked, group_mean
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.audit import Calibration
from bombyx.roles.validator.calibrating import Subject, Way, answered, by_temperature, judged, measure, shares, trial

AT_ONCE: Final = (1, 8)  # answers asked for side by side: batches differ, and with them sums
TRIAL_TOKENS: Final = 32
MOST_FAILED: Final = 0.05  # of answers; honest ones fail once in hundreds, other weights nearly always
SAMPLER: Final = "vllm serve --logits-processors bombyx.adapters.vllm_sampler:SeededSampler"
ROWS: Final = "vllm serve --logprobs-mode raw_logits --max-logprobs 136"
MAX_VERSION: Final = 4_096  # bytes of /version


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One engine at hand."""

    name: str
    engine: OpenAIEngine
    prefill: VllmPrefill
    model: str

    def subject(self, *, chats: bool) -> Subject:
        # No end-of-generation ids: vLLM tells the one it drew among the answer's ids, and an honest one drew it.
        return Subject(name=self.model, prefill=self.prefill, ends=(), chats=chats)


async def calibrate_engines(
    urls: Sequence[str],
    *,
    model: str,
    key: str,
    answers: int,
    tokens: int,
    family: str,
    told: Callable[[int, int], None],
) -> Measured:
    """As `calibrate_model`, over `urls`. `model` and `family` may be empty: they are asked of the first engine.

    Raises `ConfigError` for engines that cannot be measured, `EngineUnavailable` for those that do not answer.
    """
    async with AsyncExitStack() as stack:
        machines = [await _machine(url, model, key, stack) for url in urls]
        start = replace(DEFAULT, family=family or await _family(machines[0], urls[0], key))
        chats = await _chats(machines[0])
        for machine in machines:
            await _try(machine, start, chats=chats)
        groups = await _measured(machines, start, chats=chats, answers=answers, tokens=tokens, told=told)
    found = [verdict for group in groups.values() for verdict in group]
    kinds = by_temperature(found, machines[0].subject(chats=chats), tokens)
    return Measured(weights=None, calibration=_sane(groups, kinds, start), groups=groups, kinds=kinds)


async def _measured(
    machines: Sequence[Machine],
    start: Calibration,
    *,
    chats: bool,
    answers: int,
    tokens: int,
    told: Callable[[int, int], None],
) -> dict[str, list[ResponseVerdict]]:
    """Each answer is re-run once: counted twice, it would make the bound look better than it is."""
    ways = list(itertools.product(machines, machines, AT_ONCE))
    done = itertools.count(1)
    groups: dict[str, list[ResponseVerdict]] = {}
    first = 0
    for (asked, judge, at_once), count in zip(ways, shares(answers, ways), strict=True):
        by = "" if judge is asked else f", re-run by {judge.name}"
        way = Way(name=f"{asked.name}, {at_once} at once{by}", engine=asked.engine, at_once=at_once)
        groups[way.name] = await measure(
            way, judge.subject(chats=chats), start, first=first, count=count, tokens=tokens,
            told=lambda: told(next(done), answers),
        )  # fmt: skip
        first += count
    return groups


def _sane(
    groups: dict[str, list[ResponseVerdict]], kinds: dict[str, list[ResponseVerdict]], start: Calibration
) -> Calibration:
    """Raises `ConfigError` where the numbers are not those of honest machines: nobody could be judged by them."""
    found = [verdict for group in groups.values() for verdict in group]
    failed = sum(verdict.failed for verdict in found)
    worst = max((name for name, group in groups.items() if group), key=lambda name: group_mean(groups[name]))
    if failed > max(1, MOST_FAILED * len(found)):
        raise ConfigError(
            f"{failed} of {len(found)} answers fail, most of all: {worst}. Do all of these run the same weights, "
            "unquantised caches and the same version of bombyx?",
            rule="JDG-6",
        )
    try:
        return checked(calibrate(groups, start, kinds=kinds))
    except MalformedMessage as error:
        raise ConfigError(f"what {worst} says bounds nothing: {error.message}", rule="JDG-6") from None


# BEFORE MEASURING


async def _machine(url: str, model: str, key: str, stack: AsyncExitStack) -> Machine:
    name = _address(url)
    engine = OpenAIEngine(url, dialect=Dialect.VLLM_SEEDED, api_key=key or None, unsafe_allow_remote=True)
    stack.push_async_callback(engine.close)
    served = await engine.models()
    if model and model not in served:
        raise ConfigError(f"{name} serves {', '.join(served) or 'no model'}, not {model!r}", rule="JDG-6")
    if not model and len(served) != 1:
        raise ConfigError(f"{name} serves {', '.join(served) or 'no model'}: name one with --model", rule="JDG-6")
    prefill = VllmPrefill(url, model=model or served[0], api_key=key or None, unsafe_allow_remote=True)
    stack.push_async_callback(prefill.close)
    return Machine(name=name, engine=engine, prefill=prefill, model=model or served[0])


def _address(url: str) -> str:
    """Host and port, for the table. Raises `ConfigError` for a URL that is none, or whose answers anybody may alter."""
    try:
        found = URL(url)
    except ValueError:
        raise ConfigError(f"{url!r} is no URL", rule="JDG-6") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise ConfigError(f"{url!r} is no URL of an engine", rule="JDG-6")
    if found.scheme == "http" and not is_loopback(found.host):
        raise ConfigError(f"{found.host} is far away: https, or a tunnel to loopback", rule="JDG-6")
    return f"{found.host}:{found.port}"


async def _family(machine: Machine, url: str, key: str) -> str:
    """vLLM's version, where it tells one: rounding changes with kernels."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            asyncio.timeout(10),
            aiohttp.ClientSession(headers=headers, trust_env=False) as http,
            http.get(URL(url) / "version", allow_redirects=False) as response,
        ):
            told: Any = json.loads(await response.content.read(MAX_VERSION))
        version = str(told["version"])
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{machine.name} tells no version: name its family with --family", rule="JDG-6") from None
    return f"vllm {version}"[:64]


async def _chats(machine: Machine) -> bool:
    """Whether the model has a chat template; if not, completions are measured."""
    try:
        await machine.prefill.render(CHAT, trial(machine.subject(chats=True), TRIAL_TOKENS)[1])
    except BadRequest:
        return False
    return True


async def _try(machine: Machine, start: Calibration, *, chats: bool) -> None:
    """Two answers to one question under two seeds. Raises `ConfigError` that says what the engine lacks."""
    subject = machine.subject(chats=chats)
    path, body = trial(subject, TRIAL_TOKENS)
    roots = [sha256(b"trial", bytes([number])) for number in range(2)]
    made = [await answered(machine.engine, path, body, root, TRIAL_TOKENS) for root in roots]
    if made[0].ids == made[1].ids:
        raise ConfigError(
            f"{machine.name} answers alike whatever the seed: its vLLM runs without the sampler ({SAMPLER})",
            rule="JDG-6",
        )
    try:
        found = [await judged(subject, start, path, body, root, usage) for root, usage in zip(roots, made, strict=True)]
    except ConfigError:
        raise
    except BombyxError as error:
        raise ConfigError(
            f"{machine.name} does not tell what a re-run needs ({error.message}): {ROWS}", rule="JDG-6"
        ) from None
    if all(verdict.failed for verdict in found):
        raise ConfigError(
            f"{machine.name} draws by another sampler than this version of bombyx, or its prompt_logprobs are not the "
            "model's own: answers to two questions fail",
            rule="JDG-6",
        )
