# SPDX-License-Identifier: Apache-2.0
"""Answers for bench/verification.py, made by llama.cpp as a worker makes them: honestly, or with one thing changed.

Several sequences are decoded together, each joins when another ends, and every token is drawn by the protocol's own
sampler. A `Make` says what this worker does; what it *claims* is always `CLAIMED`. Answers go to `<name>.jsonl`, one
line each, their final hidden states (for TOPLOC) to `<name>.jsonl.hid`; a run goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from _prompts import OTHER_SYSTEM, SYSTEM, chat_text, question

from bombyx.adapters.gguf import find_packaged_model
from bombyx.adapters.llama_api import Item, LlamaContext, LlamaModel, library
from bombyx.adapters.llama_logits import top_candidates
from bombyx.errors import EngineUnavailable
from bombyx.protocol.audit.sampler import choose, enough
from bombyx.protocol.wire.audit import ALGORITHM, SamplerBlock, SeedSource

CLAIMED: Final = SamplerBlock(
    algorithm=ALGORITHM,
    temperature_e6=700_000,
    top_p_e6=950_000,
    top_k=50,
    presence_e6=0,
    frequency_e6=0,
    max_output=96,
    seed_source=SeedSource.JOINT,
    stop=(),
)
ROOM: Final = 512  # tokens of one sequence
LENGTHS: Final = (32, 48, 64, 96)  # output limits of honest answers, in turn
MORE_C: Final = """
void llama_set_embeddings(llama_context * ctx, bool embeddings);
float * llama_get_embeddings_ith(llama_context * ctx, int32_t i);
int32_t llama_model_n_embd(const llama_model * model);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """How one worker runs. Everything at its default is what it claims."""

    name: str
    first: int = 0  # number of the first question
    count: int = 40
    weights: str = ""  # kind of `_weights.py`; empty: the packaged model
    slots: int = 8
    threads: int = 1
    ubatch: int = 512
    cache_type: int = 1  # GGML's number: 1 F16, 8 Q8_0, 2 Q4_0
    sampler: SamplerBlock = field(default=CLAIMED)
    seed_xor: int = 0
    cut: float = 0.0  # share of the prompt that is left out
    system: str = SYSTEM
    limit: int = 0  # tokens of an answer; 0: `LENGTHS` in turn
    hidden: bool = False
    foreign: bool = False  # another model with another vocabulary: its text goes out in the claimed model's ids


