# SPDX-License-Identifier: Apache-2.0
"""The contracts of stake and validation: their constants, their order, and how they are told of each other.

`StakeTerms` is every number a deployment chooses. Nothing here is believed at run time: roles read the constants from
the contracts (`stake.py`, `validation.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bombyx.adapters.evm import abi
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.eip712 import word

Word = Address | int
Put = Callable[[str, tuple[Word, ...]], Awaitable[Address]]
METADATA: Final = "urn:bombyx:avs"  # what an AVS must say of itself before it has operator sets
DAY: Final = 86_400  # seconds
NOBODY: Final = Address.zero()


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeTerms:
    """Times in seconds, delays in blocks, amounts in base units of the token. The defaults are for real money on a
    chain of 12 s blocks: a case takes at most 9 days, and who leaves can be slashed for 14."""

    proxy_minimum: int = 0
    worker_minimum: int = 1_000_000_000
    validator_minimum: int = 500_000_000
    deallocation_blocks: int = 14 * DAY // 12
    epoch: int = DAY
    root_window: int = DAY // 2
    beacon_delay: int = 16
    jury: int = 5
    min_jury: int = 3
    jury_delay: int = 16
    commit: int = DAY
    reveal: int = DAY // 2
    appeal: int = DAY
    bond: int = 50_000_000
    juror_fee: int = 5_000_000
    patience: int = 3
    veto: int = 3 * DAY
    strikes: int = 3
    strike_cases: int = 10
    ejection: int = 30 * DAY
    claim: int = 7 * DAY
    bounty_bps: int = 1_000
    bounty_most: int = 100_000_000
    client_bps: int = 7_000
    refund_cap: int = 10_000_000
    challenge_bond: int = 5_000_000
    answer: int = 3 * DAY
    challengeable: int = 7 * DAY

    def longest_case(self) -> int:
        """Seconds from an accusation to a slash, with an appeal; drawing a jury not counted."""
        return 2 * (self.commit + self.reveal) + self.appeal + self.veto

    def check(self, block_seconds: float = 12.0) -> None:
        """Raises `ConfigError` where the numbers let stake escape or receipts be asked for that may be forgotten."""
        life = self.deallocation_blocks * block_seconds
        if life < self.longest_case() + self.epoch:
            raise ConfigError(
                f"stake can leave after {life:g} s, before a case of {self.longest_case()} s ends", rule="VAL-5"
            )
        if self.answer < self.epoch + self.root_window:
            raise ConfigError("a challenge must leave time for the epoch's root", rule="VAL-4")


# For a development chain of 1 s blocks, where somebody watches: seconds, and one conviction suffices.
DEVELOPMENT: Final = StakeTerms(
    worker_minimum=50_000_000,
    validator_minimum=20_000_000,
    deallocation_blocks=900,
    epoch=30,
    root_window=20,
    beacon_delay=2,
    jury=3,
    min_jury=2,
    jury_delay=2,
    commit=60,  # the last juror's vote ends it: the time is for machines that do much else
    reveal=30,
    appeal=30,
    bond=1_000_000,
    juror_fee=100_000,
    veto=10,
    strikes=1,
    strike_cases=5,
    ejection=3_600,
    claim=30,
    bounty_most=1_000_000,
    challenge_bond=200_000,
    answer=90,
    challengeable=1_800,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staked:
    """Where the contracts of stake and validation are."""

    stake_manager: Address
    stake_strategy: Address
    registry: Address
    slasher: Address
    receipt_roots: Address
    receipt_faults: Address
    validation: Address
    restitution: Address
    validation_registry: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Who may do what beside the rules. Zero: nobody."""

    admin: Address  # tells the contracts of each other, once
    committee: Address = NOBODY  # may veto a jury's slash
    steward: Address = NOBODY  # may grant from the insurance


def manager_words(token: Address, terms: StakeTerms) -> tuple[Word, ...]:
    return (token, terms.deallocation_blocks)


def registry_words(manager: Address, strategy: Address, seats: Seats, terms: StakeTerms) -> tuple[Word, ...]:
    minimums = (terms.proxy_minimum, terms.worker_minimum, terms.validator_minimum)
    return (manager, strategy, seats.admin, *minimums)


def slasher_words(
    manager: Address, registry: Address, strategy: Address, seats: Seats, terms: StakeTerms
) -> tuple[Word, ...]:
    numbers = (terms.veto, terms.strikes, terms.strike_cases, terms.ejection)
    return (manager, registry, strategy, seats.committee, seats.admin, *numbers)


def roots_words(registry: Address, terms: StakeTerms) -> tuple[Word, ...]:
    return (registry, terms.epoch, terms.root_window, terms.beacon_delay)


def restitution_words(
    token: Address, registry: Address, slasher: Address, seats: Seats, terms: StakeTerms
) -> tuple[Word, ...]:
    numbers = (terms.claim, terms.epoch, terms.bounty_bps, terms.bounty_most, terms.client_bps, terms.refund_cap)
    return (token, registry, slasher, seats.steward, *numbers)


def faults_words(
    token: Address, registry: Address, roots: Address, slasher: Address, terms: StakeTerms
) -> tuple[Word, ...]:
    return (token, registry, roots, slasher, terms.challenge_bond, terms.answer, terms.challengeable)


def service_words(
    token: Address,
    registry: Address,
    manager: Address,
    slasher: Address,
    roots: Address,
    validations: Address,
    terms: StakeTerms,
) -> tuple[Word, ...]:
    drawn = (terms.jury, terms.min_jury, terms.jury_delay, terms.commit, terms.reveal, terms.appeal)
    paid = (terms.bond, terms.juror_fee, terms.patience)
    return (token, registry, manager, slasher, roots, validations, *drawn, *paid)


async def put_staked(
    put: Put, token: Address, seats: Seats, terms: StakeTerms, *, manager: Address | None, strategy: Address | None
) -> Staked:
    """Every contract of them, those that do not need each other at once. `manager`: EigenLayer's, where it is."""
    if (manager is None) != (strategy is None):
        raise ConfigError("a stake manager of others needs the strategy whose stake counts", rule="LEDGER-7")
    own = manager or await put("StakeManager", manager_words(token, terms))
    at = strategy or own
    registry, validations = await asyncio.gather(
        put("OperatorRegistry", registry_words(own, at, seats, terms)), put("ValidationRegistry8004", (NOBODY,))
    )
    slasher, roots = await asyncio.gather(
        put("Slasher", slasher_words(own, registry, at, seats, terms)),
        put("ReceiptRoots", roots_words(registry, terms)),
    )
    service, faults, restitution = await asyncio.gather(
        put("ValidationService", service_words(token, registry, own, slasher, roots, validations, terms)),
        put("ReceiptFaults", faults_words(token, registry, roots, slasher, terms)),
        put("Restitution", restitution_words(token, registry, slasher, seats, terms)),
    )
    return Staked(
        stake_manager=own,
        stake_strategy=at,
        registry=registry,
        slasher=slasher,
        receipt_roots=roots,
        receipt_faults=faults,
        validation=service,
        restitution=restitution,
        validation_registry=validations,
    )


def start_calls(staked: Staked) -> tuple[tuple[Address, bytes], ...]:
    """What the admin sends once, so that the contracts know each other."""
    named = (word(staked.validation), word(staked.receipt_faults), word(staked.restitution))
    sets = abi.call(
        "start(address,address,string)", word(staked.slasher), word(staked.restitution), abi.blob(METADATA.encode())
    )
    return (
        (staked.slasher, abi.call("start(address,address,address)", *named)),
        (staked.registry, sets),
    )
