# SPDX-License-Identifier: Apache-2.0
"""`bombyx stake`: an operator's stake: put in, allocated to its role, in and out of the role's set, taken back.

Always: a change is told before it is made and asked for, unless `--yes`; `--dry-run` tells and does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.channel import DryOption, JsonOption, NetworkOption, Ready, StateOption, YesOption
from bombyx.cli.output import print_json, print_rows
from bombyx.compose.stakes import Staking, open_staking, operator_key
from bombyx.config import NetworkDescriptor
from bombyx.errors import ConfigError
from bombyx.ports import OperatorRole, Stakes, StakeView
from bombyx.protocol.audit.case import WAD
from bombyx.protocol.primitives import Address, Amount, Digest
from bombyx.protocol.wire.signing import SigningKey

app = typer.Typer(help="Stake that answers for an operator's work.", no_args_is_help=True)
RoleOption = Annotated[OperatorRole, typer.Option(help="which of this machine's operators")]
AmountArgument = Annotated[int, typer.Argument(help="token base units", min=1)]


@app.command()
def deposit(
    amount: AmountArgument,
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Stake tokens of the operator's account."""

    async def act(stakes: Stakes, key: SigningKey) -> Digest:
        return await stakes.deposit(Amount(amount), signer=key)

    _change(
        act, {"action": "deposit", "amount": amount}, role, state, network, Ready(yes=yes, dry_run=dry_run, json=json)
    )


@app.command()
def allocate(
    percent: Annotated[float, typer.Argument(help="of the stake that answers for the role", min=0, max=100)],
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Say how much of the stake answers for the role. Less counts after the chain's delay."""
    wad = round(percent * 10**6) * (WAD // 10**8)

    async def act(stakes: Stakes, key: SigningKey) -> Digest:
        return await stakes.allocate(role, wad, signer=key)

    plan = {"action": "allocate", "percent": percent}
    _change(act, plan, role, state, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def join(
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Enter the role's set: from then on the allocated stake can be slashed, and the operator can be accused."""

    async def act(stakes: Stakes, key: SigningKey) -> Digest:
        return await stakes.join(role, signer=key)

    _change(act, {"action": "join"}, role, state, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def leave(
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Leave the role's set. The stake stays slashable for the chain's delay: keep the worker running till then."""

    async def act(stakes: Stakes, key: SigningKey) -> Digest:
        return await stakes.leave(role, signer=key)

    _change(act, {"action": "leave"}, role, state, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def withdraw(
    amount: Annotated[int | None, typer.Argument(help="token base units to ask for; none: take what is ready")] = None,
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Ask for stake back, and, when the chain's delay has passed, take it."""

    async def act(stakes: Stakes, key: SigningKey) -> Digest:
        if amount is None:
            return await stakes.withdraw(signer=key)
        return await stakes.queue_withdrawal(Amount(amount), signer=key)

    plan: dict[str, Any] = {"action": "take what is ready"} if amount is None else {"action": "ask", "amount": amount}
    _change(act, plan, role, state, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def status(
    operator: Annotated[str | None, typer.Argument(help="an operator's address; default: this machine's")] = None,
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print stake, allocations, sets, strikes, and what waits to be collected."""
    whom = _address(operator) if operator else operator_key(role, state).address

    async def look() -> dict[str, Any]:
        async with open_staking(NetworkDescriptor.load(network)) as staking:
            return await _standing(staking, whom)

    found = asyncio.run(look())
    if json:
        print_json(found)
    else:
        print_rows([(name.replace("_", " "), _told(value)) for name, value in found.items()])


async def _standing(staking: Staking, whom: Address) -> dict[str, Any]:
    view, info = await staking.stakes.stake(whom), await staking.stakes.info()
    return {
        "operator": str(whom),
        "deposited": int(view.deposited),
        "allocated": {str(role): int(amount) for role, amount in view.allocated.items() if amount},
        "member_of": _names(view.member),
        "slashable_in": _names(view.slashable),
        "needed_to_join": {str(role): int(amount) for role, amount in info.minimum.items()},
        "withdrawing": int(view.withdrawing),
        "ready_at_block": view.withdraw_block,
        "ejected_until": view.ejected_until,
        "strikes": await staking.validation.convictions(whom),
        "to_collect": int(await staking.validation.credit_of(whom)),
    }


def _names(roles: frozenset[OperatorRole]) -> list[str]:
    return sorted(str(role) for role in roles)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {amount}" for name, amount in value.items()) or "nothing"
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


@app.command()
def collect(
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Take fees, bounties and bonds that came back."""

    async def act(staking: Staking, key: SigningKey) -> Digest:
        if not await staking.validation.credit_of(key.address):
            raise ConfigError(f"nothing waits for {key.address}")
        return await staking.validation.collect(signer=key)

    _send(act, {"action": "collect"}, role, state, network, Ready(yes=yes, dry_run=dry_run, json=json))


def _change(
    act: Callable[[Stakes, SigningKey], Awaitable[Digest]],
    plan: dict[str, Any],
    role: OperatorRole,
    state: Path | None,
    network: Path | None,
    ready: Ready,
) -> None:
    async def run(staking: Staking, key: SigningKey) -> Digest:
        return await act(staking.stakes, key)

    _send(run, plan, role, state, network, ready)


def _send(
    act: Callable[[Staking, SigningKey], Awaitable[Digest]],
    plan: dict[str, Any],
    role: OperatorRole,
    state: Path | None,
    network: Path | None,
    ready: Ready,
) -> None:
    where, key = NetworkDescriptor.load(network), operator_key(role, state)
    plan = {**plan, "role": str(role), "operator": str(key.address)}
    ready(plan)

    async def run() -> tuple[Digest, StakeView]:
        async with open_staking(where) as staking:
            return await act(staking, key), await staking.stakes.stake(key.address)

    done, view = asyncio.run(run())
    found = {**plan, "transaction": str(done), "deposited": int(view.deposited), "member_of": _names(view.member)}
    if ready.json:
        print_json(found)
    else:
        print_rows([(name.replace("_", " "), _told(value)) for name, value in list(found.items())[-3:]])


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an address") from None
