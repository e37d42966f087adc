# SPDX-License-Identifier: Apache-2.0
"""`bombyx stake`, `bombyx slash status`, `bombyx appeal`: told before it is done, asked for, refused in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bombyx.cli import slash, stake
from bombyx.cli.app import app
from bombyx.compose import key_store
from bombyx.compose.stakes import open_staking
from bombyx.config import NetworkDescriptor
from bombyx.errors import ConfigError
from bombyx.ports import OperatorRole, StakeInfo, StakeView
from bombyx.protocol.audit.case import (
    Accusation,
    Ballot,
    Case,
    CaseState,
    Ending,
    Restitution,
    ValidationParameters,
    Verdict,
)
from bombyx.protocol.primitives import Address, Amount, Digest, sha256
from bombyx.protocol.wire.signing import SigningKey

ACCUSER, JUROR = Address(b"a" * 20), Address(b"j" * 20)
NOW = 1_000


class Chain:
    """Stakes, cases and restitution of one operator; keeps what it was told to do."""

    def __init__(self, operator: Address) -> None:
        self.done: list[tuple[str, Any]] = []
        self.stakes = self.validation = self
        self.view = StakeView(
            operator=operator,
            deposited=Amount(60),
            allocated={OperatorRole.WORKER: Amount(30), OperatorRole.PROXY: Amount(0)},
            member=frozenset({OperatorRole.WORKER}),
            slashable=frozenset({OperatorRole.WORKER}),
            withdrawing=Amount(0),
            withdraw_block=0,
            ejected_until=0,
        )
        accusation = Accusation(
            accused=operator,
            model=sha256(b"model"),
            evidence=sha256(b"evidence"),
            uri="http://accuser",
            from_epoch=3,
            to_epoch=4,
            plant=Digest.zero(),
        )
        self.kept = Case(
            id=1,
            state=CaseState.DECIDED,
            accuser=ACCUSER,
            accusation=accusation,
            round=1,
            jury_block=1,
            ballots=(
                Ballot(juror=JUROR, committed=True, verdict=Verdict.GUILTY),
                Ballot(juror=ACCUSER, committed=True, verdict=None),
            ),
            commit_until=NOW - 20,
            reveal_until=NOW - 10,
            appeal_until=NOW + 10,
            veto_until=0,
            outcome=Verdict.GUILTY,
            ending=Ending.OPEN,
            sentence=0,
            opened_at=NOW - 50,
            appellant=Address.zero(),
        )

    async def info(self) -> StakeInfo:
        nothing = Address.zero()
        return StakeInfo(
            manager=nothing,
            registry=nothing,
            token=nothing,
            minimum={OperatorRole.WORKER: Amount(20)},
            deallocation_blocks=9,
        )

    async def parameters(self) -> ValidationParameters:
        zero: dict[str, Any] = dict.fromkeys(ValidationParameters.__dataclass_fields__, 0)
        return ValidationParameters(**{**zero, "bond": 100, "juror_fee": 10, "jury": 3})

    async def stake(self, operator: Address) -> StakeView:
        return dataclasses.replace(self.view, operator=operator)

    async def convictions(self, operator: Address) -> int:
        return 1

    async def credit_of(self, account: Address) -> Amount:
        return Amount(7)

    async def now(self) -> tuple[int, int]:
        return NOW, 5

    async def case(self, number: int) -> Case | None:
        return self.kept if number == 1 else None

    async def cases(self, first: int = 1) -> tuple[Case, ...]:
        return (self.kept,)

    async def restitution(self, sentence: int) -> Restitution | None:
        return Restitution(
            sentence=sentence,
            operator=self.kept.accused,
            slashed=10,
            bounty=1,
            for_clients=7,
            claimed=5,
            claim_until=NOW,
            finished=True,
            owed={},
        )

    def __getattr__(self, name: str) -> Any:
        async def change(*arguments: Any, signer: SigningKey) -> Digest:
            self.done.append((name, arguments))
            return sha256(name.encode())

        return change


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path))
    key = key_store(tmp_path / "worker").create("worker")
    file = tmp_path / "network.json"
    file.write_text(
        NetworkDescriptor(chain_url="http://127.0.0.1:9", proxies=(), policy=file, simulated=None).to_json()
    )
    made = Chain(key.address)

    @asynccontextmanager
    async def opened(_: NetworkDescriptor) -> AsyncIterator[Chain]:
        yield made

    for module in (stake, slash):
        monkeypatch.setattr(module, "open_staking", opened)
    return made


def run(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (("deposit", "40"), ("deposit", (Amount(40),))),
        (("allocate", "12.5"), ("allocate", (OperatorRole.WORKER, 125 * 10**15))),
        (("join",), ("join", (OperatorRole.WORKER,))),
        (("leave",), ("leave", (OperatorRole.WORKER,))),
        (("withdraw", "40"), ("queue_withdrawal", (Amount(40),))),
        (("withdraw",), ("withdraw", ())),
        (("collect",), ("collect", ())),
    ],
)
def test_every_change_is_told_first_and_made_once(chain: Chain, arguments: Any, call: Any) -> None:
    """VAL-16: `--dry-run` does nothing; without a yes, and with nobody to ask, nothing is done either."""
    planned = run("stake", *arguments, "--dry-run")
    assert planned["plan"]["operator"] == str(chain.view.operator)
    assert chain.done == []
    with pytest.raises(ConfigError, match="nobody is here to confirm"):
        CliRunner().invoke(app, ["stake", *arguments], catch_exceptions=False)
    assert chain.done == []
    found = run("stake", *arguments, "--yes")
    assert chain.done == [call]
    assert (found["transaction"], found["deposited"]) == (str(sha256(call[0].encode())), 60)


def test_all_of_it_can_be_allocated_and_none(chain: Chain) -> None:
    """VAL-16: percents become whole parts of 10^18, exactly."""
    run("stake", "allocate", "100", "--yes")
    run("stake", "allocate", "0", "--yes")
    assert [call[1][1] for call in chain.done] == [10**18, 0]


def test_status_needs_no_key_for_another_operator(chain: Chain) -> None:
    """VAL-16: anybody's stake is anybody's to see."""
    mine = run("stake", "status")
    assert (mine["deposited"], mine["allocated"], mine["member_of"]) == (60, {"worker": 30}, ["worker"])
    assert (mine["strikes"], mine["to_collect"]) == (1, 7)
    other = run("stake", "status", str(ACCUSER), "--role", "validator")
    assert other["operator"] == str(ACCUSER)
    plain = CliRunner().invoke(app, ["stake", "status"], catch_exceptions=False).stdout
    assert "worker 30" in plain
    bad = CliRunner().invoke(app, ["stake", "status", "0x12"])
    assert bad.exit_code == 2


def test_cases_are_shown_with_their_juries_and_what_a_slash_paid(chain: Chain) -> None:
    """VAL-6 .. VAL-15: who said what, until when, and where the stake went."""
    (row,) = run("slash", "status")
    assert (row["state"], row["outcome"], row["needed"]) == ("decided", "guilty", 2)
    assert row["jury"] == {str(JUROR): "guilty", str(ACCUSER): "committed"}
    chain.kept = dataclasses.replace(chain.kept, state=CaseState.CLOSED, ending=Ending.SLASHED, sentence=4)
    one = run("slash", "status", "1")
    assert (one["ending"], one["slashed"], one["for_clients"], one["refunds_finished"]) == ("slashed", 10, 7, True)
    plain = CliRunner().invoke(app, ["slash", "status"], catch_exceptions=False).stdout
    assert "slashed" in plain.splitlines()[1]
    with pytest.raises(ConfigError, match="there is no case 9"):
        CliRunner().invoke(app, ["slash", "status", "9"], catch_exceptions=False)


def test_an_appeal_says_what_it_costs_and_is_sent(chain: Chain) -> None:
    """VAL-9: the bond of the bigger jury, told before it is spent."""
    planned = run("appeal", "1", "--dry-run")["plan"]
    assert (planned["bond"], planned["against"], planned["seconds_left"]) == (140, "guilty", 10)
    assert chain.done == []
    assert run("appeal", "1", "--yes")["bond"] == 140
    assert chain.done == [("appeal", (1,))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": CaseState.CLOSED}, "is closed"),
        ({"state": CaseState.VOTING}, "it is voting"),
        ({"outcome": Verdict.ABSTAIN}, "no verdict to appeal"),
        ({"round": 2}, "appealed already"),
        ({"appeal_until": NOW - 3}, "over 3 s ago"),
        ({"reveal_until": NOW + 4}, "another 4 s"),
        ({"outcome": Verdict.INNOCENT}, "only the accuser may appeal case 1, and this is the accused"),
    ],
)
def test_what_cannot_be_appealed_says_why_and_costs_nothing(chain: Chain, changes: Any, words: str) -> None:
    """VAL-9: before a transaction is paid for."""
    chain.kept = dataclasses.replace(chain.kept, **changes)
    with pytest.raises(ConfigError, match=words):
        CliRunner().invoke(app, ["appeal", "1", "--yes"], catch_exceptions=False)
    assert chain.done == []


async def test_a_chain_without_stake_is_said_so(tmp_path: Path) -> None:
    """LEDGER-7: the in-memory chain has none."""
    where = NetworkDescriptor(chain_url="http://127.0.0.1:9", proxies=(), policy=tmp_path, simulated=None)
    with pytest.raises(ConfigError, match="no stake"):
        async with open_staking(where):
            raise AssertionError("there is nothing to open")
