# SPDX-License-Identifier: Apache-2.0
"""`bombyx sell`: answers of the network for whoever pays by x402, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from bombyx import compose
from bombyx.cli.passphrase import FdOption, asking
from bombyx.cli.roles import ChildOption, ConfigOption, JsonOption, NetworkOption, StateOption, VerboseOption, run
from bombyx.config import ClientConfig, NetworkDescriptor, SellConfig, load, state_home


def sell(
    network: NetworkOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on")] = None,
    public_url: Annotated[str | None, typer.Option(help="URL strangers reach it at")] = None,
    margin_bps: Annotated[int | None, typer.Option(help="margin on our cost, in 1/10 000")] = None,
    passphrase_fd: FdOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    child: ChildOption = False,
) -> None:
    """Sell answers to strangers who pay by x402. This process reads what it sells, and says so."""
    given = {"host": host, "port": port, "public_url": public_url, "margin_bps": margin_bps}
    settings, client = load(SellConfig, file=config, overrides=given), load(ClientConfig, file=config)
    where = state or state_home() / "sell"
    run(
        lambda: compose.start_selling(
            settings, client, NetworkDescriptor.load(network), where, ask=asking(passphrase_fd)
        ),
        json=json or child,
        verbose=verbose,
        child=child,
    )
