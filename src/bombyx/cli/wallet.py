# SPDX-License-Identifier: Apache-2.0
"""`bombyx wallet`: the accounts a client pays from. Addresses and balances are shown; keys never are."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bombyx.cli.output import print_json, print_rows
from bombyx.cli.passphrase import FdOption, asking
from bombyx.compose.service import open_ledger
from bombyx.compose.wallet import OWNER, Account, Wallets, fund_account, holdings
from bombyx.config import NetworkDescriptor, state_home
from bombyx.errors import ConfigError

app = typer.Typer(help="Accounts this machine's client pays from.", no_args_is_help=True)
MAX_IMPORT: Final = 65_536  # bytes

NameOption = Annotated[str, typer.Option(help="the account; a client pays from `owner`")]
StateOption = Annotated[Path | None, typer.Option(help="folder of the client's keys and books")]
NetworkOption = Annotated[Path | None, typer.Option(help="network descriptor; default: the network running here")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def new(
    name: NameOption = OWNER, state: StateOption = None, passphrase_fd: FdOption = None, json: JsonOption = False
) -> None:
    """Make an account, encrypted at rest. An existing one is never overwritten."""
    _show(_wallets(state).create(name, asking(passphrase_fd, new=True)), json=json)


@app.command("list")
def list_accounts(state: StateOption = None, json: JsonOption = False) -> None:
    """Print the accounts of the folder and how each is kept."""
    accounts = _wallets(state).accounts()
    if json:
        print_json([one.as_dict() for one in accounts])
    elif accounts:
        print_rows([(one.name, str(one.address), one.kind) for one in accounts])
    else:
        typer.echo("no accounts yet: `bombyx wallet new`")


@app.command()
def show(
    name: NameOption = OWNER, state: StateOption = None, network: NetworkOption = None, json: JsonOption = False
) -> None:
    """Print one account and what the chain shows of it."""
    account = _wallets(state).account(name)
    held = asyncio.run(_on_chain(network, account, None))
    _show(account, held, json=json)


@app.command("import")
def import_account(
    file: Annotated[
        Path, typer.Argument(help="wallet (version 3 JSON) or key (64 hex digits); - reads standard input")
    ],
    name: NameOption = OWNER,
    state: StateOption = None,
    passphrase_fd: FdOption = None,
    json: JsonOption = False,
) -> None:
    """Take in a wallet made elsewhere, or a key, which is encrypted here. The file is left as it is."""
    text = _read(file)
    hexadecimal = not text.lstrip().startswith("{")
    _show(_wallets(state).take_in(name, text, asking(passphrase_fd, new=hexadecimal)), json=json)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="file to write; an existing one is left alone")],
    name: NameOption = OWNER,
    state: StateOption = None,
    passphrase_fd: FdOption = None,
) -> None:
    """Write an encrypted copy that other wallets can open. The key itself is never written in the open."""
    _wallets(state).give_out(name, out, asking(passphrase_fd, new=True))
    typer.echo(f"{out}: encrypted copy of {name}")


@app.command()
def encrypt(
    name: NameOption = OWNER, state: StateOption = None, passphrase_fd: FdOption = None, json: JsonOption = False
) -> None:
    """Encrypt a development key where it lies; the open file is removed."""
    _show(_wallets(state).encrypt(name, asking(passphrase_fd, new=True)), json=json)


@app.command()
def fund(
    amount: Annotated[int, typer.Argument(help="token base units", min=1)],
    name: NameOption = OWNER,
    state: StateOption = None,
    network: NetworkOption = None,
    json: JsonOption = False,
) -> None:
    """Give an account development money. Refused on every chain where money is worth something."""
    account = _wallets(state).account(name)
    held = asyncio.run(_on_chain(network, account, amount))
    _show(account, held, json=json)


async def _on_chain(network: Path | None, account: Account, amount: int | None) -> dict[str, Any]:
    ledger = open_ledger(NetworkDescriptor.load(network))
    try:
        funded = {} if amount is None else {"transaction": await fund_account(ledger, account.address, amount)}
        return await holdings(ledger, account.address) | funded
    finally:
        await ledger.close()


def _wallets(state: Path | None) -> Wallets:
    return Wallets(state or state_home() / "client")


def _show(account: Account, more: dict[str, Any] | None = None, *, json: bool) -> None:
    shown = account.as_dict() | (more or {})
    if json:
        print_json(shown)
    else:
        print_rows([(name.replace("_", " "), str(value)) for name, value in shown.items()])


def _read(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_IMPORT + 1) if str(file) == "-" else file.read_bytes()[: MAX_IMPORT + 1]
        if len(data) > MAX_IMPORT:
            raise ConfigError(f"a wallet has at most {MAX_IMPORT} bytes")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is neither a wallet nor a key in hex") from None
