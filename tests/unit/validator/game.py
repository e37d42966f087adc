# SPDX-License-Identifier: Apache-2.0
"""All validators and workers of one small network, played in one process on a clock that the test turns."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.unit.validator.court import PARAMETERS, Court
from tests.unit.validator.world import BEGAN, MODEL, POLICY, TinyAsker, TinyWorker, examiner, key_of

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import MalformedMessage, PaymentError, Unavailable
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.audit.case import ValidationParameters
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.asking import Others
from bombyx.roles.validator.runtime import NO_ENCLAVE, Enclave, Validator, ValidatorPorts
from bombyx.roles.validator.settings import ValidatorSettings

STEP = 0.25  # seconds of the game


class TurnedClock:
    """`ports.Clock` that stands still until it is turned."""

    def __init__(self) -> None:
        self._passed = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> Instant:
        return BEGAN.plus(seconds=self._passed)

    def monotonic(self) -> float:
        return self._passed

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting, (self._passed + seconds, self._count, future))
        await future

    async def turn(self) -> None:
        """One step; whoever waited for it runs."""
        self._passed += STEP
        while self._waiting and self._waiting[0][0] <= self._passed:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0.001)


def line(address: Address, role: OperatorRole, receipts: Address, endpoint: str = "", key: bytes = b"") -> Operator:
    return Operator(
        address=address, role=role, endpoint=endpoint, receipt_address=receipts, pay_authorizer=address,
        pay_key_config=key, price_sheet=Digest.zero(), models=(MODEL,),
    )  # fmt: skip


@dataclass
class Game:
    """Who plays. `pages` are validators' endpoints without sockets."""

    clock: TurnedClock
    court: Any  # this folder's, or a real chain's
    ledger: Any
    workers: dict[Address, TinyWorker]
    parameters: ValidationParameters = PARAMETERS
    validators: list[Validator] = field(default_factory=list)
    keys: list[SigningKey] = field(default_factory=list)
    stores: list[MemoryStore] = field(default_factory=list)
    settings: list[ValidatorSettings] = field(default_factory=list)
    enclaves: list[Enclave] = field(default_factory=list)  # empty: nobody takes answers
    others: Callable[[SigningKey], Others] | None = None  # how one of them reaches the others
    served: dict[int, dict[Address, TinyWorker]] = field(default_factory=dict)  # what one of them gets to see

    def seated(self, number: int) -> Validator:
        """A new process of this validator, over the books it has."""
        return Validator(
            self.settings[number],
            ValidatorPorts(
                clock=self.clock,
                entropy=SystemEntropy(),
                store=self.stores[number],
                ledger=self.ledger,
                validation=self.court,
                pages=self,
                asker=lambda _: TinyAsker(self.served.get(number, self.workers), self.clock),
                others=None if self.others is None else self.others(self.keys[number]),
            ),
            key=self.keys[number],
            url=f"http://{number}",
            parameters=self.parameters,
            policy=POLICY,
            examiner=examiner(),
            enclave=self.enclaves[number] if self.enclaves else NO_ENCLAVE,
        )

    async def killed(self, number: int) -> None:
        """Its process is gone, and what it had not written down."""
        await self.validators[number].stop()

    async def restarted(self, number: int) -> Validator:
        self.validators[number] = self.seated(number)
        await self.validators[number].start()
        return self.validators[number]

    async def until(self, happened: Callable[[], bool], *, seconds: float = 400) -> None:
        """Play until it has happened. Fails after so many seconds of the game."""
        end = self.clock.monotonic() + seconds
        while not happened():
            assert self.clock.monotonic() < end, f"it has not happened: {self.court.kept}"
            await self.clock.turn()

    async def get(self, url: str, most: int) -> bytes:
        """`roles.validator.asking.Pages`."""
        name, _, path = url.removeprefix("http://").partition("/")
        validator = self.validators[int(name)]
        if path.startswith("v1/evidence/"):
            data = await validator.book.evidence(Digest.parse(path.removeprefix("v1/evidence/")))
        else:
            case, _, round_ = path.removeprefix("v1/certificates/").partition("/")
            try:
                data = await validator.clerk.certificate(int(case), int(round_))
            except MalformedMessage:
                data = None
        if data is None:
            raise Unavailable("no such page")
        if len(data) > most:
            raise MalformedMessage("too large")
        return data


@asynccontextmanager
async def playing(
    workers: Sequence[TinyWorker],
    *,
    validators: int = 6,
    settings: ValidatorSettings | None = None,
    first: ValidatorSettings | None = None,
) -> AsyncIterator[Game]:
    """`first`: what the first validator is told, where it is not what all are told."""
    clock = TurnedClock()
    court, ledger = Court(clock), MemoryLedger(clock)
    game = Game(clock=clock, court=court, ledger=ledger, workers={worker.operator: worker for worker in workers})
    for worker in workers:
        named = line(worker.operator, OperatorRole.WORKER, worker.receipt_key.address)
        await ledger.register(named, signer=key_of(worker.name))
    told = settings or ValidatorSettings(most_tokens=32, watch_seconds=1.0, figures=True)
    for number in range(validators):
        key = key_of(f"validator {number}")
        named = line(key.address, OperatorRole.VALIDATOR, key.address, f"http://{number}")
        await ledger.register(named, signer=key)
        court.members.append(key.address)
        game.keys.append(key)
        game.stores.append(MemoryStore())
        game.settings.append(told if number or first is None else first)
        game.validators.append(game.seated(number))
    try:
        for validator in game.validators:
            await validator.start()
        yield game
    finally:
        for validator in game.validators:
            await validator.stop()


async def appeals(game: Game, name: str) -> None:
    """A convicted worker's own reflex."""
    key = key_of(name)
    while True:
        for case in await game.court.cases():
            if case.may_appeal(key.address, (await game.court.now())[0]):
                try:
                    await game.court.appeal(case.id, signer=key)
                except PaymentError:
                    pass
        await game.clock.sleep(2.0)
