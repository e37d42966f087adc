# SPDX-License-Identifier: Apache-2.0
"""A juror's part of a certificate: said to nobody too early, and worth nothing anywhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.validator.court import NOBODY, PARAMETERS
from tests.unit.validator.game import Game, playing
from tests.unit.validator.world import MODEL, TinyWorker

from bombyx.errors import MalformedMessage, Unavailable
from bombyx.protocol.audit.case import (
    Accusation,
    Ballot,
    Case,
    CaseState,
    Ending,
    Verdict,
    certificate_digest,
    certificate_message,
)
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.signing import recover


async def voting(game: Game) -> Case:
    """A case whose jury is the first three validators, the first of whom voted GUILTY."""
    now, _ = await game.court.now()
    accused = Accusation(
        accused=next(iter(game.workers)), model=MODEL, evidence=sha256(b"evidence"), uri="http://9", from_epoch=1,
        to_epoch=2, plant=Digest.zero(),
    )  # fmt: skip
    jury = tuple(Ballot(juror=key.address, committed=True, verdict=None) for key in game.keys[:3])
    case = Case(
        id=1, state=CaseState.VOTING, accuser=NOBODY, accusation=accused, round=1, jury_block=1, ballots=jury,
        commit_until=now + 20, reveal_until=now + 40, appeal_until=0, veto_until=0, outcome=None, ending=Ending.OPEN,
        sentence=0, opened_at=now, appellant=NOBODY,
    )  # fmt: skip
    game.court.kept[1] = case
    for validator in game.validators:
        validator.clerk.cases[1] = case
    await game.validators[0].book.keep_vote(1, 1, bytes([Verdict.GUILTY]) + bytes(32))
    return case


async def test_nobody_hears_a_vote_before_the_time_to_commit_is_over() -> None:
    """AUD-56: then it signs exactly this case, round and verdict; who has not voted signs nothing."""
    async with playing([TinyWorker("anybody")], validators=4) as game:
        case = await voting(game)
        first = game.validators[0].clerk
        with pytest.raises(Unavailable, match="AUD-56"):
            await first.certificate(1, 1)
        game.court.kept[1] = case = replace(case, commit_until=(await game.court.now())[0])
        first.cases[1] = case
        signature = await first.certificate(1, 1)
        message = certificate_message(PARAMETERS.chain_id, PARAMETERS.service, 1, 1, Verdict.GUILTY)
        assert recover(certificate_digest(PARAMETERS.service, case.commit_until, message), signature) == (
            game.keys[0].address
        )
        for who, round_ in ((1, 1), (0, 2)):
            with pytest.raises(MalformedMessage):
                await game.validators[who].clerk.certificate(1, round_)
        uncommitted = replace(case.ballots[0], committed=False)
        game.court.kept[1] = replace(case, ballots=(uncommitted, *case.ballots[1:]))
        with pytest.raises(Unavailable):
            await first.certificate(1, 1)


async def test_parts_of_a_certificate_that_are_lies_are_left_out() -> None:
    """AUD-56: another's signature, garbage or silence makes no quorum."""
    async with playing([TinyWorker("anybody")], validators=4) as game:
        case = replace(await voting(game), commit_until=(await game.court.now())[0])
        clerk = game.validators[0].clerk
        own = game.keys[0].sign(clerk._digest(case, Verdict.GUILTY))
        answers = iter([own, b"x" * 65])

        class Lying:
            async def get(self, url: str, most: int) -> bytes:
                return next(answers)

        clerk._pages = Lying()
        assert set(await clerk._gather(case, Verdict.GUILTY)) == {game.keys[0].address}
