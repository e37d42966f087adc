# SPDX-License-Identifier: Apache-2.0
"""Puts the contracts on a chain and keeps where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bombyx.adapters.evm import AddressBook, Rpc
from bombyx.adapters.evm import deploy as deploy_to
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Address


async def deploy_contracts(
    urls: list[str],
    *,
    key: str,
    file: Path,
    token: str | None = None,
    settlement: str | None = None,
    stake_manager: str | None = None,
    stake_strategy: str | None = None,
    committee: str | None = None,
) -> dict[str, Any]:
    """Deploy what is not named and add the chain to the address book in `file`. Gives the book's entry."""
    from bombyx.compose import key_store

    signer = key_store().load(key)
    rpc = Rpc(urls)
    try:
        book: AddressBook = await deploy_to(
            rpc,
            signer=signer,
            token=_address("--token", token),
            settlement=_address("--settlement", settlement),
            stake_manager=_address("--stake-manager", stake_manager),
            stake_strategy=_address("--stake-strategy", stake_strategy),
            committee=_address("--committee", committee),
        )
    finally:
        await rpc.close()
    book.save(file)
    return book.as_dict()


def _address(option: str, text: str | None) -> Address | None:
    try:
        return Address.parse(text) if text else None
    except ValueError:
        raise ConfigError(f"{option} takes an address of 20 bytes, not {text!r}") from None
