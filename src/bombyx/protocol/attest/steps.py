# SPDX-License-Identifier: Apache-2.0
"""The ten steps of an appraisal, and the trail that records what became of each (spec ATT).

Not here: any check. A check returns `Found`, or raises; the `Trail` turns both into `Step`s.
Always: every appraisal, good or bad, shows all ten steps in order; after a failed one the rest are `not checked`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, NoReturn, ParamSpec, TypeVar

from bombyx.errors import AttestationError, MalformedMessage, PeerError

T = TypeVar("T")
P = ParamSpec("P")

STEP_NAMES: Final = (
    "size and format",
    "signature chain to a trusted root",
    "collateral in date, revocation, TCB status",
    "TD attributes: debug off",
    "event log replays to RTMR0-3",
    "measurement, compose hash and configuration",
    "report data binds the keyset; registry agrees",
    "beacon fresh",
    "GPU evidence",
    "validity window",
)
_AFTER_FAILURE: Final = "not checked: an earlier step failed"


class Status(StrEnum):
    """What became of one step. `NOT_CHECKED` is never a pass: its detail says what was missing."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of the result."""

    number: int
    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a check returns when it does not refuse: a value for later steps, and what to say of it."""

    value: T
    detail: str
    status: Status = Status.PASSED


class Refused(AttestationError):
    """Raised by a check: this step does not convince. `steps` is filled in by the `Trail`."""


class Trail:
    """Runs checks in order and keeps the record."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def run(self, number: int, check: Callable[P, Found[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The value `check` found. Raises `AttestationError` with all ten steps when it refuses."""
        try:
            found = check(*args, **kwargs)
        except (Refused, MalformedMessage) as refusal:
            self._fail(number, refusal)
        self._note(number, found.status, found.detail)
        return found.value

    def _note(self, number: int, status: Status, detail: str) -> None:
        if number != len(self._steps) + 1:
            raise AssertionError(f"step {number} out of order")
        self._steps.append(Step(number=number, name=STEP_NAMES[number - 1], status=status, detail=detail))

    def _fail(self, number: int, refusal: PeerError) -> NoReturn:
        rule = f"ATT-6.{number}"
        detail = refusal.message.removeprefix(f"{refusal.rule}: ")
        self._note(number, Status.FAILED, detail)
        for later in range(number + 1, len(STEP_NAMES) + 1):
            self._note(later, Status.NOT_CHECKED, _AFTER_FAILURE)
        message = f"{rule}: {STEP_NAMES[number - 1]}: {detail}"
        raise AttestationError(message, steps=self.steps, peer=refusal.peer, rule=rule) from None
