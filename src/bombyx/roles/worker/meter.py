# SPDX-License-Identifier: Apache-2.0
"""What one answer costs: the engine's counts, held against the output ids, rounded, priced (spec RCT-4 .. RCT-6).

Text is never tokenised again: about 3 % of honest outputs are not what a tokenizer would make of their text. Ids are
counted; an engine that gives none is marked `usage unverified`.

Always: nothing is billed beyond what was handed to the link; never above the caps of Meta; the ids that are opened to
the client are the ids that were billed.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final

from bombyx.ports import EngineChunk, EngineUsage
from bombyx.protocol.pay.price import charge, units
from bombyx.protocol.primitives import Amount
from bombyx.protocol.wire.market import ModelPrice
from bombyx.protocol.wire.receipt import ChoiceIds, UsageOpening

UNVERIFIED: Final = "usage unverified: "
NO_IDS: Final = UNVERIFIED + "this engine gives no output ids"
MISCOUNTED: Final = UNVERIFIED + "the engine's count and its ids differ; the ids are billed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Rounded units and what they cost; `opening` holds the exact counts."""

    input_units: int
    cached_units: int
    output_units: int
    charge: Amount
    opening: UsageOpening


class Meter:
    """Counts one answer. `delivered` arguments are bytes of the application's content that left for the link."""

    def __init__(self, *, price: ModelPrice, grain: int, max_input: int, max_output: int) -> None:
        self._price = price
        self._grain = grain
        self._max_input = max_input // grain * grain  # a cap below the grain cannot be billed above it
        self._max_output = max_output // grain * grain
        self._input = 0
        self._cached = 0
        self._ends: list[int] = [0]  # content bytes up to and with each chunk
        self._counts: list[int] = [0]  # ids up to and with it
        self.usage: EngineUsage | None = None  # the engine's own word, once it has ended

    # --- in ---

    def chunk(self, chunk: EngineChunk) -> None:
        """One piece of the engine's answer, before it is handed on."""
        if chunk.input is not None:
            self._input = max(self._input, chunk.input)
            self._cached = max(self._cached, min(chunk.cached_input, self._input))
        self._ends.append(self._ends[-1] + len(chunk.data))
        self._counts.append(self._counts[-1] + sum(len(ids) for _, ids in chunk.ids))

    def end(self, usage: EngineUsage) -> None:
        """The engine's own word, at its end."""
        self.usage = usage

    @property
    def output(self) -> int:
        """Ids seen so far, delivered or not."""
        return self._counts[-1]

    @property
    def input_over_cap(self) -> bool:
        """The engine has told of more input than Meta allows."""
        told = self.usage.input if self.usage is not None else self._input
        return units(told, self._grain) > self._max_input

    @property
    def output_over_cap(self) -> bool:
        told = self.usage.output if self.usage is not None else 0
        return units(max(self.output, told), self._grain) > self._max_output

    # --- out ---

    def nothing(self, note: str) -> Bill:
        """An answer that costs nothing."""
        return self._bill(UsageOpening(v=1, input=0, cached_input=0, output=0, choices=(), verified=False, note=note))

    def partial(self, delivered: int, note: str = "") -> Bill:
        """What had left when `delivered` bytes had; nothing, as long as nothing has."""
        read = self._input if delivered else 0
        opening = UsageOpening(
            v=1,
            input=read,
            cached_input=min(self._cached, read),
            output=self._counts[bisect_right(self._ends, delivered) - 1] if delivered else 0,
            choices=(),
            verified=False,
            note=note,
        )
        return self._bill(opening)

    def whole(self) -> Bill:
        """The complete answer. Call after `end`."""
        usage = self.usage
        if usage is None:
            raise ValueError("the engine has not ended")
        choices = self._choices(usage)
        counted = sum(len(choice.ids) for choice in choices)
        verified, note = usage.verified, usage.note
        if usage.ids is None:
            verified, note, output = False, usage.note or NO_IDS, max(usage.output, self.output)
        elif counted != usage.output or self.output not in (0, counted):
            # not below what checkpoints may have billed: those ids were delivered
            verified, note, output = False, MISCOUNTED, max(min(counted, usage.output), self.output)
        else:
            output = counted
        opening = UsageOpening(
            v=1,
            input=max(usage.input, self._input),
            cached_input=max(usage.cached_input, self._cached),
            output=output,
            choices=choices,
            verified=verified,
            note=note[:500],
        )
        return self._bill(opening)

    def _choices(self, usage: EngineUsage) -> tuple[ChoiceIds, ...]:
        if usage.ids is None:
            return ()
        finish = (*usage.finish, *("",) * len(usage.ids))
        return tuple(ChoiceIds(ids=ids, finish=why) for ids, why in zip(usage.ids, finish, strict=False))

    def _bill(self, opening: UsageOpening) -> Bill:
        """Caps first, then the grain, so that what is opened rounds to what is billed."""
        read = min(opening.input, self._max_input)
        opening = replace(
            opening,
            input=read,
            cached_input=min(opening.cached_input, read),
            output=min(opening.output, self._max_output),
        )
        rounded = tuple(units(n, self._grain) for n in (opening.input, opening.cached_input, opening.output))
        return Bill(
            input_units=rounded[0],
            cached_units=rounded[1],
            output_units=rounded[2],
            charge=charge(self._price, *rounded),
            opening=opening,
        )
