# SPDX-License-Identifier: Apache-2.0
"""Watches whether a proxy hides, invents or favours workers (spec MKT-9 .. MKT-12). The tests: `market/suspicion.py`.

- invents: it lists an operator the registry does not have, or with models it did not register. One sight is enough.
- hides: it keeps lacking a worker that another proxy lists, or lacks too many of them at once.
- favours: it keeps picking a worker although a clearly better one, by our own receipts, was on offer.

Always: an alarm is said once in the log and stands until the process ends; counts only, nothing about any request.
Not here: what to do about it. Money and content are safe whatever a proxy picks; a user may leave it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bombyx.protocol.market.suspicion import (
    FALSE_ALARM,
    MISSING,
    WORSE,
    Measured,
    Series,
    clearly_better,
    too_many_missing,
)
from bombyx.protocol.primitives import Address, Instant
from bombyx.roles.client.network import View

log = logging.getLogger("bombyx.client")
LOOK_SECONDS: Final = 3_600.0  # between looks: an outage of one link is one miss, not many
FADE: Final = 0.2  # weight of a new pace against what is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What a proxy did. `kind`: invents, hides, favours."""

    kind: str
    proxy: Address
    operator: Address | None
    text: str
    at: Instant

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "proxy": str(self.proxy),
            "operator": str(self.operator) if self.operator else None,
            "text": self.text,
            "at": int(self.at),
            "false_alarm_rate": FALSE_ALARM if self.kind != "invents" else None,
        }


class Watch:
    """One client's suspicions, since its process began."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, Address, Address], Series] = {}
        self._alarms: dict[tuple[str, Address, Address | None], Alarm] = {}
        self._looks: dict[Address, int] = {}
        self._paces: dict[Address, float] = {}

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        return tuple(self._alarms.values())

    def as_rows(self) -> list[dict[str, Any]]:
        return [alarm.as_dict() for alarm in self.alarms]

    # --- directories ---

    def looked(self, views: Sequence[View], now: Instant) -> None:
        """Directories of several proxies, fetched within moments of each other. Call it every `LOOK_SECONDS`."""
        for view in views:
            for operator in view.report.invented:
                text = f"lists {operator}, which the registry does not have, or not with these models"
                self._raise("invents", view.line.address, operator, text, now)
            elsewhere = _listed(other for other in views if other is not view)
            if elsewhere:
                self._compare(view.line.address, _listed([view]), elsewhere, now)

    def _compare(self, proxy: Address, here: set[Address], elsewhere: set[Address], now: Instant) -> None:
        look = self._looks[proxy] = self._looks.get(proxy, 0) + 1
        missing = elsewhere - here
        if too_many_missing(len(missing), len(elsewhere), look=look):
            text = f"lacks {len(missing)} of the {len(elsewhere)} workers that others list"
            self._raise("hides", proxy, None, text, now)
        for operator in elsewhere:
            series = self._look("hides", proxy, operator, MISSING, hit=operator in missing)
            if series.alarms():
                text = f"lacked {operator} at {series.hits} of {series.looks} looks at which another proxy listed it"
                self._raise("hides", proxy, operator, text, now)

    # --- answers ---

    def answered(
        self, proxy: Address, operator: Address, prices: Mapping[Address, int], *, pace: float | None, now: Instant
    ) -> None:
        """A request went to `prices`' operators and `operator` answered, at `pace` seconds per unit by its receipt.

        What is compared was known before this answer: a bet is placed before the dice fall.
        """
        measured = {who: Measured(price=price, pace=self._paces.get(who)) for who, price in prices.items()}
        for who, worker in measured.items():
            if any(clearly_better(rival, worker) for other, rival in measured.items() if other != who):
                series = self._look("favours", proxy, who, WORSE, hit=who == operator)
                if series.alarms():
                    text = (
                        f"picked {who} {series.hits} of {series.looks} times that a clearly better worker was on offer"
                    )
                    self._raise("favours", proxy, who, text, now)
        if pace is not None:
            known = self._paces.get(operator, pace)
            self._paces[operator] = known + FADE * (pace - known)

    def _look(self, kind: str, proxy: Address, operator: Address, bound: float, *, hit: bool) -> Series:
        name = (kind, proxy, operator)
        series = self._series.get(name) or Series(bound=bound, rank=len(self._series) + 1)
        self._series[name] = series = series.look(hit=hit)
        return series

    def _raise(self, kind: str, proxy: Address, operator: Address | None, text: str, now: Instant) -> None:
        name = (kind, proxy, operator)
        if name not in self._alarms:
            log.warning("proxy %s %s: it %s", proxy, kind, text)
            self._alarms[name] = Alarm(kind=kind, proxy=proxy, operator=operator, text=text, at=now)


def _listed(views: Iterable[View]) -> set[Address]:
    """Operators with an offer that is registered and in date."""
    return {offer.operator for view in views for offer in view.report.fit}
