# SPDX-License-Identifier: Apache-2.0
"""The seeded sampler inside vLLM: a logits processor that leaves exactly the token the protocol draws (spec AUD-4).

vLLM loads it by the entry point `vllm.logits_processors`, or by
`vllm serve --logits-processors bombyx.adapters.vllm_sampler:SeededSampler`. A request that carries our arguments in
`vllm_xargs` has temperature 0, so that vLLM takes the one token that is left; every other request is not touched.
Importable without vLLM and without torch: of a tensor only indexing, `topk` and `tolist` are used.

Always: the choice is `protocol/audit/sampler.choose` itself, so worker and Verifier cannot differ by a second
implementation; arguments that are not whole and in range are refused when the request arrives, not in mid-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.protocol.audit.sampler import choose, enough
from bombyx.protocol.wire.audit import ALGORITHM, SamplerBlock, SeedSource

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as _Base  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # a client, a test: the class is the same, vLLM alone needs the parent
    _Base = object

PREFIX: Final = "bombyx_"
_SEED: Final = PREFIX + "seed"  # 16 hexadecimal digits: JSON's numbers end at 2^53 in some readers
_NUMBERS: Final = ("temperature_e6", "top_p_e6", "top_k", "presence_e6", "frequency_e6")
NEVER: Final = float("-inf")


@dataclass(slots=True)
class _Running:
    """One request in the batch. `output` is vLLM's own list: it grows while we look at it."""

    sampler: SamplerBlock
    seed: int
    output: list[int]
    counts: Counter[int] = field(default_factory=Counter)
    counted: int = 0

    def so_far(self) -> Counter[int]:
        """How often each token stands in the answer, brought up to date."""
        for token in self.output[self.counted :]:
            self.counts[token] += 1
        self.counted = len(self.output)
        return self.counts


def arguments(sampler: SamplerBlock, seed: int) -> dict[str, str | int]:
    """What goes into `vllm_xargs`."""
    numbers: dict[str, str | int] = {PREFIX + name: getattr(sampler, name) for name in _NUMBERS}
    return numbers | {_SEED: f"{seed:016x}"}


def read_arguments(given: Mapping[str, Any] | None) -> tuple[SamplerBlock, int] | None:
    """(sampler, seed) of a request that is ours; None for any other. Raises `ValueError`."""
    if not given or _SEED not in given:
        return None
    seed = str(given[_SEED])
    if len(seed) != 16:
        raise ValueError("bombyx_seed is 16 hexadecimal digits")
    try:
        numbers = {name: int(str(given[PREFIX + name])) for name in _NUMBERS}
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing beside bombyx_seed") from None
    if min(numbers.values()) < 0:
        raise ValueError("bombyx arguments are not negative")
    source = SeedSource.JOINT if numbers["temperature_e6"] else SeedSource.GREEDY
    sampler = SamplerBlock(algorithm=ALGORITHM, max_output=0, seed_source=source, stop=(), **numbers)
    return sampler, int(seed, 16)


class SeededSampler(_Base):  # type: ignore[misc,unused-ignore]
    """vLLM's `LogitsProcessor` (version 1): constructed by vLLM, called once a step with the whole batch."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """vLLM asks when a request arrives; a `ValueError` is its refusal."""
        found = read_arguments(getattr(sampling_params, "extra_args", None))
        if found is not None and getattr(sampling_params, "temperature", 0.0) != 0.0:
            raise ValueError("requests with bombyx_seed have temperature 0: the processor draws")

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        # Nothing of these is needed: candidates are few and are drawn on the processor.
        self._rows: dict[int, _Running] = {}

    def is_argmax_invariant(self) -> bool:
        return False  # it decides what the largest is: vLLM must not skip it for temperature 0

    def update_state(self, batch_update: Any) -> None:
        """Follow vLLM's batch: removed, added, moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            found = read_arguments(getattr(params, "extra_args", None))
            self._rows.pop(row, None)
            if found is not None:
                self._rows[row] = _Running(found[0], found[1], output)
        for first, second, direction in batch_update.moved:
            self._move(first, second, swap=getattr(direction, "name", "") == "SWAP")

    def _move(self, first: int, second: int, *, swap: bool) -> None:
        moved, other = self._rows.pop(first, None), self._rows.pop(second, None)
        if moved is not None:
            self._rows[second] = moved
        if swap and other is not None:
            self._rows[first] = other

    def apply(self, logits: Any) -> Any:
        """Leave one token in each row that is ours."""
        if not self._rows:
            return logits
        rows = sorted(self._rows)
        counts = [self._rows[row].so_far() for row in rows]
        widest = max(enough(self._rows[row].sampler, len(count)) for row, count in zip(rows, counts, strict=True))
        values, ids = logits[rows].topk(min(widest, logits.shape[-1]))
        for place, (found, tokens) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
            running = self._rows[rows[place]]
            token = choose(
                zip(tokens, found, strict=True),
                running.sampler,
                seed=running.seed,
                position=running.counted,
                counts=counts[place],
            )
            logits[rows[place]] = NEVER
            logits[rows[place], token] = 0.0
        return logits
