# SPDX-License-Identifier: Apache-2.0
"""A validator tests its jurors with a decoy of its own, among real processes on a real chain node, without a human.

The decoy answers wrongly to its validator's canaries alone, so the other validators, who accuse whom they find, find
nothing; the case it is in ends as a sample, and nobody loses stake.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bombyx.adapters.evm import AddressBook, EvmLedger, EvmStakes, EvmValidation, Rpc
from bombyx.adapters.processes import Child, start_child, stop_children
from bombyx.compose.network import READY_SECONDS, Trial, running_network
from bombyx.ports import OperatorRole
from bombyx.protocol.audit.case import Case, CaseState, Ending, Verdict
from bombyx.protocol.primitives import Address

SECONDS = 600.0
STAKE = 60_000_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 200)]


async def _report(child: Child) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"{child.ready['url']}/v1/report") as response:
        told: dict[str, Any] = await response.json(content_type=None)
        return told


async def _closed(court: EvmValidation) -> Case:
    async with asyncio.timeout(SECONDS):
        while True:
            cases = await court.cases()
            if cases and cases[0].state is CaseState.CLOSED:
                return cases[0]
            await asyncio.sleep(2)


async def test_a_decoy_tests_the_jurors_and_keeps_its_stake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUD-59: planned, listed for the decoy, convicted by its own validator's canaries, opened, judged, shown."""
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path / "home"))
    state, children = tmp_path / "net", list[Child]()

    async def child(name: str, role: str, *arguments: str) -> Child:
        where = ("--network", str(state / "network.json"), "--state", str(state / name))
        made = await start_child(
            name, [role, *where, *arguments, "--child"], log=state / "logs" / f"{name}.log", ready_within=READY_SECONDS
        )
        children.append(made)
        return made

    async with running_network(workers=1, port=0, folder=state, progress=print, chain="evm") as network:
        try:
            listed = str(state / "planter" / "decoy.txt")
            decoy = await child("decoy", "demo-cheater", "--stake", str(STAKE), "--no-appeal", "--only", listed)
            who = Address.parse(decoy.ready["operator"])
            often = ("--canaries", "3", "--canaries-new", "3", "--most-canaries", "6", "--most-tokens", "24")
            seen = ("--port", "0", "--figures", "--verbose")
            planter = await child("planter", "validator", "--decoy", str(who), *often, *seen)
            others = [await child(f"juror-{number}", "validator", *Trial().asking) for number in range(3)]
            assert network.descriptor.contracts is not None
            book = AddressBook.from_dict(network.descriptor.contracts)
            ledger = EvmLedger(Rpc([network.descriptor.chain_url]), book)
            try:
                court, stakes = EvmValidation(ledger), EvmStakes(ledger)
                case = await _closed(court)
                assert (case.accused, case.ending, case.outcome) == (who, Ending.PLANTED, Verdict.GUILTY)
                assert str(case.accuser) == planter.ready["address"]
                assert {str(juror) for juror in case.jury} == {other.ready["address"] for other in others}
                view = await stakes.stake(who)
                assert int(view.deposited) == STAKE
                assert view.member == {OperatorRole.WORKER}
                assert await court.convictions(who) == 0
                assert len(await court.cases()) == 1
            finally:
                await ledger.close()
            found = [{row["operator"]: row for row in (await _report(one))["workers"]} for one in (planter, *others)]
            mine, *theirs = [rows[str(who)] for rows in found if str(who) in rows]
            assert mine["failed"] >= 3
            assert sum(row["judged"] for row in theirs) > 0
            assert not any(row["failed"] for row in theirs), "it answers nobody else wrongly"
        finally:
            await stop_children(children[::-1])
