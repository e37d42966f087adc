# SPDX-License-Identifier: Apache-2.0
"""The whole game in one process: canaries, evidence, juries, appeal, sentence. The chain is `court.py`'s."""

from __future__ import annotations

import asyncio
import contextlib

from tests.unit.validator.game import appeals, playing
from tests.unit.validator.world import TinyModel, TinyWorker

from bombyx.protocol.audit.case import Ending, Verdict
from bombyx.protocol.wire.cases import CaseEvidence
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
