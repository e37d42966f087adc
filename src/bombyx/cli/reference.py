# SPDX-License-Identifier: Apache-2.0
"""`bombyx reference`: a publisher's own list of good images and models on chain, and a look at whether several agree.

Always: a change is told before it is made and asked for, unless `--yes`; `--dry-run` tells and does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.channel import DryOption, JsonOption, NetworkOption, Ready, YesOption
from bombyx.cli.files import named_policy, read_bytes
from bombyx.cli.output import print_json, print_rows
from bombyx.compose import key_store
from bombyx.compose.service import open_ledger
from bombyx.config import NetworkDescriptor
from bombyx.ports import Ledger, ReferenceKind
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.signing import SigningKey

app = typer.Typer(help="Reference Values on chain: publish, revoke, and ask who agrees.", no_args_is_help=True)


class Kind(StrEnum):
    """What is vouched for."""

    IMAGE = "image"
    MODEL = "model"

    @property
    def number(self) -> ReferenceKind:
        return ReferenceKind.MEASUREMENT if self is Kind.IMAGE else ReferenceKind.MODEL


ReferenceArgument = Annotated[str, typer.Argument(help="64 hex digits, or the app-compose or manifest file itself")]
KindOption = Annotated[Kind, typer.Option(help="what it is")]
KeyOption = Annotated[str, typer.Option(help="the publisher's key, by its name in `bombyx keys list`")]


@app.command()
def propose(
    reference: ReferenceArgument,
    key: KeyOption = "publisher",
    kind: KindOption = Kind.IMAGE,
    uri: Annotated[str, typer.Option(help="where others find how to build and check it")] = "",
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Add it to your own list. It is good once your delay has passed."""
    found = _digest(reference)
    plan = {"action": "propose", "kind": str(kind), "reference": str(found), "uri": uri}

    async def act(ledger: Ledger, signer: SigningKey) -> Digest:
        return await ledger.propose_reference(kind.number, found, uri, signer=signer)

    _change(act, plan, key, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def revoke(
    reference: ReferenceArgument,
    key: KeyOption = "publisher",
    kind: KindOption = Kind.IMAGE,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Take it out of your own list, at once."""
    found = _digest(reference)
    plan = {"action": "revoke", "kind": str(kind), "reference": str(found)}

    async def act(ledger: Ledger, signer: SigningKey) -> Digest:
        return await ledger.revoke_reference(kind.number, found, signer=signer)

    _change(act, plan, key, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def delay(
    seconds: Annotated[int, typer.Argument(help="at most a year", min=0)],
    key: KeyOption = "publisher",
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Say how long your additions wait in the open from now on. A shorter delay counts after the one it replaces."""

    async def act(ledger: Ledger, signer: SigningKey) -> Digest:
        return await ledger.set_publisher_delay(seconds, signer=signer)

    _change(act, {"action": "delay", "seconds": seconds}, key, network, Ready(yes=yes, dry_run=dry_run, json=json))


@app.command()
def check(
    reference: ReferenceArgument,
    kind: KindOption = Kind.IMAGE,
    publisher: Annotated[list[str] | None, typer.Option(help="whom to ask; may repeat; default: the policy's")] = None,
    agree: Annotated[int | None, typer.Option(help="how many must agree; default: the policy's", min=1)] = None,
    policy: Annotated[str | None, typer.Option(help="TOML file or preset; default: the network's policy")] = None,
    network: NetworkOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Ask the chain who holds it good now. Exit code 1: not enough do."""
    where = NetworkDescriptor.load(network)
    trusted = named_policy(policy or where.policy)
    publishers = tuple(dict.fromkeys(_address(one) for one in publisher or ())) or trusted.publishers
    quorum = agree or trusted.publishers_agree
    found = _digest(reference)
    agreed, votes = asyncio.run(_ask(where, publishers, quorum, kind.number, found))
    if json:
        print_json(
            {"reference": str(found), "kind": str(kind), "agreed": agreed, "needed": quorum,
             "publishers": {str(one): vote for one, vote in votes.items()}}
        )  # fmt: skip
    else:
        print_rows([(str(one), "good" if vote else "not in its list, or not yet") for one, vote in votes.items()])
        count = sum(votes.values())
        typer.echo(f"{'agreed' if agreed else 'NOT agreed'}: {count} of {len(votes)}, {quorum} needed")
    raise typer.Exit(0 if agreed else 1)


async def _ask(
    where: NetworkDescriptor, publishers: tuple[Address, ...], quorum: int, kind: int, reference: Digest
) -> tuple[bool, dict[Address, bool]]:
    ledger = open_ledger(where)
    try:
        votes = {one: await ledger.references_agreed((one,), 1, kind, reference) for one in publishers}
        return await ledger.references_agreed(publishers, quorum, kind, reference), votes
    finally:
        await ledger.close()


def _change(
    act: Callable[[Ledger, SigningKey], Awaitable[Digest]],
    plan: dict[str, Any],
    key: str,
    network: Path | None,
    ready: Ready,
) -> None:
    where, signer = NetworkDescriptor.load(network), key_store().load(key)
    plan = {**plan, "publisher": str(signer.address)}
    ready(plan)

    async def run() -> Digest:
        ledger = open_ledger(where)
        try:
            return await act(ledger, signer)
        finally:
            await ledger.close()

    done = {**plan, "transaction": str(asyncio.run(run()))}
    if ready.json:
        print_json(done)
    else:
        print_rows([("transaction", done["transaction"])])


def _digest(text: str) -> Digest:
    """Both kinds are the SHA-256 of the file's bytes."""
    try:
        return Digest.parse(text)
    except ValueError:
        return sha256(read_bytes(Path(text)))


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an address") from None
