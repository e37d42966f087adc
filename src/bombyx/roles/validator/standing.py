# SPDX-License-Identifier: Apache-2.0
"""What one validator has seen of one worker and model: evidence, availability, pace. Values; `book.py` keeps them.

Always: a lost canary moves availability, never the evidence; times are what a user saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.verdict import ALARM, Grade, ResponseVerdict, taken_in
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.audit import Calibration
from bombyx.protocol.wire.codec import Message
from bombyx.roles.validator.asking import Ended, Heard

WEIGHT = 8  # a new figure moves an average by one part in so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing(Message):
    """Counts and averages (milliseconds, tokens per 1 000 s); `evidence` is `protocol/audit`'s, encoded."""

    TAG: ClassVar[int] = 27083
    MAX_SIZE: ClassVar[int] = 4_096

    operator: Address
    model: Digest
    name: str
    evidence: bytes
    asked: int = 0
    answered: int = 0
    lost: int = 0
    refused: int = 0
    cheated: int = 0
    judged: int = 0
    passed: int = 0
    grey: int = 0
    failed: int = 0
    tokens: int = 0
    unproved: int = 0  # answers that could not be re-run: application seeds, models without calibration
    first_ms: int = 0
    pace: int = 0
    opted_in: int = 0  # users' answers judged; they alarm, and never accuse
    opted_in_failed: int = 0

    @classmethod
    def new(cls, operator: Address, model: Digest, name: str, calibration: Calibration) -> Standing:
        return cls(operator=operator, model=model, name=name, evidence=Evidence.none(calibration).encode())

    @property
    def weighed(self) -> Evidence:
        return Evidence.decode(self.evidence)

    @property
    def suspicious(self) -> bool:
        """Worth a closer look: evidence of a thousand to one, or users' answers that failed."""
        return self.weighed.peak >= ALARM or self.opted_in_failed > 0

    def heard(self, heard: Heard) -> Standing:
        """After a canary came back, or did not."""
        after = replace(
            self,
            asked=self.asked + 1,
            answered=self.answered + (heard.ended is Ended.ANSWERED),
            lost=self.lost + (heard.ended is Ended.LOST),
            refused=self.refused + (heard.ended is Ended.REFUSED),
            cheated=self.cheated + (heard.ended is Ended.CHEATED),
        )
        if heard.ended is not Ended.ANSWERED or heard.first is None:
            return after
        pace = round(1_000 * heard.output / heard.seconds) if heard.seconds > 0 else 0
        return replace(
            after, first_ms=_average(self.first_ms, round(heard.first * 1_000)), pace=_average(self.pace, pace)
        )

    def without(self, tokens: int) -> Standing:
        """After a canary, asking for so many tokens, that brought no answer of this worker's."""
        return replace(self, evidence=self.weighed.absent(tokens).encode())

    def weigh(self, verdict: ResponseVerdict) -> Standing:
        """After an answer was judged."""
        return replace(
            self,
            evidence=taken_in(self.weighed, verdict).encode(),
            judged=self.judged + 1,
            passed=self.passed + (verdict.verdict is Grade.PASS),
            grey=self.grey + (verdict.verdict is Grade.GREY),
            failed=self.failed + verdict.failed,
            tokens=self.tokens + verdict.tokens,
        )

    def opted(self, verdict: ResponseVerdict) -> Standing:
        """After a user's answer was judged, at the user's wish."""
        return replace(self, opted_in=self.opted_in + 1, opted_in_failed=self.opted_in_failed + verdict.failed)

    def seen(self) -> dict[str, Any]:
        """How it serves, for people and programs; no word of any prompt or answer."""
        return {
            "operator": str(self.operator),
            "model": self.model.hex(),
            "name": self.name,
            "asked": self.asked,
            "answered": self.answered,
            "lost": self.lost,
            "refused": self.refused,
            "availability": round(self.answered / self.asked, 4) if self.asked else None,
            "first_token_ms": self.first_ms,
            "tokens_per_second": self.pace / 1_000,
        }

    def found(self) -> dict[str, Any]:
        """What its answers were worth. Who reads this of an accuser knows its samples from its accusations."""
        weighed = self.weighed
        return {
            "log10_evidence": round(weighed.log10, 3),
            "log10_peak": round(weighed.peak, 3),
            "cheated": self.cheated,
            "judged": self.judged,
            "passed": self.passed,
            "grey": self.grey,
            "failed": self.failed,
            "tokens": self.tokens,
            "unproved": self.unproved,
            "opted_in": self.opted_in,
            "opted_in_failed": self.opted_in_failed,
        }


def _average(known: int, value: int) -> int:
    return value if not known else known + (value - known) // WEIGHT