class BenchContext(LlamaContext):
    """A `LlamaContext` with the settings that differ between machines, and the final hidden states."""

    def __init__(self, model: LlamaModel, make: Make, *, batch: int = 1024) -> None:
        self._ffi, self._calls, _ = library()
        if "llama_set_embeddings" not in _declared:
            self._ffi.cdef(MORE_C)
            _declared.add("llama_set_embeddings")
        params = self._calls.llama_context_default_params()
        params.n_ctx, params.n_seq_max = ROOM * make.slots, make.slots
        params.n_batch, params.n_ubatch = batch, make.ubatch
        params.n_threads = params.n_threads_batch = make.threads
        params.type_k = params.type_v = make.cache_type
        params.kv_unified = make.slots > 1
        self.pointer = self._calls.llama_init_from_model(model.pointer, params)
        if self.pointer == self._ffi.NULL:
            raise EngineUnavailable("llama.cpp could not make room for the context asked for")
        self._memory = self._calls.llama_get_memory(self.pointer)
        self._batch = self._calls.llama_batch_init(batch, 0, 1)
        self.batch = batch
        self._row_bytes = 4 * model.size
        self._width = self._calls.llama_model_n_embd(model.pointer)
        self._calls.llama_set_embeddings(self.pointer, make.hidden)

    def hidden(self, index: int) -> bytes:
        """The final hidden state of one wanted item of the last `decode`, as bfloat16."""
        found = self._calls.llama_get_embeddings_ith(self.pointer, index)
        bits = np.frombuffer(self._ffi.buffer(found, 4 * self._width), dtype=np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


_declared: set[str] = set()


@dataclass(slots=True)
class Answering:
    """One answer in the making."""

    number: int
    prompt: tuple[int, ...]
    limit: int
    out: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    states: list[bytes] = field(default_factory=list)


def seed_of(number: int) -> int:
    """The seed that question `number` was asked with."""
    return int.from_bytes(hashlib.sha256(b"bombyx bench seed %d" % number).digest()[:8])


def limit_of(number: int) -> int:
    return LENGTHS[hashlib.sha256(b"len %d" % number).digest()[0] % len(LENGTHS)]


def prompt_ids(model: LlamaModel, number: int, *, system: str = SYSTEM, cut: float = 0.0) -> tuple[int, ...]:
    """What the worker reads; `cut` leaves out the middle, as a cheap worker with a small context would."""
    ids = model.tokenise(chat_text(question(number), system), specials=False)
    if not cut:
        return ids
    return ids[:8] + ids[-(int(len(ids) * (1 - cut)) - 8) :]


def make_answers(make: Make, weights: Path, folder: Path, say: Callable[[str], None]) -> float:
    """Make what is missing of `<name>.jsonl`; processor seconds it took."""
    file = folder / f"{make.name}.jsonl"
    done = {line["i"] for line in read_answers(file)}
    missing = [number for number in range(make.first, make.first + make.count) if number not in done]
    if not missing:
        return 0.0
    model = LlamaModel(weights)
    context = BenchContext(model, make)
    claimed = LlamaModel(find_packaged_model()) if make.foreign else model
    started, tokens = time.process_time(), 0
    with file.open("a") as answers, Path(f"{file}.hid").open("ab") as states:
        for one in _decoded(model, context, make, missing):
            if make.foreign:
                one.out = retold(one.out, model, claimed, make.limit)
            line = {"i": one.number, "p": one.prompt, "out": one.out, "max": one.limit}
            answers.write(json.dumps(line) + "\n")
            states.write(b"".join(one.states))
            tokens += len(one.out)
    took = time.process_time() - started
    context.close()
    model.close()
    say(f"{make.name}: {tokens} tokens, {took:.0f} s of processor time")
    return took


def read_answers(file: Path) -> list[dict[str, Any]]:
    """The lines of an answers' or a verdicts' file; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _decoded(model: LlamaModel, context: BenchContext, make: Make, missing: Sequence[int]) -> Iterator[Answering]:
    waiting, slots = list(missing), [None] * make.slots if make.slots else []
    running: list[Answering | None] = list(slots)
    while waiting or any(running):
        items: list[Item] = []
        for slot, one in enumerate(running):
            if one is not None:
                items.append(Item(one.out[-1], len(one.prompt) + len(one.out) - 1, slot, True))
            elif waiting:
                running[slot] = one = _begun(model, make, waiting.pop(0))
                context.cut(slot)
                last = len(one.prompt) - 1
                items += [Item(token, place, slot, place == last) for place, token in enumerate(one.prompt)]
        for index, logits in context.decode(items):
            one = running[items[index].sequence]
            assert one is not None
            token = _drawn(logits, make, one)
            if make.hidden:
                one.states.append(context.hidden(index))
            one.out.append(token)
            one.counts[token] += 1
            if model.is_end(token) or len(one.out) >= one.limit:
                running[items[index].sequence] = None
                yield one


def retold(out: Sequence[int], model: LlamaModel, claimed: LlamaModel, limit: int) -> list[int]:
    """The text of `out` as the claimed model would have spelt it; cut characters at its end are left out."""
    text = b"".join(model.piece(token) for token in out).decode("utf-8", "ignore")
    return list(claimed.tokenise(text, specials=False))[:limit]


def _begun(model: LlamaModel, make: Make, number: int) -> Answering:
    if make.foreign:  # no chat template: a base model goes on with the question
        prompt = model.tokenise(f"Question: {question(number)}\nAnswer:", specials=False)
    else:
        prompt = prompt_ids(model, number, system=make.system, cut=make.cut)
    return Answering(number=number, prompt=prompt, limit=make.limit or limit_of(number))


def _drawn(logits: Any, make: Make, one: Answering) -> int:
    candidates = top_candidates(logits, enough(make.sampler, len(one.counts)))
    seed = seed_of(one.number) ^ make.seed_xor
    return choose(candidates, make.sampler, seed=seed, position=len(one.out), counts=one.counts)


GREEDY: Final = replace(CLAIMED, temperature_e6=0, seed_source=SeedSource.GREEDY)
CHEATS: Final = (
    *(
        Make(name=f"adv.{kind}", weights=kind, limit=96, hidden=True)
        for kind in ("q8_0", "q5_0", "q4_0_half", "q4_0", "q3", "q2", "prune3", "prune10")
    ),
    Make(name="adv.gemma", weights="gemma", limit=96, foreign=True),
    Make(name="adv.kv8", cache_type=8, limit=96, hidden=True),
    Make(name="adv.kv4", cache_type=2, limit=96, hidden=True),
    Make(name="adv.ownseed", seed_xor=12345, limit=96, hidden=True),
    Make(name="adv.greedy", sampler=GREEDY, limit=96, hidden=True),
    Make(name="adv.T09", sampler=replace(CLAIMED, temperature_e6=900_000), limit=96, hidden=True),
    Make(name="adv.T1", sampler=replace(CLAIMED, temperature_e6=1_000_000), limit=96, hidden=True),
    Make(name="adv.trunc", cut=0.3, limit=96, hidden=True),
    Make(name="adv.system", system=OTHER_SYSTEM, limit=96, hidden=True),
)
_WAYS: Final = (
    Make(name="honest.0", slots=1),
    Make(name="honest.1", slots=4),
    Make(name="honest.2", slots=8, ubatch=64),
    Make(name="honest.3", slots=16, threads=2),
)


def honest(count: int) -> list[Make]:
    """`count` answers by four honest configurations, 60 questions in turn; and other settings of the sampler."""
    rounds = -(-count // 240)
    made = [Make(name="honest.h", limit=96, hidden=True)]  # with hidden states, for TOPLOC's side
    for turn in range(rounds):
        for place, way in enumerate(_WAYS):
            first = (turn * 4 + place) * 60
            made.append(replace(way, first=first, count=max(0, min(60, count - first))))
    return made


SETTINGS: Final = (
    Make(name="set.T0", first=3000, sampler=GREEDY),
    Make(
        name="set.T1p1k20", first=3040, sampler=replace(CLAIMED, temperature_e6=1_000_000, top_p_e6=1_000_000, top_k=20)
    ),
    Make(name="set.T07p5k50", first=3080, sampler=replace(CLAIMED, top_p_e6=500_000)),
    Make(
        name="set.T12p9k64", first=3120, sampler=replace(CLAIMED, temperature_e6=1_200_000, top_p_e6=900_000, top_k=64)
    ),
    Make(
        name="set.T1p1k5", first=3160, sampler=replace(CLAIMED, temperature_e6=1_000_000, top_p_e6=1_000_000, top_k=5)
    ),
    Make(
        name="set.T1p1k64", first=3200, sampler=replace(CLAIMED, temperature_e6=1_000_000, top_p_e6=1_000_000, top_k=64)
    ),
    Make(name="set.T02p9k64", first=3240, sampler=replace(CLAIMED, temperature_e6=200_000, top_p_e6=900_000, top_k=64)),
    Make(
        name="set.T1p3k40", first=3280, sampler=replace(CLAIMED, temperature_e6=1_000_000, top_p_e6=300_000, top_k=40)
    ),
    Make(name="set.penalties", first=3320, sampler=replace(CLAIMED, presence_e6=500_000, frequency_e6=500_000)),
)
