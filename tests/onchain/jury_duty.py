# SPDX-License-Identifier: Apache-2.0
"""Validators' own code against the contracts on a real node: whole roles, small models, a clock that both sides share.

What is not real here: enclaves, proxies and the models, which are those of tests/unit/validator.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from tests.onchain.devnet import MiningRpc, ledger_on, need_anvil
from tests.unit.validator.game import Game, TurnedClock, line
from tests.unit.validator.world import BEGAN, TinyWorker, key_of

from bombyx.adapters.evm import EvmLedger, EvmStakes, EvmValidation, Rpc, seed, start_node
from bombyx.adapters.evm.staked import StakeTerms
from bombyx.adapters.memory import MemoryStore
from bombyx.ports import OperatorRole
from bombyx.protocol.audit.case import WAD
from bombyx.protocol.primitives import Amount
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.settings import ValidatorSettings

STAKE = 60_000_000
STEP = 1  # seconds of the chain's clock at a turn
BREATH = 0.02  # seconds of ours, in which roles talk to the node


class SharedClock(TurnedClock):
    """The node's clock, which each turn moves."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__()
        self._rpc = rpc

    async def pass_time(self, seconds: int) -> None:
        await self._rpc.call("evm_increaseTime", seconds)
        await self._rpc.call("evm_mine")
        newest = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        self._passed = float(int(newest["timestamp"], 16) - BEGAN.seconds)
        while self._waiting and self._waiting[0][0] <= self._passed:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)

    async def turn(self) -> None:
        await self.pass_time(STEP)
        await asyncio.sleep(BREATH)


@dataclasses.dataclass
class Duty(Game):
    """Everybody's roles on one node."""

    stakes: EvmStakes = dataclasses.field(kw_only=True)
    later: Callable[[int], Awaitable[None]] = dataclasses.field(kw_only=True)

    async def comes(self, happened: Callable[[], Awaitable[bool]], *, seconds: float = 400) -> None:
        """Play until the chain says so."""
        end = self.clock.monotonic() + seconds
        while not await happened():
            assert self.clock.monotonic() < end, f"it has not happened: {await self.court.cases()}"
            await self.clock.turn()

    async def enter(self, who: SigningKey, role: OperatorRole, receipts: SigningKey, endpoint: str) -> None:
        await self.ledger.faucet(who.address, 3 * STAKE)
        await self.ledger.register(line(who.address, role, receipts.address, endpoint), signer=who)
        await self.stakes.deposit(Amount(STAKE), signer=who)
        await self.stakes.allocate(role, WAD, signer=who)
        await self.stakes.join(role, signer=who)


@asynccontextmanager
async def on_duty(
    workers: Sequence[TinyWorker], terms: StakeTerms, settings: Sequence[ValidatorSettings]
) -> AsyncIterator[Duty]:
    """One validator for each of `settings`."""
    need_anvil()
    node = await start_node()
    rpc = MiningRpc([node.url])
    clock = SharedClock(rpc)
    try:
        await rpc.call("evm_setNextBlockTimestamp", BEGAN.seconds)
        await rpc.call("evm_mine")
        await clock.pass_time(1)
        ledger = ledger_on(rpc, await seed(rpc, terms=terms))
        async with _everybody(ledger, clock, workers, settings) as duty:
            yield duty
        await ledger.transactions.close()
    finally:
        await rpc.close()
        await node.close()


@asynccontextmanager
async def _everybody(
    ledger: EvmLedger, clock: SharedClock, workers: Sequence[TinyWorker], settings: Sequence[ValidatorSettings]
) -> AsyncIterator[Duty]:
    court = EvmValidation(ledger)
    parameters = await court.parameters()
    domain = receipt_domain(parameters.chain_id, parameters.registry)
    signing = [dataclasses.replace(worker, domain=domain) for worker in workers]
    duty = Duty(
        clock=clock, court=court, ledger=ledger, workers={worker.operator: worker for worker in signing},
        parameters=parameters, stakes=EvmStakes(ledger), later=clock.pass_time,
    )  # fmt: skip
    for worker in signing:
        await duty.enter(key_of(worker.name), OperatorRole.WORKER, worker.receipt_key, "")
    for number, told in enumerate(settings):
        key = key_of(f"validator {number}")
        await duty.enter(key, OperatorRole.VALIDATOR, key, f"http://{number}")
        duty.keys.append(key)
        duty.stores.append(MemoryStore())
        duty.settings.append(told)
        duty.validators.append(duty.seated(number))
    try:
        for validator in duty.validators:
            await validator.start()
        yield duty
    finally:
        for validator in duty.validators:
            await validator.stop()
