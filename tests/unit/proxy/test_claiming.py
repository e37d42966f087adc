# SPDX-License-Identifier: Apache-2.0
"""Which channels a proxy looks at before it claims: all where the chain tells nothing, few where it tells who goes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from tests.unit.pay.conftest import Town

from bombyx.adapters.memory import MemoryLedger
from bombyx.errors import Unavailable
from bombyx.ports import ChannelView
from bombyx.protocol.primitives import Digest
from bombyx.roles.proxy.claiming import SWEEP, Claims


@dataclass
class Teller(MemoryLedger):
    """A chain that tells who withdraws, and counts who is looked at."""

    town: Town
    told: list[frozenset[Digest] | None] = field(default_factory=list)
    looks: Counter[Digest] = field(default_factory=Counter)
    away: bool = False

    def __post_init__(self) -> None:
        self.chain = self.town.chain

    async def leaving(self) -> frozenset[Digest] | None:
        return self.told.pop(0) if self.told else frozenset()

    async def channel(self, channel: Digest) -> ChannelView | None:
        if self.away:
            raise Unavailable("the chain is away")
        self.looks[channel] += 1
        return await super().channel(channel)


@dataclass
class Desk:
    town: Town
    ledger: Teller
    claims: Claims

    def looks(self) -> int:
        found = self.ledger.looks.total()
        self.ledger.looks.clear()
        return found


@pytest.fixture
def desk() -> Desk:
    town = Town(deposit=10_000, budget=8_000)
    town.serve(1, charge=60)  # owed, far below the threshold of 500
    ledger = Teller(town)
    claims = Claims(town.book, ledger=ledger, clock=town.clock, signer=town.payee_key, seen=lambda view: None)
    return Desk(town, ledger, claims)


async def test_while_the_chain_tells_nothing_every_debt_is_looked_at(desk: Desk) -> None:
    """PAY-15: the first time, after a deep reorg, and on chains that never tell."""
    desk.ledger.told = [None, None, None]
    for _ in range(3):
        assert await desk.claims.collect() == 0
        assert desk.looks() == 1


async def test_small_debts_of_payers_who_stay_are_looked_at_now_and_then(desk: Desk) -> None:
    """PAY-6, PAY-15: half the interval in which every channel is sure to be seen."""
    await desk.claims.collect()
    assert desk.looks() == 1
    await desk.claims.collect()
    assert desk.looks() == 0
    desk.town.clock.pass_time(SWEEP + 1)
    await desk.claims.collect()
    assert desk.looks() == 1


async def test_a_payer_who_leaves_is_claimed_from_at_once(desk: Desk) -> None:
    """PAY-15: whatever is owed; and one the chain named too early is asked for again until its view shows it."""
    await desk.claims.collect()
    town = desk.town
    town.chain.initiate_withdraw(town.payer_key.address, town.channel, 100)
    desk.ledger.told = [frozenset({town.channel, Digest(b"\x09" * 32)})]
    assert await desk.claims.collect() == 1
    assert town.view.total_claimed == 60
    desk.looks()
    town.accept(town.pay(2), 2)
    town.settle(2, 10)
    assert await desk.claims.collect() == 1, "it still withdraws: what came since is claimed too, told again or not"
    assert town.view.total_claimed == 70


async def test_a_sweep_that_the_chain_broke_off_is_made_again(desk: Desk) -> None:
    """PAY-15: told once that nothing is known, with the chain away right after: everything is still to be looked at."""
    await desk.claims.collect()
    desk.looks()
    desk.ledger.told, desk.ledger.away = [None], True
    with pytest.raises(Unavailable):
        await desk.claims.collect()
    desk.ledger.away = False
    await desk.claims.collect()
    assert desk.looks() == 1


async def test_a_debt_that_is_due_waits_for_no_sweep(desk: Desk) -> None:
    """PAY-15: by threshold, or by age."""
    await desk.claims.collect()
    for name in range(2, 8):
        desk.town.serve(name, charge=90)
    assert await desk.claims.collect() == 1
    assert desk.town.view.total_claimed == 600
