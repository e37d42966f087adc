# SPDX-License-Identifier: Apache-2.0
"""An operator's stake and the cases on its chain, opened for one command and closed again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bombyx.compose.service import open_ledger, stakes_of, validation_of
from bombyx.config import NetworkDescriptor, state_home
from bombyx.errors import ConfigError
from bombyx.ports import Ledger, OperatorRole, Stakes, Validation
from bombyx.protocol.wire.signing import SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Staking:
    """The chain's side of it."""

    ledger: Ledger
    stakes: Stakes
    validation: Validation


@asynccontextmanager
async def open_staking(network: NetworkDescriptor) -> AsyncIterator[Staking]:
    """Raises `ConfigError` for a chain without stake."""
    ledger = open_ledger(network)
    try:
        stakes, validation = stakes_of(ledger), validation_of(ledger)
        if stakes is None or validation is None:
            raise ConfigError("this network's chain has no stake: it is the in-memory one, or knows no stake manager")
        yield Staking(ledger=ledger, stakes=stakes, validation=validation)
    finally:
        await ledger.close()


def operator_key(role: OperatorRole, state: Path | None) -> SigningKey:
    """The key of the role that runs, or ran, in `state`."""
    from bombyx.compose import key_store

    return key_store(state or state_home() / role).load(str(role))
