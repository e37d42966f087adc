# SPDX-License-Identifier: Apache-2.0
"""Who was offered this client's requests and who answered them: how a proxy that steers shows itself (spec MKT-9).

A worker that is drawn often and never answers, or one that answers far more than its share, is what to look for. Counts
only; nothing about any request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from bombyx.protocol.primitives import Address


@dataclass(frozen=True, slots=True)
class Counts:
    drawn: int = 0  # the secret draw named it
    absent: int = 0  # drawn, but the proxy no longer listed it or its evidence did not convince
    offered: int = 0  # a request was sealed to it
    answered: int = 0
    failed: int = 0  # it answered and the answer did not pass a check


class Tally:
    """Counts per operator, since this process began."""

    def __init__(self) -> None:
        self._counts: dict[Address, Counts] = {}

    def drew(self, present: Iterable[Address], absent: Iterable[Address]) -> None:
        for operator in present:
            self._add(operator, drawn=1, offered=1)
        for operator in absent:
            self._add(operator, drawn=1, absent=1)

    def answered(self, operator: Address) -> None:
        self._add(operator, answered=1)

    def failed(self, operator: Address) -> None:
        self._add(operator, failed=1)

    def of(self, operator: Address) -> Counts:
        return self._counts.get(operator, Counts())

    def as_rows(self) -> list[dict[str, Any]]:
        """For `/verification`: one row an operator, most offered first."""
        rows = sorted(self._counts.items(), key=lambda item: -item[1].offered)
        return [
            {
                "operator": str(operator),
                "drawn": c.drawn,
                "absent": c.absent,
                "offered": c.offered,
                "answered": c.answered,
                "failed": c.failed,
            }
            for operator, c in rows
        ]

    def _add(self, operator: Address, **more: int) -> None:
        counts = self.of(operator)
        self._counts[operator] = replace(counts, **{name: getattr(counts, name) + n for name, n in more.items()})
