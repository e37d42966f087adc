# SPDX-License-Identifier: Apache-2.0
"""The whole game in one process: canaries, evidence, juries, appeal, sentence. The chain is `court.py`'s."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.validator.game import Game, appeals, playing
from tests.unit.validator.world import TinyModel, TinyWorker

from bombyx.protocol.audit.case import Case, CaseState, Ending, Verdict
from bombyx.protocol.wire.cases import CaseEvidence
from bombyx.roles.validator.juror import Opinion
from bombyx.roles.validator.settings import ValidatorSettings

HONEST = [f"honest {number}" for number in range(5)]


async def test_a_cheater_is_found_judged_appeals_loses_and_is_ejected_while_five_honest_workers_stay() -> None:
    """AUD-54: the evidence of one validator convinces jurors who re-run it; two rounds agree; honest workers have no
    case at all."""
    workers = [TinyWorker(name) for name in HONEST] + [TinyWorker("cheater", TinyModel(weights=b"cheap"))]
    async with playing(workers) as game:
        reflex = asyncio.create_task(appeals(game, "cheater"))
        await game.until(lambda: game.court.paid > 0)
        reflex.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reflex
        cheater = workers[-1].operator
        assert set(game.court.ejected) == {cheater}
        slashed = [case for case in game.court.kept.values() if case.ending is Ending.SLASHED]
        assert len(slashed) == 1
        assert (slashed[0].round, slashed[0].outcome, slashed[0].appellant) == (2, Verdict.GUILTY, cheater)
        assert len(slashed[0].ballots) == 5  # everybody but the accuser
        assert {case.accused for case in game.court.kept.values()} == {cheater}
        for validator in game.validators:
            report = await validator.report()
            judged = {row["operator"]: row for row in report["workers"] if row["judged"]}
            assert all(row["failed"] == 0 for who, row in judged.items() if who != str(cheater))


async def test_a_proxy_that_drops_canaries_costs_availability_and_convicts_nobody() -> None:
    """AUD-53: what is lost on the way moves availability, never evidence."""
    workers = [TinyWorker("reached"), TinyWorker("unreached", lost=True)]
    async with playing(workers, validators=4) as game:
        await game.until(lambda: game.clock.monotonic() > 100)
        assert not game.court.kept
        rows = [row for v in game.validators for row in (await v.report())["workers"]]
        unreached = [row for row in rows if row["operator"] == str(workers[1].operator)]
        assert unreached
        assert all(row["availability"] == 0 and row["log10_peak"] == 0 for row in unreached)


async def test_a_validator_that_restarts_goes_on_with_what_it_had_written_down() -> None:
    """AUD-53: standings, plans and votes are in the store before they are acted on."""
    workers = [TinyWorker("steady")]
    async with playing(workers, validators=3) as game:
        first = game.validators[0]
        await game.until(lambda: any(s.judged >= 4 for s in first._standings.values()))
        before = await first.report()
        await first.stop()
        await first.start()
        after = await first.report()
        assert after["workers"] == before["workers"]


async def test_a_sample_with_a_known_answer_looks_like_a_case_and_is_shown_afterwards() -> None:
    """AUD-54, VAL-13: jurors who look acquit; the planter then shows that it knew, and nobody is hurt."""
    settings = ValidatorSettings(most_tokens=32, watch_seconds=1.0, plants=1_000)
    async with playing([TinyWorker("honest"), TinyWorker("other")], validators=5, settings=settings) as game:
        await game.until(lambda: bool(game.court.planted))
        case = game.court.kept[game.court.planted[0]]
        assert case.outcome is Verdict.INNOCENT
        await game.until(lambda: game.court.kept[case.id].ending is Ending.ACQUITTED)
        assert not game.court.ejected


async def test_evidence_larger_than_jurors_read_leaves_out_answers_that_passed() -> None:
    """AUD-54: a cheat that answers honestly most of the time, for long: its validator still has a case, and jurors who
    read no more than the limit convict. What does not fit even then is said and not opened, for it would lose."""
    sly = TinyWorker("sly", TinyModel(weights=b"cheap"))
    settings = ValidatorSettings(most_tokens=32, watch_seconds=1.0, figures=True, canaries_new=32, single_bps=10_000)
    watching = ValidatorSettings(most_tokens=32, watch_seconds=1.0, accuse=False)
    async with playing([sly, TinyWorker("other")], validators=4, settings=watching, first=settings) as game:
        accuser, good = game.validators[0].accuser, TinyModel(blur=0.05)
        accuser.most = 0
        served = game.workers[sly.operator]
        await game.until(lambda: sum(s.judged for s in game.validators[0]._standings.values()) >= 40)
        served.model = good
        await game.until(lambda: sum(s.judged for s in game.validators[0]._standings.values()) >= 90)
        assert not game.court.kept
        (standing,) = [one for one in await game.validators[0].book.standings() if one.operator == sly.operator]
        last = await accuser.last_epoch()
        accuser.most = CaseEvidence.MAX_SIZE
        whole = await accuser.evidence(sly.operator, standing.model, last)
        assert whole is not None
        accuser.most = len(whole.encode()) - 1
        less = await accuser.evidence(sly.operator, standing.model, last)
        assert less is not None
        assert sum(len(e.packages) for e in less.epochs) < sum(len(e.packages) for e in whole.epochs)
        assert [e.canaries for e in less.epochs] == [e.canaries for e in whole.epochs]
        await game.until(lambda: bool(game.court.kept) and game.court.kept[1].outcome is not None)
        assert game.court.kept[1].outcome is Verdict.GUILTY


async def _first_jury(game: Game, verdict: Verdict) -> None:
    """Whoever sits on the first jury of the first case says this unseen; what it says later it looked at."""
    for validator in game.validators:
        looks = validator.juror.judge

        async def judge(case: Case, looks: Any = looks, me: Any = validator) -> Opinion:
            if case.round == 1 and case.accuser != me._key.address:
                return Opinion(verdict=verdict, log10=0.0, why="unseen")
            opinion: Opinion = await looks(case)
            return opinion

        validator.juror.judge = judge  # type: ignore[method-assign]
    await game.until(lambda: bool(game.court.kept) and game.court.kept[1].outcome is not None)
    for validator in game.validators:
        validator.juror.opinions.clear()


async def test_a_jury_that_acquits_unseen_is_overruled_by_a_bigger_one() -> None:
    """VAL-9: the accuser re-runs its evidence and appeals; three who were bought are not enough."""
    workers = [TinyWorker("honest"), TinyWorker("cheater", TinyModel(weights=b"cheap"))]
    watching = ValidatorSettings(most_tokens=32, watch_seconds=1.0, accuse=False)
    async with playing(workers, settings=watching, first=replace(watching, accuse=True)) as game:
        await _first_jury(game, Verdict.INNOCENT)
        assert game.court.kept[1].outcome is Verdict.INNOCENT
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        case = game.court.kept[1]
        assert (case.round, case.ending, case.appellant) == (2, Ending.SLASHED, game.keys[0].address)


@pytest.mark.parametrize("appeal", [True, False])
async def test_an_accuser_whose_second_look_says_otherwise_or_who_would_not_leaves_it(appeal: bool) -> None:
    """VAL-9: a faulty machine does not pay a second bond; whoever does not want to appeal does not."""
    workers = [TinyWorker("honest"), TinyWorker("cheater", TinyModel(weights=b"cheap"))]
    watching = ValidatorSettings(most_tokens=32, watch_seconds=1.0, accuse=False)
    async with playing(workers, settings=watching, first=replace(watching, accuse=True, appeal=appeal)) as game:

        async def mended(case: Case) -> Opinion:
            return Opinion(verdict=Verdict.INNOCENT, log10=0.0, why="re-run on a machine that was mended")

        await _first_jury(game, Verdict.INNOCENT)
        if appeal:
            game.validators[0].juror.judge = mended  # type: ignore[method-assign]
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        assert (game.court.kept[1].round, game.court.kept[1].ending) == (1, Ending.ACQUITTED)
