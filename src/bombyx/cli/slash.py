# SPDX-License-Identifier: Apache-2.0
"""`bombyx slash status`: cases against operators and what came of them; `bombyx appeal`: ask a bigger jury."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from bombyx.cli.channel import DryOption, JsonOption, NetworkOption, Ready, StateOption, YesOption
from bombyx.cli.output import print_json, print_rows
from bombyx.cli.stake import RoleOption
from bombyx.compose.stakes import Staking, open_staking, operator_key
from bombyx.config import NetworkDescriptor
from bombyx.errors import ConfigError
from bombyx.ports import OperatorRole
from bombyx.protocol.audit.case import Case, CaseState, Verdict
from bombyx.protocol.primitives import Digest

app = typer.Typer(help="Cases against operators, juries and slashes.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `status` a command of its own, however many there are."""


@app.command()
def status(
    case: Annotated[int | None, typer.Argument(help="number of a case; default: all of them", min=1)] = None,
    network: NetworkOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print cases: who accuses whom, how the jury stands, and what a slash paid to whom."""

    async def look() -> list[dict[str, Any]]:
        async with open_staking(NetworkDescriptor.load(network)) as staking:
            if case is None:
                return [shown(one) for one in await staking.validation.cases()]
            found = await staking.validation.case(case)
            if found is None:
                raise ConfigError(f"there is no case {case}")
            return [shown(found) | await _paid(staking, found)]

    rows = asyncio.run(look())
    if json:
        print_json(rows if case is None else rows[0])
    elif case is None:
        names = ("case", "accused", "state", "round", "outcome", "ending")
        print_rows([names, *(tuple(str(row[name]) for name in names) for row in rows)])
    else:
        print_rows([(name.replace("_", " "), _told(value)) for name, value in rows[0].items()])


def appeal(
    case: Annotated[int, typer.Argument(help="number of the case", min=1)],
    role: RoleOption = OperatorRole.WORKER,
    state: StateOption = None,
    network: NetworkOption = None,
    yes: YesOption = False,
    dry_run: DryOption = False,
    json: JsonOption = False,
) -> None:
    """Appeal a verdict against this machine's operator to a bigger jury. Costs a bond, lost if that jury agrees."""
    where, key = NetworkDescriptor.load(network), operator_key(role, state)
    ready = Ready(yes=yes, dry_run=dry_run, json=json)

    async def run() -> tuple[dict[str, Any], Digest]:
        async with open_staking(where) as staking:
            found = await staking.validation.case(case)
            if found is None:
                raise ConfigError(f"there is no case {case}")
            now, _ = await staking.validation.now()
            if not found.may_appeal(key.address, now):
                raise ConfigError(_why_not(found, key.address == found.accused, now))
            terms = await staking.validation.parameters()
            plan = {"action": "appeal", "case": case, "against": str(found.outcome and found.outcome.name.lower())}
            plan |= {"operator": str(key.address), "bond": terms.appeal_bond, "seconds_left": found.appeal_until - now}
            ready(plan)
            return plan, await staking.validation.appeal(case, signer=key)

    plan, done = asyncio.run(run())
    if json:
        print_json({**plan, "transaction": str(done)})
    else:
        print_rows([("transaction", str(done))])


def shown(case: Case) -> dict[str, Any]:
    """A case as plain data."""
    return {
        "case": case.id,
        "accused": str(case.accused),
        "accuser": str(case.accuser),
        "model": str(case.accusation.model),
        "epochs": [case.accusation.from_epoch, case.accusation.to_epoch],
        "evidence": str(case.accusation.evidence),
        "evidence_at": case.accusation.uri,
        "state": case.state.name.lower(),
        "round": case.round,
        "outcome": case.outcome.name.lower() if case.outcome else "",
        "ending": case.ending.name.lower() if case.state is CaseState.CLOSED else "",
        "jury": {str(one.juror): _ballot(one.committed, one.verdict) for one in case.ballots},
        "needed": case.quorum if case.ballots else 0,
        "commit_until": case.commit_until,
        "reveal_until": case.reveal_until,
        "appeal_until": case.appeal_until,
        "veto_until": case.veto_until,
        "sentence": case.sentence,
    }


def _ballot(committed: bool, verdict: Verdict | None) -> str:
    if verdict is not None:
        return verdict.name.lower()
    return "committed" if committed else "nothing yet"


async def _paid(staking: Staking, case: Case) -> dict[str, Any]:
    """What a slash became of."""
    found = await staking.validation.restitution(case.sentence) if case.sentence else None
    if found is None:
        return {}
    return {
        "slashed": found.slashed,
        "bounty": found.bounty,
        "for_clients": found.for_clients,
        "claimed": found.claimed,
        "claims_until": found.claim_until,
        "refunds_finished": found.finished,
    }


def _why_not(case: Case, accused: bool, now: int) -> str:
    name = f"case {case.id}"
    if case.state is CaseState.CLOSED:
        return f"{name} is closed"
    if case.state is not CaseState.DECIDED or case.outcome is Verdict.ABSTAIN or case.outcome is None:
        return f"{name} has no verdict to appeal now: it is {case.state.name.lower()}"
    if case.round != 1:
        return f"{name} has been appealed already"
    if now >= case.appeal_until:
        return f"the time to appeal {name} was over {now - case.appeal_until} s ago"
    if now < case.reveal_until:
        return f"{name}: jurors may reveal for another {case.reveal_until - now} s; appeal then"
    loser = "the accused" if case.outcome is Verdict.GUILTY else "the accuser"
    return f"only {loser} may appeal {name}" + (", and this is the accused" if accused else "")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{who[:10]} {said}" for who, said in value.items()) or "none"
    return " .. ".join(str(one) for one in value) if isinstance(value, list) else str(value)
