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

from bombyx.errors import AttestationError, MalformedMessage, PeerError, Unavailable

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
REPORT_STEP_NAMES: Final = (
    *STEP_NAMES[:6],
    "report data binds the provider's keys",
    "made for our nonce",
    *STEP_NAMES[8:],
)  # of another provider's report: it has no keyset, registry or beacon
_AFTER_GAP: Final = "not checked: an earlier step lacked what it needs"
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


class NotEnough(Unavailable):
    """Neither convinced nor refused: something needed is not at hand. `steps` says what. It counts as no."""

    code = "not_enough_evidence"

    def __init__(self, message: str, *, steps: tuple[Step, ...] = ()) -> None:
        super().__init__(message, rule="ATT-13")
        self.steps = steps


class Trail:
    """Runs checks in order and keeps the record."""

    __slots__ = ("_names", "_steps")

    def __init__(self, names: tuple[str, ...] = STEP_NAMES) -> None:
        self._names = names
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
        except NotEnough as gap:
            self._note(number, Status.NOT_CHECKED, gap.message.removeprefix("ATT-13: "))
            self._rest(number, _AFTER_GAP)
            raise NotEnough(gap.message, steps=self.steps) from None
        self._note(number, found.status, found.detail)
        return found.value

    def _note(self, number: int, status: Status, detail: str) -> None:
        if number != len(self._steps) + 1:
            raise AssertionError(f"step {number} out of order")
        self._steps.append(Step(number=number, name=self._names[number - 1], status=status, detail=detail))

    def _fail(self, number: int, refusal: PeerError) -> NoReturn:
        rule = f"ATT-6.{number}"
        detail = refusal.message.removeprefix(f"{refusal.rule}: ")
        self._note(number, Status.FAILED, detail)
        self._rest(number, _AFTER_FAILURE)
        message = f"{rule}: {self._names[number - 1]}: {detail}"
        raise AttestationError(message, steps=self.steps, peer=refusal.peer, rule=rule) from None

    def _rest(self, number: int, detail: str) -> None:
        for later in range(number + 1, len(self._names) + 1):
            self._note(later, Status.NOT_CHECKED, detail)
