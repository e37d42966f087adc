# SPDX-License-Identifier: Apache-2.0
"""Samples of guilt: a validator's own decoy, jurors who do not look, and everything that may go wrong on the way."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.validator.court import PARAMETERS
from tests.unit.validator.game import Game, playing
from tests.unit.validator.world import TinyModel, TinyWorker, key_of

from bombyx.adapters.memory import MemoryStore
from bombyx.compose.cheater import TwoFaced
from bombyx.config import ValidatorConfig, load
from bombyx.errors import ConfigError, PaymentError, Unavailable
from bombyx.ports import EngineChunk, EngineEvent, EngineRequest, Write
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.audit.case import Case, CaseState, Ending, Verdict, plant_commitment
from bombyx.protocol.audit.commitment import request_digest
from bombyx.protocol.primitives import Digest, sha256
from bombyx.roles.validator.book import PLANT, Book, Planted
from bombyx.roles.validator.juror import Opinion
from bombyx.roles.validator.settings import ValidatorSettings

DECOY = TinyWorker("decoy", TinyModel(weights=b"cheap"))
HONEST = TinyWorker("honest")
PLANTER = ValidatorSettings(most_tokens=32, watch_seconds=1.0, decoy=DECOY.operator)
OTHERS = ValidatorSettings(most_tokens=32, watch_seconds=1.0, accuse=False)


def network(**changes: Any) -> Any:
    """A planter, three others who are always its jury, a decoy and an honest worker."""
    return playing([DECOY, HONEST], validators=4, settings=OTHERS, first=PLANTER, **changes)


def lazy(game: Game, *numbers: int, verdict: Verdict = Verdict.INNOCENT) -> None:
    """Validators who vote without running anything."""

    async def unseen(case: Case) -> Opinion:
        return Opinion(verdict=verdict, log10=0.0, why="unseen")

    for number in numbers:
        game.validators[number].juror.judge = unseen  # type: ignore[method-assign]


async def opened(game: Game) -> Case:
    await game.until(lambda: bool(game.court.kept))
    found: Case = game.court.kept[1]
    return found


async def test_a_lazy_juror_gets_its_strike_and_the_decoy_keeps_its_stake() -> None:
    """AUD-59, VAL-13: the planter's canaries convict its decoy; who acquits it unseen gets a strike; all is shown."""
    async with network() as game:
        lazy(game, 3)
        case = await opened(game)
        planted = await game.validators[0].book.plant(case.accusation.evidence)
        assert planted is not None
        wanted = plant_commitment(game.keys[0].address, case.accusation.evidence, Verdict.GUILTY, planted.salt)
        assert (case.accused, case.accusation.plant) == (DECOY.operator, wanted)
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.kept[1].ending is Ending.PLANTED
        assert game.court.struck == [game.keys[3].address]
        await game.until(lambda: game.clock.monotonic() > 170)
        assert not game.court.ejected
        assert len(game.court.kept) == 1, "one sample a block of epochs, and the decoy is never accused in earnest"


async def test_a_planter_that_was_killed_shows_its_sample_when_it_is_back() -> None:
    """AUD-59: verdict and salt were on disk before the chain named the case; another decoy in the settings changes
    nothing about the open one."""
    async with network() as game:
        await opened(game)
        await game.killed(0)
        await game.until(lambda: game.court.kept[1].state is CaseState.DECIDED)
        game.settings[0] = ValidatorSettings(most_tokens=32, watch_seconds=1.0, accuse=False)
        await game.restarted(0)
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.kept[1].ending is Ending.PLANTED


async def test_attack_a_planter_that_stays_away_loses_its_decoys_stake() -> None:
    """VAL-13: or a cheater would call its conviction a sample whenever it likes."""
    async with network() as game:
        await opened(game)
        await game.killed(0)
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.kept[1].ending is Ending.SLASHED
        assert game.court.ejected == [DECOY.operator]


