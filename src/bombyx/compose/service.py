# SPDX-License-Identifier: Apache-2.0
"""A started role, as the command line sees it: what to announce, and how to end it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.crashing import CrashingStore
from bombyx.adapters.evm import AddressBook, EvmLedger, EvmStakes, EvmValidation, Rpc
from bombyx.adapters.ledger_http import HttpLedger
from bombyx.adapters.sqlite import SqliteStore
from bombyx.config import NetworkDescriptor, clock_error, crash_orders
from bombyx.ports import Clock, Ledger, Stakes, Store, Validation
from bombyx.protocol.primitives import Address


@dataclass(slots=True, kw_only=True)
class Service:
    """`facts` are announced; `drain` ends in order; `close` lets go of everything, the last opened first."""

    facts: dict[str, Any]
    drain: Callable[[], Awaitable[None]] | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def stop(self) -> None:
        if self.drain is not None:
            await self.drain()
        await self.stack.aclose()


def open_clock() -> Clock:
    """The machine's."""
    return SystemClock(error=clock_error())


def open_store(path: Path, *, released: Callable[[], None] = lambda: None) -> Store:
    """One file of rows; one that kills us at a chosen write, where a test asked for that."""
    store, orders = SqliteStore.open(path, released=released), crash_orders()
    return CrashingStore(store, orders) if orders else store


def open_ledger(network: NetworkDescriptor, state: Path | None = None) -> HttpLedger | EvmLedger:
    """The chain a descriptor names: an EVM chain by its address book, else the in-memory one. `state`: the folder this
    process holds, where it keeps the transactions it has under way and the last block it looked at."""
    if network.contracts is None:
        return HttpLedger(network.chain_url)
    book = AddressBook.from_dict(network.contracts)
    return EvmLedger(Rpc(network.chain_url.split(","), chain_id=book.chain_id), book, kept=chain_store(state))


def stakes_of(ledger: HttpLedger | EvmLedger) -> Stakes | None:
    """Of the same chain; None where it has none (the in-memory one). Closed with the ledger."""
    staked = isinstance(ledger, EvmLedger) and ledger.book.stake_manager != Address.zero()
    return EvmStakes(ledger) if isinstance(ledger, EvmLedger) and staked else None


def validation_of(ledger: HttpLedger | EvmLedger) -> Validation | None:
    """As `stakes_of`."""
    judged = isinstance(ledger, EvmLedger) and ledger.book.validation != Address.zero()
    return EvmValidation(ledger) if isinstance(ledger, EvmLedger) and judged else None


def chain_store(state: Path | None) -> Store | None:
    """Beside the role's own books, for replicas share those, and what a process has under way is its own."""
    return open_store(state / "chain.db") if state is not None else None


async def fund(ledger: Ledger, account: Address, amount: int) -> None:
    """Development money, where the chain is one that gives it away. Elsewhere accounts are funded by their owners."""
    gives = isinstance(ledger, HttpLedger) or (isinstance(ledger, EvmLedger) and ledger.book.development)
    if gives and isinstance(ledger, HttpLedger | EvmLedger):
        held = int(await ledger.balance(account))
        if held < amount:
            await ledger.faucet(account, amount - held)
