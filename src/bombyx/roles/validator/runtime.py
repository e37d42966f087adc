# SPDX-License-Identifier: Apache-2.0
"""The validator: its parts, joined; what runs beside what; its report (spec AUD-50 .. AUD-58).

Not here: sockets, wallets and models (`compose`). Always: it is a member of the validators' set before it asks; a part
that fails is logged and goes on with the next epoch or look, the others do not notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from bombyx.errors import BombyxError
from bombyx.ports import Clock, Entropy, HttpHandler, Ledger, Store, Validation
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.audit.case import Case, ValidationParameters
from bombyx.protocol.seal import GatewayKey
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.accuser import Accuser
from bombyx.roles.validator.alarms import Alarms
from bombyx.roles.validator.asking import Asker, Others, Pages
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.canaries import Rounds
from bombyx.roles.validator.clerk import Clerk
from bombyx.roles.validator.desk import Desk
from bombyx.roles.validator.examine import Examiner
from bombyx.roles.validator.insistence import Insistence
from bombyx.roles.validator.juror import Juror
from bombyx.roles.validator.opt_in import OptIns
from bombyx.roles.validator.plants import Plants
from bombyx.roles.validator.register import Register
from bombyx.roles.validator.settings import ValidatorSettings
from bombyx.roles.validator.standing import Standing

log = logging.getLogger("bombyx.validator")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorPorts:
    """The outside world of one validator. `asker` makes a client for one epoch."""

    clock: Clock
    entropy: Entropy
    store: Store
    ledger: Ledger
    validation: Validation
    pages: Pages
    asker: Callable[[int], Asker]
    others: Others | None = None  # None: nobody is told of an alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclave:
    """What answers are handed over to: its evidence as it is now, and the keys that open them."""

    bundle: Callable[[], bytes | None]
    keys: Callable[[], tuple[GatewayKey, ...]]


_Gauges = tuple[tuple[str, str, Callable[[Standing], float]], ...]
_SEEN: Final[_Gauges] = (
    ("canaries", "canaries asked of it", lambda one: one.asked),
    ("answered", "canaries it answered", lambda one: one.answered),
    ("first_token_seconds", "time to the first token, as a user sees it", lambda one: one.first_ms / 1_000),
    ("tokens_per_second", "pace of its answers", lambda one: one.pace / 1_000),
)
_FOUND: Final[_Gauges] = (
    ("log10_evidence", "decimal logarithm of the evidence against a worker", lambda one: one.weighed.peak),
    ("judged", "answers re-run", lambda one: one.judged),
    ("failed", "answers that failed", lambda one: one.failed),
)
NO_ENCLAVE = Enclave(bundle=lambda: None, keys=tuple)


class Validator:
    """`start` after the operator's line and stake stand; `stop` ends everything."""

    def __init__(
        self,
        settings: ValidatorSettings,
        ports: ValidatorPorts,
        *,
        key: SigningKey,
        url: str,
        parameters: ValidationParameters,
        policy: AppraisalPolicy,
        examiner: Examiner,
        enclave: Enclave = NO_ENCLAVE,
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._key = key
        self._parameters = parameters
        self.book = Book(ports.store)
        common: dict[str, Any] = {
            "key": key,
            "parameters": parameters,
            "validation": ports.validation,
            "book": self.book,
            "clock": ports.clock,
            "entropy": ports.entropy,
        }
        self.register = Register(ports.ledger, ports.validation, self.book, ports.clock)
        self.rounds = Rounds(settings, examiner=examiner, register=self.register, asker=ports.asker, **common)
        self.accuser = Accuser(url=url, **common)
        self.plants = Plants(
            key=key,
            validation=ports.validation,
            book=self.book,
            entropy=ports.entropy,
            accuser=self.accuser,
            decoy=settings.decoy,
        )
        self.accuser.on_convicting = self._convicting
        self.rounds.on_planned = self.plants.planned
        self.juror = Juror(examiner=examiner, pages=ports.pages, register=self.register, policy=policy, **common)
        self.clerk = Clerk(settings, ledger=ports.ledger, juror=self.juror, pages=ports.pages, **common)
        self.insistence = Insistence(key=key, validation=ports.validation, book=self.book, juror=self.juror)
        self.clerk.before_steps = self._before_steps
        self.opt_ins = OptIns(
            settings,
            keys=enclave.keys,
            domain=receipt_domain(parameters.chain_id, parameters.registry),
            examiner=examiner,
            book=self.book,
            entropy=ports.entropy,
            is_worker_key=self.register.had_key,
            weighing=self.rounds.weighing,
        )
        self.alarms = None if ports.others is None else self._alarms(ports.others)
        self._desk = Desk(
            report=self.report,
            metrics=self._metrics,
            evidence=self.book.evidence,
            certificate=self.clerk.certificate,
            enclave=enclave.bundle,
            opt_in=self.opt_ins.take,
        )
        self._standings: dict[bytes, Standing] = {}
        self.rounds.on_weighed = self.opt_ins.on_weighed = self._weighed
        self._tasks: list[asyncio.Task[None]] = []

    def _alarms(self, others: Others) -> Alarms:
        return Alarms(
            book=self.book,
            clock=self._ports.clock,
            parameters=self._parameters,
            others=others,
            under_way=self.rounds.under_way,
            cases=self.clerk.cases.values,
            decoy=self._settings.decoy,
        )

    @property
    def handle(self) -> HttpHandler:
        return self._desk.handle

    async def start(self) -> None:
        for standing in await self.book.standings():
            self._standings[bytes(standing.operator) + standing.model] = standing
        await self.register.look()
        work: list[Coroutine[Any, Any, None]] = [
            self.rounds.run(),
            self.clerk.run(),
            self.register.run(),
            self.opt_ins.run(),
        ]
        if self.alarms is not None:
            work.append(self.alarms.run())
        if self._settings.accuse:
            work.append(self._accuse())
        self._tasks = [asyncio.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(_told)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._desk.close()

    async def _accuse(self) -> None:
        """After each epoch: a case may hold only epochs that have ended."""
        while True:
            clock, parameters = self._ports.clock, self._parameters
            now = int(clock.now()) / 1_000
            following = parameters.epoch_start(parameters.epoch_of(int(now)) + 1)
            await clock.sleep(max(0.5, following - now + 1.5))
            try:
                await self.accuser.look()
                if int.from_bytes(self._ports.entropy.bytes(4)) % 1_000 < self._settings.plants:
                    await self.plants.innocent()
            except BombyxError as error:
                log.warning("nobody was looked at: %s", error)

    async def _before_steps(self, case: Case, now: int) -> Callable[[], Awaitable[None]] | None:
        """What a case of our own wants of us before anybody's next step."""
        shown = await self.plants.due(case, now)
        return shown or (await self.insistence.due(case, now) if self._settings.appeal else None)

    async def _convicting(self, standing: Standing) -> None:
        """The decoy does what it was made for; everybody else is accused in earnest."""
        if standing.operator == self._settings.decoy:
            await self.plants.guilty(standing)
        else:
            await self.accuser.accuse(standing)

    def _weighed(self, standing: Standing) -> None:
        before = self._standings.get(bytes(standing.operator) + standing.model)
        self._standings[bytes(standing.operator) + standing.model] = standing
        peak = standing.weighed.peak
        if before is None or int(before.weighed.peak) < int(peak):
            log.info("worker %s: evidence 1e%.1f after %d answers", standing.operator, peak, standing.judged)

    # --- what is shown ---

    async def report(self) -> dict[str, Any]:
        """What this validator saw of each worker, and the cases it knows. Nothing of any prompt or answer; nothing a
        juror could say instead of looking: no opinion before its round is over, no figures unless they were asked for.
        """
        rows = self._standings.values()
        return {
            "role": "validator",
            "version": 1,
            "address": str(self._key.address),
            "workers": [one.seen() | (one.found() if self._settings.figures else {}) for one in rows],
            "opened": list(self.accuser.opened),
            "cases": [_case_row(case) for case in self.clerk.cases.values()],
            "opinions": {
                str(case): {"verdict": o.verdict.name, "log10": round(o.log10, 3), "why": o.why}
                for case, o in self.juror.opinions.items()
                if (known := self.clerk.cases.get(case)) is not None and known.said
            },
        }

    def _metrics(self) -> bytes:
        """Per worker: operators are public, and few."""
        registry = CollectorRegistry()
        for name, text, value in _SEEN + (_FOUND if self._settings.figures else ()):
            gauge = Gauge(f"bombyx_validator_{name}", text, ("operator", "model"), registry=registry)
            for one in self._standings.values():
                gauge.labels(str(one.operator), one.name).set(value(one))
        return generate_latest(registry)


def _case_row(case: Case) -> dict[str, Any]:
    return {
        "id": case.id,
        "accused": str(case.accused),
        "accuser": str(case.accuser),
        "state": case.state.name,
        "round": case.round,
        "jury": [str(juror) for juror in case.jury],
        "votes": {str(b.juror): b.verdict.name if b.verdict else None for b in case.ballots},
        "outcome": case.outcome.name if case.outcome else None,
        "ending": case.ending.name,
        "sentence": case.sentence,
        "evidence": case.accusation.evidence.hex(),
        "epochs": [case.accusation.from_epoch, case.accusation.to_epoch],
    }


def _told(task: asyncio.Task[None]) -> None:
    """A part that ended by an error of ours is a bug: say so, the rest goes on."""
    if not task.cancelled() and task.exception() is not None:
        log.error("a part of the validator ended", exc_info=task.exception())