@pytest.mark.parametrize("seconds", [5, 27], ids=["within the appeal's time", "within the veto's time"])
async def test_a_chain_that_answers_late_is_asked_until_the_sample_is_shown(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUD-59: no failure is taken for done, and the planter itself never takes the step that convicts its decoy."""
    async with network() as game:
        reveal, execute = game.court.reveal_plant, game.court.execute
        decided: list[float] = []
        by: list[Any] = []

        async def late(*arguments: Any, signer: Any) -> Any:
            decided.append(game.clock.monotonic())
            if game.clock.monotonic() < decided[0] + seconds:
                raise Unavailable("the chain does not answer", rule="LEDGER-2")
            return await reveal(*arguments, signer=signer)

        async def noted(*arguments: Any, signer: Any) -> Any:
            by.append(signer.address)
            return await execute(*arguments, signer=signer)

        monkeypatch.setattr(game.court, "reveal_plant", late)
        monkeypatch.setattr(game.court, "execute", noted)
        await game.until(lambda: bool(game.court.kept) and game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.kept[1].ending is Ending.PLANTED
        assert game.keys[0].address not in by


async def test_an_opening_that_is_in_doubt_can_still_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUD-59: the chain took the accusation and said nothing; one evidence has one salt, whoever asks again."""
    async with network() as game:
        open_case = game.court.open_case
        commitments: list[Digest] = []

        async def unheard(accusation: Any, *, signer: Any) -> int:
            commitments.append(accusation.plant)
            if len(commitments) == 1:
                raise Unavailable("not mined in time", rule="LEDGER-6")
            await open_case(accusation, signer=signer)
            raise Unavailable("not mined in time", rule="LEDGER-6")

        monkeypatch.setattr(game.court, "open_case", unheard)
        await game.until(lambda: bool(commitments))
        await game.restarted(0)
        (standing,) = [one for one in await game.validators[0].book.standings() if one.operator == DECOY.operator]
        monkeypatch.setattr("bombyx.roles.validator.accuser.SPREAD_SECONDS", 0.0)
        last = await game.validators[0].accuser.last_epoch()
        again = await game.validators[0].accuser.evidence(DECOY.operator, standing.model, last)
        assert again is not None
        kept = await game.validators[0].book.plant(sha256(again.encode()))
        assert kept is not None
        await game.until(lambda: bool(game.court.kept) and game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.kept[1].ending is Ending.PLANTED


async def test_one_evidence_has_one_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUD-59: a second try at the same accusation must not make the first one impossible to show."""
    async with network() as game:
        await opened(game)
        validator = game.validators[0]
        (standing,) = [one for one in await validator.book.standings() if one.operator == DECOY.operator]
        first = game.court.kept.pop(1)  # unconfirmed: the chain does not tell of it yet
        last = first.accusation.to_epoch
        monkeypatch.setattr("bombyx.roles.validator.accuser.SPREAD_SECONDS", 0.0)
        monkeypatch.setattr(validator.accuser, "last_epoch", _always(last))
        playing_on = asyncio.create_task(validator.plants.guilty(standing))
        await game.until(playing_on.done)
        second = game.court.kept[1]
        assert second.accusation == first.accusation


@pytest.mark.parametrize(
    ("said", "ending"),
    [(Verdict.INNOCENT, Ending.ACQUITTED), (Verdict.ABSTAIN, Ending.VOID)],
    ids=["acquit", "abstain"],
)
async def test_a_jury_that_says_otherwise_leaves_nothing_to_show(said: Verdict, ending: Ending) -> None:
    """VAL-13: the majority must agree with a sample; the decoy is safe then, and nothing is sent in vain."""
    async with network() as game:
        tried: list[int] = []
        game.court.reveal_plant = _refusing(tried)
        lazy(game, 1, 2, 3, verdict=said)
        await opened(game)
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.kept[1].ending is ending
        assert not tried
        assert not game.court.ejected


async def test_a_bigger_jury_that_acquits_an_appealing_decoy_leaves_nothing_to_show() -> None:
    """VAL-9, VAL-13: what counts is the standing round's outcome."""
    case_ = Case(
        id=1, state=CaseState.DECIDED, accuser=key_of("validator 0").address, accusation=None, round=2,  # type: ignore[arg-type]
        jury_block=0, ballots=(), commit_until=0, reveal_until=0, appeal_until=0, veto_until=0,
        outcome=Verdict.INNOCENT, ending=Ending.OPEN, sentence=0, opened_at=0, appellant=DECOY.operator,
    )  # fmt: skip
    async with network() as game:
        found = await opened(game)
        due = game.validators[0].plants.due
        now = found.opened_at + 1_000
        for state in CaseState:
            for outcome in (*Verdict, None):
                case = _with(case_, found, state=state, outcome=outcome)
                showable = state in (CaseState.DECIDED, CaseState.QUEUED) and outcome is Verdict.GUILTY
                assert (await due(case, now) is not None) is showable
        decided = _with(case_, found, state=CaseState.DECIDED, outcome=Verdict.GUILTY)
        assert await due(_with(decided, found, reveal_until=now + 1), now) is None
        assert await due(_with(decided, found, accuser=HONEST.operator), now) is None
        stranger = _with(decided, found, accusation=dataclasses.replace(found.accusation, plant=Digest.zero()))
        assert await due(stranger, now) is None, "shown already, or in earnest"


async def test_a_worker_that_is_not_the_decoy_is_accused_in_earnest() -> None:
    """AUD-59: a sample of guilt names nobody else's worker; what is committed against others opens to nothing."""
    cheater = TinyWorker("cheater", TinyModel(weights=b"cheap"))
    async with playing([cheater, HONEST], validators=4, settings=OTHERS, first=PLANTER) as game:
        case = await opened(game)
        assert case.accused == cheater.operator
        assert await game.validators[0].book.plant(case.accusation.evidence) is None
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        assert game.court.ejected == [cheater.operator]


async def test_rows_that_were_written_when_every_sample_was_of_innocence_still_open() -> None:
    """AUD-59: a validator that is upgraded while a case is open."""
    store = MemoryStore()
    await store.write([Write(PLANT, sha256(b"old"), sha256(b"salt"))])
    book = Book(store)
    assert await book.plant(sha256(b"old")) == Planted(verdict=Verdict.INNOCENT, salt=Digest(sha256(b"salt")))
    for verdict in (Verdict.GUILTY, Verdict.INNOCENT):
        planted = Planted(verdict=verdict, salt=sha256(b"new"))
        await book.keep_plant(sha256(b"new"), planted)
        assert await book.plant(sha256(b"new")) == planted


async def test_a_juror_who_reads_the_accusers_page_learns_nothing_of_what_it_found() -> None:
    """AUD-56, AUD-58: no figures unless the operator asks for them, and no opinion before its round is over: else a
    juror could tell samples from accusations, or copy, without looking."""
    async with network() as game:
        await game.until(lambda: bool(game.court.kept) and game.court.kept[1].state is CaseState.VOTING)
        await game.until(lambda: any(validator.juror.opinions for validator in game.validators))
        while game.court.kept[1].state is CaseState.VOTING:
            for validator in game.validators:
                report = await validator.report()
                assert not report["opinions"]
                assert not any(name in row for row in report["workers"] for name in ("log10_peak", "judged", "failed"))
                assert b"log10" not in validator._metrics()
                assert b"failed" not in validator._metrics()
            await game.clock.turn()
        await game.until(lambda: game.court.kept[1].state is CaseState.CLOSED)
        await game.until(lambda: game.validators[1].clerk.cases[1].state is CaseState.CLOSED)
        assert (await game.validators[1].report())["opinions"]["1"]["verdict"] == "GUILTY"


def test_a_decoy_is_an_address() -> None:
    """AUD-59: a typing mistake is told at the start, not when stake depends on it."""
    assert load(ValidatorConfig, overrides={"decoy": str(DECOY.operator)}).decoy == str(DECOY.operator)
    with pytest.raises(ConfigError, match="decoy"):
        load(ValidatorConfig, overrides={"decoy": "0x12"})


@dataclasses.dataclass
class Says:
    """An engine of one word."""

    word: bytes

    async def models(self) -> tuple[str, ...]:
        return ("m",)

    async def run(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        yield EngineChunk(data=self.word)

    async def close(self) -> None:
        pass


async def test_a_decoy_answers_wrongly_to_its_own_validators_canaries_alone(tmp_path: Path) -> None:
    """AUD-59: what is listed before the canaries leave is what jurors will make again; users get the good model."""
    listed = tmp_path / "decoy.txt"
    engine = TwoFaced(Says(b"good"), Says(b"cheap"), listed)

    async def said(body: bytes) -> bytes:
        request = EngineRequest(
            path="/v1/chat/completions", body=body, stream=False, cache_salt=bytes(32), max_output=8,
            deadline_seconds=1, audit=None,
        )  # fmt: skip
        (chunk,) = [event async for event in engine.run(request)]
        assert isinstance(chunk, EngineChunk)
        return chunk.data

    assert await said(b"x") == b"good"
    async with network() as game:
        validator = game.validators[0]
        told: list[Digest] = []
        validator.plants.on_asking = told.extend
        await game.until(lambda: bool(told))
        epoch = (await validator.book.epochs())[-1]
        plan = await validator.book.plan(epoch)
        assert plan is not None
        made = {c.index: compose(c.seed, c.name, c.most) for c in plan.canaries if DECOY.operator in c.candidates}
        assert {request_digest(one.path, one.body) for one in made.values()} <= set(told)
        assert game.clock.now().seconds < PARAMETERS.epoch_start(epoch), "before the first of them leaves"
    listed.write_text("\n".join(digest.hex() for digest in told))
    chats = [one for one in made.values() if one.path == "/v1/chat/completions"]
    assert [await said(one.body) for one in chats] == [b"cheap"] * len(chats)
    assert await said(b"a user's question") == b"good"


def _always(value: int) -> Any:
    async def answer() -> int:
        return value

    return answer


def _refusing(tried: list[int]) -> Any:
    async def refuse(case: int, *_: Any, **__: Any) -> Digest:
        tried.append(case)
        raise PaymentError("OutsidePhase", rule="LEDGER-1")

    return refuse


def _with(plain: Case, found: Case, **changes: Any) -> Case:
    return dataclasses.replace(plain, **{"accusation": found.accusation, **changes})
