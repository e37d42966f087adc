# SPDX-License-Identifier: Apache-2.0
"""The other side of bench/verification.py: one prefill over each answer, margins by the protocol's own rules, and what
two rival methods make of the same pass: TOPLOC's fingerprint of hidden states, and the likelihood without seeds.

Lines of `<name>.judged.jsonl`: {"i", "n", "m": margins, "o": outside 0/1, "lp": log probabilities of the answer's
tokens at T = 1, "t": [[exponents equal, mean, median of mantissa differences] of each 32 tokens]}.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from _answers import CLAIMED, BenchContext, Make, prompt_ids, read_answers, seed_of

from bombyx.adapters.llama_api import Item, LlamaModel
from bombyx.adapters.llama_logits import log_normaliser, rank_of, top_candidates
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.margin import Row, margin, needed
from bombyx.protocol.audit.verdict import scored_ids
from bombyx.protocol.wire.audit import SamplerBlock, SeedSource

CHUNK: Final = 32  # tokens of one TOPLOC fingerprint
TOP: Final = 128  # activations in it
END: Final = 2  # SmolLM2's <|im_end|>
BATCH: Final = 512


class Verifier:
    """The claimed model, and processor seconds spent with it."""

    def __init__(self, weights: Path, *, hidden: bool = False) -> None:
        self.model = LlamaModel(weights)
        self._context = BenchContext(self.model, Make(name="", slots=1, hidden=hidden), batch=BATCH)
        self.seconds = 0.0
        self.tokens = 0

    def judge(
        self, number: int, ids: Sequence[int], states: bytes = b"", *, sampler: SamplerBlock = CLAIMED
    ) -> dict[str, Any]:
        """One line of a judged file. The prompt is rebuilt from the question, never taken from the worker."""
        started = time.process_time()
        prompt = prompt_ids(self.model, number)
        whole, first, row_of = (*prompt, *ids), len(prompt) - 1, needed(sampler, DEFAULT, len(ids))
        line: dict[str, Any] = {"i": number, "n": len(ids), "m": [], "o": [], "lp": [], "t": []}
        counts, own = Counter[int](), []
        self._context.clear()
        for start in range(0, len(whole) - 1, BATCH):
            places = range(start, min(start + BATCH, len(whole) - 1))
            items = [Item(whole[place], place, 0, place >= first) for place in places]
            for index, logits in self._context.decode(items):
                token, position = whole[places[index] + 1], places[index] - first
                row = Row(
                    candidates=top_candidates(logits, row_of),
                    chosen=float(logits[token]),
                    chosen_rank=rank_of(logits, token),
                )
                found = margin(
                    row, token, position=position, counts=counts, sampler=sampler, seed=seed_of(number),
                    calibration=DEFAULT,
                )  # fmt: skip
                line["m"].append(round(found.value, 4))
                line["o"].append(int(found.outside))
                line["lp"].append(round(row.chosen - log_normaliser(logits), 4))
                counts[token] += 1
                if states:
                    own.append(self._context.hidden(index))
        self.seconds += time.process_time() - started
        self.tokens += len(whole) - 1
        if states:
            line["t"] = fingerprints(states, b"".join(own), len(ids))
        return line

    def close(self) -> None:
        self._context.close()
        self.model.close()


def fingerprints(worker: bytes, verifier: bytes, count: int) -> list[list[float]]:
    """TOPLOC's comparison, as published: bfloat16, the 128 largest activations of 32 tokens."""
    sides = [np.frombuffer(side, dtype="<u2").reshape(count, -1).astype(np.int64) for side in (worker, verifier)]
    found = []
    for start in range(0, count - CHUNK + 1, CHUNK):
        claimed, seen = (side[start : start + CHUNK].ravel() for side in sides)
        largest = np.argpartition(-(seen & 0x7FFF), TOP)[:TOP]
        theirs = np.isin(largest, np.argpartition(-(claimed & 0x7FFF), TOP)[:TOP])
        same = theirs & ((seen[largest] >> 7) == (claimed[largest] >> 7))
        apart = np.abs((seen[largest] & 127) - (claimed[largest] & 127))[same]
        middle = (float(apart.mean()), float(np.median(apart))) if apart.size else (128.0, 128.0)
        found.append([int(same.sum()), round(middle[0], 2), middle[1]])
    return found


