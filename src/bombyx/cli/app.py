# SPDX-License-Identifier: Apache-2.0
"""The command tree, and the one place where an error becomes words and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version

import typer
from rich.console import Console

from bombyx.cli.audit import audit
from bombyx.cli.calibrate import calibrate
from bombyx.cli.channel import app as channel_app
from bombyx.cli.chat import app as chat_app
from bombyx.cli.conformance import conformance
from bombyx.cli.deploy import deploy
from bombyx.cli.doctor import doctor
from bombyx.cli.enclave import app as enclave_app
from bombyx.cli.evidence import app as evidence_app
from bombyx.cli.image import app as image_app
from bombyx.cli.keys import app as keys_app
from bombyx.cli.model import app as model_app
from bombyx.cli.money import app as money_app
from bombyx.cli.money import watchtower
from bombyx.cli.network import app as network_app
from bombyx.cli.policy import app as policy_app
from bombyx.cli.receipts import app as receipts_app
from bombyx.cli.reference import app as reference_app
from bombyx.cli.roles import client, devnet, proxy, worker
from bombyx.cli.sell import sell
from bombyx.cli.settings import app as config_app
from bombyx.cli.slash import app as slash_app
from bombyx.cli.slash import appeal
from bombyx.cli.stake import app as stake_app
from bombyx.cli.up import up
from bombyx.cli.validator import demo_cheater, validator
from bombyx.cli.verify import verify
from bombyx.cli.wallet import app as wallet_app
from bombyx.errors import BombyxError, LocalError

app = typer.Typer(
    name="bombyx",
    help="Private, verified, paid AI inference: run a network, join one, or use one as an OpenAI endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(up)
app.command()(client)
app.command()(sell)
app.command()(proxy)
app.command()(worker)
app.command()(validator)
app.command(hidden=True)(demo_cheater)
app.command()(devnet)
app.command()(deploy)
app.command()(verify)
app.command()(audit)
app.command()(doctor)
app.command()(calibrate)
app.add_typer(chat_app)
app.add_typer(receipts_app, name="receipts")
app.command()(conformance)
app.add_typer(policy_app, name="policy")
app.add_typer(evidence_app, name="evidence")
app.add_typer(wallet_app, name="wallet")
app.add_typer(channel_app, name="channel")
app.add_typer(network_app, name="network")
app.add_typer(money_app, name="money")
app.command()(watchtower)
app.add_typer(reference_app, name="reference")
app.add_typer(stake_app, name="stake")
app.add_typer(slash_app, name="slash")
app.command()(appeal)
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")
app.add_typer(enclave_app, name="enclave")
app.add_typer(image_app, name="image")
app.add_typer(model_app, name="model")


@app.command()
def version() -> None:
    """Print the version of bombyx."""
    typer.echo(installed_version("bombyx"))


def main() -> None:
    """Entry point of the `bombyx` command."""
    try:
        app()
    except BombyxError as error:
        fault = error.as_dict()["fault"]
        Console(stderr=True, highlight=False).print(f"bombyx: {error} (fault: {fault})", markup=False)
        sys.exit(2 if isinstance(error, LocalError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
