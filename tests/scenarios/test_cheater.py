# SPDX-License-Identifier: Apache-2.0
"""A worker that silently swaps its model, in a network of real processes on a real chain node, without a human.

Found by canaries, judged by a jury, appeals, loses before a bigger one, is slashed and ejected; its clients are made
whole; five honest workers under load keep every unit. Nothing here takes part: it watches pages and the chain.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from bombyx.adapters.evm import AddressBook, EvmLedger, EvmStakes, Rpc
from bombyx.adapters.evm.case_history import CaseStep
from bombyx.adapters.processes import Child
from bombyx.compose.auditing import hand_over, kept, rerun
from bombyx.compose.network import RunningNetwork, Trial, running_network
from bombyx.compose.watching import Watcher
from bombyx.ports import OperatorRole, StakeView
from bombyx.protocol.audit.case import Ending, Verdict
from bombyx.protocol.primitives import Address

SECONDS = 900.0
TRIAL = Trial()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Seen:
    """A trial, watched to its end."""

    network: RunningNetwork
    watcher: Watcher
    stakes: dict[str, StakeView]
    slashed_at: int  # ms, of the block

    def steps(self, *names: str) -> list[CaseStep]:
        return [step for step in self.watcher.steps if step.step in names]

    @property
    def cheater(self) -> Address:
        assert self.network.cheater is not None
        return operator(self.network.cheater)


def operator(child: Child) -> Address:
    return Address.parse(child.ready["operator"])


async def _stakes(network: RunningNetwork) -> dict[str, StakeView]:
    assert network.descriptor.contracts is not None
    assert network.cheater is not None
    book = AddressBook.from_dict(network.descriptor.contracts)
    ledger = EvmLedger(Rpc([network.descriptor.chain_url]), book)
    try:
        stakes = EvmStakes(ledger)
        workers = [*network.workers, network.cheater]
        return {child.name: await stakes.stake(operator(child)) for child in workers}
    finally:
        await ledger.close()


async def _block_time(network: RunningNetwork, number: int) -> int:
    rpc = Rpc([network.descriptor.chain_url])
    try:
        return int((await rpc.call("eth_getBlockByNumber", hex(number), False))["timestamp"], 16) * 1_000
    finally:
        await rpc.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Seen]:
    folder = tmp_path_factory.mktemp("cheater")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BOMBYX_HOME", str(folder / "home"))
        environment.setenv("BOMBYX_CLIENT_KEEP_AUDITS", "true")
        async with running_network(
            workers=5, port=0, folder=folder / "net", progress=print, chain="evm", trial=TRIAL
        ) as network:
            watcher = Watcher(network)
            async with asyncio.timeout(SECONDS):
                async for one in watcher.watch(asyncio.Event()):
                    print(f"{one.what:<26} {one.who:<14} {one.detail}")
            (slashed,) = (step for step in watcher.steps if step.step == "slashed")
            yield Seen(network, watcher, await _stakes(network), await _block_time(network, slashed.block))


async def _json(url: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert response.status == 200, (url, response.status)
        return await response.json(content_type=None)


async def test_a_cheater_is_found_judged_twice_slashed_and_ejected(seen: Seen) -> None:
    """AUD-50, AUD-52, AUD-54, AUD-56."""
    case = next(step.facts["case"] for step in seen.steps("appealed") if step.by == seen.cheater)
    of_case = [step for step in seen.watcher.steps if step.facts.get("case") == case]
    opened, drawn = (next(s for s in of_case if s.step == name) for name in ("case opened", "jury drawn"))
    assert opened.who == seen.cheater
    decided = [step.facts for step in of_case if step.step == "round decided"]
    assert [one["round"] for one in decided] == [1, 2]
    assert {one["verdict"] for one in decided} == {Verdict.GUILTY}
    assert drawn.facts["round"] == 1
    voters = {(step.facts["round"], step.by) for step in of_case if step.step == "vote committed"}
    assert len([one for one in voters if one[0] == 1]) >= 2
    assert len([one for one in voters if one[0] == 2]) > len([one for one in voters if one[0] == 1])
    assert opened.by not in {juror for _, juror in voters}
    closed = next(step for step in of_case if step.step == "case closed")
    assert closed.facts["ending"] == Ending.SLASHED
    assert [step.who for step in seen.steps("ejected")] == [seen.cheater]
    slashed = seen.steps("slashed")
    assert [step.who for step in slashed] == [seen.cheater]
    assert slashed[0].facts["amount"] == TRIAL.stake // 10  # a first conviction
    assert OperatorRole.WORKER not in seen.stakes["cheater"].member


async def test_five_honest_workers_under_load_keep_every_unit(seen: Seen) -> None:
    """AUD-54: no case, no strike, all of their stake; and they did serve."""
    honest = {operator(child) for child in seen.network.workers}
    assert not [step for step in seen.steps("case opened", "strike", "slashed", "ejected") if step.who in honest]
    for child in seen.network.workers:
        view = seen.stakes[child.name]
        assert view.allocated[OperatorRole.WORKER] == TRIAL.stake
        assert OperatorRole.WORKER in view.member
    judged = {row["operator"]: row for report in seen.watcher.reports.values() for row in report["workers"]}
    assert sum(row["judged"] for row in judged.values()) > 5
    assert seen.watcher.answers > 2  # each of up to 128 tokens, beside the canaries of six validators


async def test_the_cheaters_clients_are_made_whole(seen: Seen) -> None:
    """CLI-11: every receipt of the cheater's from before the slash is refunded, to the client's own account."""
    receipts = [kept.last.receipt for kept in seen.watcher.bought if kept.last is not None]
    charges = [receipt.charge for receipt in receipts if receipt.finished_at < seen.slashed_at]
    assert len(charges) > 3
    claimed = [step.facts["amount"] for step in seen.steps("refund claimed") if step.who == seen.watcher.payout]
    assert Counter(claimed) == Counter(charges)
    paid = [step.facts["amount"] for step in seen.steps("refund paid") if step.who == seen.watcher.payout]
    assert sum(paid) == sum(claimed)


async def test_nobody_is_sent_to_the_cheater_any_more(seen: Seen) -> None:
    """MKT-13: the proxy lists it no more, and the client goes on with the others."""
    network = await _json(f"{seen.network.proxy_url}/network")
    for _ in range(20):
        if str(seen.cheater) not in {row["operator"] for row in network["workers"]}:
            break
        await asyncio.sleep(1)
        network = await _json(f"{seen.network.proxy_url}/network")
    listed = {row["operator"] for row in network["workers"]}
    assert str(seen.cheater) not in listed
    assert {str(operator(child)) for child in seen.network.workers} <= listed


async def test_a_client_checks_an_answer_itself_and_hands_it_to_a_validator(seen: Seen) -> None:
    """AUD-9, AUD-55, AUD-57: the books are read beside the running client; the proxy carries what it cannot read."""
    rows = (await _json(f"{seen.network.endpoint}/receipts"))["data"]
    whole = [row for row in rows if row.get("outcome") == "complete"]  # a cut answer opens nothing that could be re-run
    cheated = next((row for row in whole if row["operator"] == str(seen.cheater)), None)
    honest = next(row for row in whole if row["operator"] != str(seen.cheater))
    state = Path(seen.network.folder) / "client"
    held = await kept(state, honest["request_id"])
    assert not (await rerun(held, None, context=2_048, threads=1)).failed
    if cheated is not None:
        verdict = await rerun(await kept(state, cheated["request_id"]), None, context=2_048, threads=1)
        assert verdict.failed
    validator = seen.network.validators[0]
    told = await hand_over(held, seen.network.descriptor, Address.parse(validator.ready["address"]))
    assert told["trust_class"] == "simulated"
    for _ in range(60):
        report = await _json(f"{validator.ready['url']}/v1/report")
        ours = [row for row in report["workers"] if row["operator"] == honest["operator"] and row["opted_in"]]
        if ours:
            break
        await asyncio.sleep(1)
    assert [row["opted_in_failed"] for row in ours] == [0]  # of the cheater they may hear by alarms


async def test_no_log_holds_a_word_of_a_prompt_or_an_answer(seen: Seen) -> None:
    """AUD-58: validators' logs and pages name workers, cases and numbers."""
    texts = [path.read_text(errors="replace") for path in (Path(seen.network.folder) / "logs").glob("validator*.log")]
    assert len(texts) == TRIAL.validators
    for text in texts:
        assert "max_tokens" not in text
        assert "messages" not in text
        assert "Traceback" not in text