def judge_answers(
    name: str, weights: Path, folder: Path, sampler: SamplerBlock, say: Callable[[str], None], *, most: int = 1 << 30
) -> float:
    """Judge what is missing of `<name>.judged.jsonl`, up to `most` answers; processor seconds it took."""
    answers, file = read_answers(folder / f"{name}.jsonl"), folder / f"{name}.judged.jsonl"
    done = len(read_answers(file))
    if done >= min(most, len(answers)):
        return 0.0
    states = folder / f"{name}.jsonl.hid"
    kept = states.read_bytes() if states.exists() else b""
    verifier = Verifier(weights, hidden=bool(kept))
    each = len(kept) // sum(len(answer["out"]) for answer in answers) if kept else 0
    at = sum(len(answer["out"]) for answer in answers[:done]) * each
    with file.open("a") as judged:
        for answer in answers[done:most]:
            size = len(answer["out"]) * each
            line = verifier.judge(answer["i"], answer["out"], kept[at : at + size], sampler=sampler)
            judged.write(json.dumps(line) + "\n")
            judged.flush()
            at += size
    verifier.close()
    say(f"{name}: {min(most, len(answers)) - done} answers judged, {verifier.seconds:.0f} s of processor time")
    return verifier.seconds


# --- what a worker may do to an honest answer ------------------------------------------------------------------------


def tampered(model: LlamaModel, honest: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, list[int]]]]:
    """(question, ids) of each manipulation of each answer. Only answers with something to spoil."""
    made: dict[str, list[tuple[int, list[int]]]] = {}

    def add(what: str, number: int, ids: Sequence[int]) -> None:
        made.setdefault(what, []).append((number, list(ids)))

    for place, answer in enumerate(honest):
        number, out = answer["i"], list(answer["out"])
        chance = random.Random(hashlib.sha256(b"tamper %d" % number).digest())
        spot = chance.randrange(len(out) - 1)
        other = chance.choice([token for token in range(100, 40_000) if token != out[spot]][:: 97 + place])
        add("one token replaced", number, [*out[:spot], other, *out[spot + 1 :]])
        four = list(out)
        for at in chance.sample(range(len(out) - 1), 4):
            four[at] = chance.randrange(100, 40_000)
        add("four tokens replaced", number, four)
        half = out[: len(out) // 2]
        add("stopped early, end emitted", number, [*half, END])
        add(
            "stopped early, end not emitted",
            number,
            scored_ids(half, finish="stop", ends=(END,), stopped_by_text=False),
        )
        body = out[:-1] if out[-1] == END else out
        add("padded: 32 tokens repeated", number, body + (body * 32)[:32])
        newline = model.tokenise("\n", specials=False)
        add("padded: 32 newlines", number, body + [newline[0]] * 32)
        add("answer to another question", number, honest[(place + 1) % len(honest)]["out"])
        longer = split_words(model, body)
        if longer != body:  # an answer without a word has nothing to split
            add("count inflated: words split", number, longer)
    return made


def split_words(model: LlamaModel, ids: Sequence[int]) -> list[int]:
    """The same text in more tokens: every fourth word of plain letters in two halves."""
    longer: list[int] = []
    for place, token in enumerate(ids):
        text = model.piece(token).decode("utf-8", "replace")
        parts = (text[: len(text) // 2], text[len(text) // 2 :])
        splits = place % 4 == 0 and len(text) > 3 and text.strip().isalpha()
        longer += [i for part in parts for i in model.tokenise(part, specials=False)] if splits else [token]
    return longer


def greedy_claim() -> SamplerBlock:
    """What a worker claims that was asked for temperature 0."""
    return replace(CLAIMED, temperature_e6=0, seed_source=SeedSource.GREEDY)
