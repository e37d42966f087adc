# SPDX-License-Identifier: Apache-2.0
"""`bombyx channel`: put money into channels by hand, look at them, and get it back.

Every change is told before it is made and asked for, unless `--yes`; `--dry-run` tells and does nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.output import print_json, print_rows
from bombyx.cli.passphrase import FdOption, asking
from bombyx.compose.channels import open_channels
from bombyx.config import ClientConfig, NetworkDescriptor, load, state_home
from bombyx.errors import ConfigError
from bombyx.protocol.pay.payer import PayerChannel
from bombyx.protocol.primitives import Address, Digest
from bombyx.roles.client.channels import Channels, Outcome, Standing
from bombyx.roles.client.wallet import Wallet

app = typer.Typer(help="Payment channels of this machine's client.", no_args_is_help=True)
ProxyOption = Annotated[str | None, typer.Option(help="the proxy's address; not needed when there is one")]
StateOption = Annotated[Path | None, typer.Option(help="folder of the client's keys and books")]
NetworkOption = Annotated[Path | None, typer.Option(help="network descriptor; default: the network running here")]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with settings")]
YesOption = Annotated[bool, typer.Option("--yes", help="do not ask")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="tell what would be done; do nothing")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON; asks nothing, so --yes or --dry-run is needed")]
AmountOption = Annotated[int | None, typer.Option(help="token base units; default: the setting `deposit`", min=1)]
COLUMNS = ("proxy", "state", "balance", "paid out", "locked", "agreed", "signed", "left to wait")


@app.command("list")
def list_channels(
    state: StateOption = None, network: NetworkOption = None, config: ConfigOption = None, json: JsonOption = False
) -> None:
    """Print every channel, and what of the budget is used. Works beside a running client."""
    settings = load(ClientConfig, file=config)

    async def run() -> tuple[tuple[Standing, ...], int]:
        async with open_channels(
            settings, NetworkDescriptor.load(network), _folder(state), ask=None, change=False
        ) as opened:
            return await opened[0].standings(), opened[1].spent

    standings, spent = asyncio.run(run())
    left = max(0, settings.budget - spent)
    if json:
        budget = {"limit": settings.budget, "used": spent, "left": left}
        print_json({"channels": [one.as_dict() for one in standings], "budget": budget})
        return
    if standings:
        print_rows([COLUMNS, *(_row(one) for one in standings)])
    typer.echo(f"budget: {spent} of {settings.budget} used, {left} left")


@app.command("open")
def open_channel(
    proxy: ProxyOption = None,
    amount: AmountOption = None,
    state: StateOption = None,
    network: NetworkOption = None,
    config: ConfigOption = None,
    passphrase_fd: FdOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Deposit into a new channel to a proxy. (A running client does this by itself when it first pays.)"""
    settings = load(ClientConfig, file=config)
    wanted = amount or settings.deposit

    async def act(channels: Channels, wallet: Wallet, ready: Ready) -> Outcome | None:
        to = channels.proxy(_address(proxy))
        if wallet.channel(to) is not None:
            raise ConfigError(f"there is a channel to {to} already: `bombyx channel topup`", rule="WAL-4")
        ready({"action": "open", "proxy": str(to), "amount": wanted, **_budget(settings, wallet)})
        return await channels.deposit(to, wanted)

    _act(act, settings, state, network, passphrase_fd, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def topup(
    proxy: ProxyOption = None,
    amount: AmountOption = None,
    state: StateOption = None,
    network: NetworkOption = None,
    config: ConfigOption = None,
    passphrase_fd: FdOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Deposit more into a channel. (A running client does this by itself, within its budget.)"""
    settings = load(ClientConfig, file=config)
    wanted = amount or settings.deposit

    async def act(channels: Channels, wallet: Wallet, ready: Ready) -> Outcome | None:
        channel = channels.find(_address(proxy))
        ready({"action": "top up", **_named(channel), "amount": wanted, **_budget(settings, wallet)})
        return await channels.deposit(channel.config.receiver, wanted)

    _act(act, settings, state, network, passphrase_fd, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def close(
    proxy: ProxyOption = None,
    alone: Annotated[bool, typer.Option("--alone", help="do not ask the proxy for a refund; withdraw")] = False,
    state: StateOption = None,
    network: NetworkOption = None,
    config: ConfigOption = None,
    passphrase_fd: FdOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Close a channel: the proxy refunds at once what is left; if it does not, a withdrawal is announced."""
    settings = load(ClientConfig, file=config)

    async def act(channels: Channels, wallet: Wallet, ready: Ready) -> Outcome | None:
        channel = channels.find(_address(proxy))
        standing = await channels.standing(channel)
        at_most = max(0, standing.locked - channel.agreed + (int(standing.view.total_claimed) if standing.view else 0))
        ready({"action": "close", **_named(channel), "locked": standing.locked, "back at most": at_most})
        return await channels.close(channel, alone=alone)

    _act(act, settings, state, network, passphrase_fd, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def withdraw(
    proxy: ProxyOption = None,
    channel: Annotated[str | None, typer.Option(help="a channel's id, for one closed earlier")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="stay until the delay is over, then take")] = True,
    state: StateOption = None,
    network: NetworkOption = None,
    config: ConfigOption = None,
    passphrase_fd: FdOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Take back what is left, alone: announce, wait out the delay, take. Run it again to go on after a stop."""
    settings = load(ClientConfig, file=config)
    ready = Ready(yes=yes, dry_run=dry_run, json=json)

    def progress(left: int) -> None:
        if not json:
            typer.echo(f"{left} s until the money can be taken; stopping is safe, run this again later", err=True)

    async def act(channels: Channels, wallet: Wallet, ready: Ready) -> Outcome | None:
        found = channels.find_any(Digest.parse(channel) if channel else _address(proxy))
        standing = await channels.standing(found)
        ready({"action": "withdraw", **_named(found), "state": standing.state, "locked": standing.locked,
               "delay": f"{standing.seconds_left or found.config.withdraw_delay} s"})  # fmt: skip
        return await channels.withdraw(found, wait=wait, progress=progress)

    _act(act, settings, state, network, passphrase_fd, ready)


class Ready:
    """Tells what will be done and asks whether it is meant. Raises `typer.Exit` when it is not, or only shown."""

    def __init__(self, *, yes: bool, dry_run: bool, json: bool) -> None:
        if json and not (yes or dry_run):
            raise typer.BadParameter("--json asks nothing: say --yes or --dry-run")
        self.yes, self.dry_run, self.json = yes, dry_run, json

    def __call__(self, plan: dict[str, Any]) -> None:
        if self.json:
            if self.dry_run:
                print_json({"dry_run": True, "plan": plan})
        else:
            print_rows([(name, str(value)) for name, value in plan.items()])
        if self.dry_run:
            raise typer.Exit(0)
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise ConfigError("nobody is here to confirm: say --yes")
        typer.confirm("do this?", abort=True, err=True)


Act = Callable[[Channels, Wallet, Ready], Awaitable[Outcome | None]]


def _act(
    act: Act,
    settings: ClientConfig,
    state: Path | None,
    network: Path | None,
    descriptor: int | None,
    ready: Ready,
) -> None:
    async def run() -> Outcome | None:
        async with open_channels(
            settings, NetworkDescriptor.load(network), _folder(state), ask=asking(descriptor), change=True
        ) as opened:
            return await act(*opened, ready)

    done = asyncio.run(run())
    if done is None:
        return
    if ready.json:
        print_json(done.as_dict())
    else:
        print_rows([(name.replace("_", " "), str(value)) for name, value in done.as_dict().items() if value])


def _named(channel: PayerChannel) -> dict[str, str]:
    return {"proxy": str(channel.config.receiver), "channel": str(channel.id)}


def _budget(settings: ClientConfig, wallet: Wallet) -> dict[str, int]:
    return {"budget": settings.budget, "budget used": wallet.spent}


def _row(one: Standing) -> tuple[str, ...]:
    row = one.as_dict()
    amounts = (row[name] for name in ("balance", "paid_out", "locked", "agreed", "signed"))
    wait = f"{one.seconds_left} s" if one.seconds_left else ""
    return (row["proxy"], row["state"], *(str(amount) for amount in amounts), wait)


def _address(text: str | None) -> Address | None:
    try:
        return Address.parse(text) if text else None
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an address") from None


def _folder(state: Path | None) -> Path:
    return state or state_home() / "client"
