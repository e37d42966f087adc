# SPDX-License-Identifier: Apache-2.0
"""Several answers at once on one model: continuous batching over sequences, and the seeded sampler for each.

    waiting -> placed on a free sequence -> prompt computed -> one token a step -> finished; the sequence is free again

Runs in the process that holds the weights (`llama_process.py`). Not here: how requests come and answers go.

Always: what a sequence holds of one conversation (one salt) is used for that conversation alone; a step's tokens depend
on their own sequence's logits and seed only; a cancelled answer's sequence is free before the next step.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.adapters.chat_prompt import PromptMaker
from bombyx.adapters.llama_api import Item, LlamaContext, LlamaModel, Row
from bombyx.adapters.llama_logits import Candidates, log_normaliser, top_candidates
from bombyx.adapters.llama_text import TextMaker
from bombyx.errors import BadRequest
from bombyx.protocol.audit.sampler import choose, enough
from bombyx.protocol.wire.audit import SamplerBlock

PREFILL_ALONE: Final = 256  # prompt tokens of one step while nobody else is being answered
PREFILL_BESIDE: Final = 64  # and while others wait for their next token: a quarter of a second on one slow core
WORTH_KEEPING: Final = 8  # tokens of a common beginning below which a sequence is not preferred for being warm


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request: a prompt, and choices that differ by their seeds."""

    number: int
    path: str
    asked: Mapping[str, Any] = field(repr=False)
    sampler: SamplerBlock = field(repr=False)
    seeds: tuple[int, ...] = field(repr=False)
    salt: bytes = field(repr=False)
    logprobs: int | None  # alternatives to tell with each token; None: no log probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prompt was read; nothing is computed yet."""

    number: int
    prompt: tuple[int, ...] = field(repr=False)
    cached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One token of one choice. `finish` is empty until its last."""

    number: int
    choice: int
    token: int
    text: str = field(repr=False)
    logprob: dict[str, Any] | None = field(repr=False)
    finish: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The application's fault."""

    number: int
    status: int
    code: str
    message: str


Event = Started | Told | Refused


@dataclass(slots=True)
class _Sequence:
    """One place in the key-value cache. `held` are the tokens it has computed, of the conversation `salt`."""

    number: int
    held: list[int] = field(default_factory=list)
    salt: bytes | None = None
    busy: bool = False
    used: int = 0


class _Prompt:
    """What the choices of one job share."""

    def __init__(self, job: Job, ids: tuple[int, ...], limit: int) -> None:
        self.job = job
        self.ids = ids
        self.limit = limit
        self.first: tuple[Candidates, float] | None = None  # what follows the prompt, once it is computed
        self.computing = False
        self.told = False


class _Choice:
    """One answer under way."""

    def __init__(self, prompt: _Prompt, index: int) -> None:
        self.prompt = prompt
        self.index = index
        self.text = TextMaker(prompt.job.sampler.stop)
        self.ids: list[int] = []
        self.counts: Counter[int] = Counter()


class Batcher:
    """`add` and `cancel` between steps; `step` computes once and says what happened."""

    def __init__(self, model: LlamaModel, context: LlamaContext, *, sequences: int, room: int) -> None:
        """`room` is the tokens one sequence can hold."""
        self._model = model
        self._context = context
        self._room = room
        self._prompts = PromptMaker(model)
        self._sequences = [_Sequence(number) for number in range(sequences)]
        self._waiting: deque[_Choice] = deque()
        self._running: dict[int, _Choice] = {}  # by sequence
        self._events: list[Event] = []
        self._steps = 0

    @property
    def chats(self) -> bool:
        return self._prompts.chats

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def add(self, job: Job) -> None:
        try:
            ids = self._prompts.ids(job.path, job.asked)
            limit = min(job.sampler.max_output, self._room - len(ids))
            if not ids:
                raise BadRequest("the prompt is empty")
            if limit < 1:
                raise BadRequest(
                    f"the prompt has {len(ids)} tokens, the model's context {self._room}",
                    code="context_length_exceeded",
                )
        except BadRequest as error:
            refusal = Refused(number=job.number, status=error.status, code=error.code, message=error.message)
            self._events.append(refusal)
            return
        prompt = _Prompt(job, ids, limit)
        self._waiting.extend(_Choice(prompt, index) for index in range(len(job.seeds)))

    def cancel(self, number: int) -> None:
        self._waiting = deque(choice for choice in self._waiting if choice.prompt.job.number != number)
        for place, choice in list(self._running.items()):
            if choice.prompt.job.number == number:
                self._free(place)

    def step(self) -> list[Event]:
        """Compute the next token of every answer, or a part of a prompt."""
        self._steps += 1
        self._place_waiting()
        items, wanted = self._items()
        if items:
            for index, row in self._context.decode(items):
                self._took(wanted[index], row)
        events, self._events = self._events, []
        return events

    # --- placing -----------------------------------------------------------------------------------------------------

    def _place_waiting(self) -> None:
        """Answers go to free sequences in the order they came; a sibling waits for its prompt to be computed once."""
        later: deque[_Choice] = deque()
        while self._waiting:
            choice = self._waiting.popleft()
            free = [sequence for sequence in self._sequences if not sequence.busy]
            if not free:
                later.append(choice)
                break
            if choice.prompt.first is not None:
                self._place_beside(choice, free)
            elif choice.prompt.computing:
                later.append(choice)
            else:
                self._place(choice, free)
        self._waiting = later + self._waiting

    def _place(self, choice: _Choice, free: Sequence[_Sequence]) -> None:
        prompt = choice.prompt
        sequence, common = self._warmest(prompt, free)
        self._context.cut(sequence.number, common)
        del sequence.held[common:]
        self._seat(choice, sequence)
        prompt.computing = True
        if not prompt.told:
            prompt.told = True
            self._events.append(Started(number=prompt.job.number, prompt=prompt.ids, cached=common))

    def _place_beside(self, choice: _Choice, free: Sequence[_Sequence]) -> None:
        """The prompt was computed for another choice: copy it, where some sequence still has it."""
        prompt = choice.prompt
        size = len(prompt.ids)
        holders = (one for one in self._sequences if one.salt == prompt.job.salt and len(one.held) >= size)
        source = next((one for one in holders if tuple(one.held[:size]) == prompt.ids), None)
        if source is None:
            prompt.first, prompt.computing = None, False
            self._place(choice, free)
            return
        sequence = next((one for one in free if one is source), None) or min(free, key=lambda one: one.used)
        if sequence is not source:
            self._context.copy(source.number, sequence.number)
        self._context.cut(sequence.number, size)
        sequence.held[:] = prompt.ids
        self._seat(choice, sequence)
        assert prompt.first is not None
        self._sample(sequence.number, choice, *prompt.first)

    def _warmest(self, prompt: _Prompt, free: Sequence[_Sequence]) -> tuple[_Sequence, int]:
        """The free sequence that holds most of this prompt from the same conversation; else the longest unused."""
        best, most = min(free, key=lambda one: one.used), 0
        for sequence in free:
            if sequence.salt == prompt.job.salt:
                common = _common(sequence.held, prompt.ids)
                if common >= WORTH_KEEPING and common > most:
                    best, most = sequence, common
        return best, min(most, len(prompt.ids) - 1)  # the last token is computed anyway: its logits are wanted

    def _seat(self, choice: _Choice, sequence: _Sequence) -> None:
        sequence.busy, sequence.used, sequence.salt = True, self._steps, choice.prompt.job.salt
        self._running[sequence.number] = choice

    def _free(self, place: int) -> None:
        choice, sequence = self._running.pop(place), self._sequences[place]
        sequence.busy, sequence.used = False, self._steps
        if choice.prompt.first is None:
            choice.prompt.computing = False

    # --- computing ---------------------------------------------------------------------------------------------------

    def _items(self) -> tuple[list[Item], dict[int, int]]:
        """What to compute, and which sequence each wanted row belongs to."""
        items: list[Item] = []
        wanted: dict[int, int] = {}
        reading = []
        for place, choice in self._running.items():
            held = self._sequences[place].held
            if not choice.ids:
                reading.append(place)
                continue
            wanted[len(items)] = place
            items.append(Item(choice.ids[-1], len(held), place, True))
            held.append(choice.ids[-1])
        left = min(PREFILL_BESIDE if items else PREFILL_ALONE, self._context.batch - len(items))
        for place in reading:
            held, prompt = self._sequences[place].held, self._running[place].prompt.ids
            part = prompt[len(held) : len(held) + left]
            for token in part:
                items.append(Item(token, len(held), place, len(held) == len(prompt) - 1))
                held.append(token)
            if part and len(held) == len(prompt):
                wanted[len(items) - 1] = place
            left -= len(part)
        return items, wanted

    def _took(self, place: int, row: Row) -> None:
        choice = self._running[place]
        sampler, job = choice.prompt.job.sampler, choice.prompt.job
        candidates = top_candidates(row, enough(sampler, len(choice.counts)))
        normaliser = log_normaliser(row) if job.logprobs is not None else 0.0
        if not choice.ids:
            choice.prompt.first = (candidates, normaliser)
        self._sample(place, choice, candidates, normaliser)

    def _sample(self, place: int, choice: _Choice, candidates: Candidates, normaliser: float) -> None:
        job = choice.prompt.job
        token = choose(
            candidates, job.sampler, seed=job.seeds[choice.index], position=len(choice.ids), counts=choice.counts
        )
        choice.ids.append(token)
        choice.counts[token] += 1
        text, finish = self._grow(choice, token)
        logprob = None
        if job.logprobs is not None and not (finish == "stop" and self._model.is_end(token)):
            logprob = self._logprob(token, candidates, normaliser, job.logprobs)
        told = Told(number=job.number, choice=choice.index, token=token, text=text, logprob=logprob, finish=finish)
        self._events.append(told)
        if finish:
            self._free(place)

    def _grow(self, choice: _Choice, token: int) -> tuple[str, str]:
        """(text to show, why it ended)."""
        if self._model.is_end(token):
            return choice.text.end(), "stop"
        text, stopped = choice.text.add(self._model.piece(token))
        if stopped:
            return text, "stop"
        if len(choice.ids) >= choice.prompt.limit:
            return text + choice.text.end(), "length"
        return text, ""

    def _logprob(self, token: int, candidates: Candidates, normaliser: float, count: int) -> dict[str, Any]:
        """As OpenAI's chat answers show it: of the model, before penalties and temperature."""
        logits = dict(candidates)
        entry = self._shown(token, logits[token] - normaliser)
        entry["top_logprobs"] = [self._shown(other, logit - normaliser) for other, logit in candidates[:count]]
        return entry

    def _shown(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._model.piece(token, special=True)
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}


def _common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens two sequences begin with alike."""
    count = 0
    for one, other in zip(held, prompt, strict=False):
        if one != other:
            break
        count += 1
    return count
