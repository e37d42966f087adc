# SPDX-License-Identifier: Apache-2.0
"""What is asked, and how it is fixed beforehand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.validator.game import playing
from tests.unit.validator.world import MANIFEST, TinyModel, TinyWorker
from tests.unit.validator.world import MODEL as WORLD

from bombyx.errors import MalformedMessage
from bombyx.protocol.audit.asked import read_sampling, uncovered
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.canary import CHAT, compose
from bombyx.protocol.audit.case import EpochRoot
from bombyx.protocol.audit.plan import Target, make_plan, plan_root
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.roles.validator.asking import OnOffer
from bombyx.roles.validator.settings import ValidatorSettings
from bombyx.roles.validator.standing import Standing

MODEL = sha256(b"model")
WORKERS = tuple(Address(bytes([n]) * 20) for n in range(1, 7))


def targets(canaries: int = 4) -> list[Target]:
    return [
        Target(operator=w, model=MODEL, name="tiny", canaries=canaries, most=64, others=tuple(set(WORKERS) - {w}))
        for w in WORKERS
    ]


@given(st.binary(min_size=32, max_size=32), st.integers(8, 1024))
def test_a_canary_follows_from_its_seed_and_every_auditable_engine_can_rerun_it(seed: bytes, most: int) -> None:
    """AUD-51: jurors make the same bytes again; nothing in them is beyond what AUD-3 covers."""
    made = compose(Digest(seed), "tiny", most)
    assert made == compose(Digest(seed), "tiny", most)
    body = json.loads(made.body)
    assert uncovered(made.path, body) == ""
    assert 0 < body["max_tokens"] <= most
    assert read_sampling(made.path, body, cap=most).sampler is not None


def test_canaries_vary_as_ordinary_traffic_does() -> None:
    """AUD-51: chats and completions, streams and not, several temperatures, hardly ever the same twice."""
    made = [compose(sha256(bytes([n // 256, n % 256])), "tiny", 256) for n in range(600)]
    bodies = [json.loads(one.body) for one in made]
    assert len({one.body for one in made}) > 590
    assert 0.02 < sum(one.path != CHAT for one in made) / len(made) < 0.25
    assert 0.3 < sum("stream" in body for body in bodies) / len(bodies) < 0.7
    assert {body["temperature"] for body in bodies} == {0, 0.5, 0.7, 1.0}
    assert len({body["max_tokens"] for body in bodies}) > 6
    assert any(not one.body.isascii() for one in made)
    assert any(body.get("messages", [{}])[0].get("role") == "system" for body in bodies)


def test_a_plan_is_fixed_whole_and_its_order_is_its_numbering() -> None:
    """AUD-50: another order, another canary or another salt is another root; nobody is asked in a row."""
    plan = make_plan(9, targets(), b"s" * 32, k=3, single_bps=5_000)
    assert len(plan.canaries) == 24
    assert [canary.index for canary in plan.canaries] == list(range(24))
    assert len({canary.request_id for canary in plan.canaries}) == 24
    with pytest.raises(MalformedMessage, match="AUD-50"):
        plan_root(plan.salt, plan.canaries[::-1])
    with pytest.raises(MalformedMessage, match="AUD-50"):
        plan_root(plan.salt, plan.canaries[1:])
    assert plan_root(sha256(b"other"), plan.canaries) != plan.root
    assert plan_root(plan.salt, plan.canaries[:-1]) != plan.root
    asked = [canary.candidates[0] for canary in plan.canaries]
    assert {who: asked.count(who) for who in asked} == dict.fromkeys(WORKERS, 4)


def test_some_canaries_are_for_one_worker_alone_and_the_others_in_company() -> None:
    """AUD-50, AUD-52: as ordinary requests are (MKT-4): behaving only when alone, or only in company, is no way out."""
    sizes = [len(c.candidates) for c in make_plan(9, targets(60), b"t" * 32, k=3, single_bps=5_000).canaries]
    assert set(sizes) == {1, 3}
    assert 0.3 < sizes.count(1) / len(sizes) < 0.7
    assert {len(c.candidates) for c in make_plan(9, targets(), b"t" * 32, k=3, single_bps=10_000).canaries} == {1}
    assert {len(c.candidates) for c in make_plan(9, targets(), b"t" * 32, k=3, single_bps=0).canaries} == {3}


def test_an_empty_plan_is_no_plan() -> None:
    """AUD-50: nothing planned, nothing committed."""
    with pytest.raises(MalformedMessage, match="AUD-50"):
        plan_root(MODEL, ())


@pytest.mark.parametrize(
    ("served", "validators", "judged", "wanted"),
    [
        (0, 6, 100, 4),  # it posts no roots: the least
        (5_000, 6, 1_000, 9),  # 1 % of a day's 5 000 answers, by six validators
        (5_000, 1, 1_000, 50),
        (1_000_000, 6, 100, 64),  # bounded
        (600, 6, 0, 51),  # of a worker nobody knows, half
    ],
)
async def test_who_serves_more_is_asked_more(served: int, validators: int, judged: int, wanted: int) -> None:
    """AUD-52, JDG-21, JDG-22: as many as make the audited share, whatever the traffic."""
    worker = TinyWorker("busy")
    async with playing([worker], validators=validators, settings=ValidatorSettings()) as game:
        validator = game.validators[0]
        root = EpochRoot(epoch=1, root=MODEL, first_seq=1, count=served)
        if served:
            game.court.roots[worker.operator, worker.receipt_key.address] = root
        await validator.register.look()
        standing = Standing.new(worker.operator, WORLD, "tiny", DEFAULT)
        await validator.book.keep(replace(standing, judged=judged))
        offer = OnOffer(model=WORLD, name="tiny", manifest=MANIFEST.encode(), operators=(worker.operator,))
        (target,) = await validator.rounds._targets([offer])
        assert target.canaries == wanted


async def test_a_suspected_worker_is_asked_more_of_the_same_traffic() -> None:
    """JDG-22: tenfold for each factor of a thousand."""
    cheater = TinyWorker("cheater", TinyModel(weights=b"cheap"))
    async with playing([cheater], validators=3, settings=ValidatorSettings(accuse=False, most_tokens=32)) as game:
        validator = game.validators[0]
        await game.until(lambda: any(one.suspicious for one in validator._standings.values()))
        root = EpochRoot(epoch=1, root=MODEL, first_seq=1, count=300)
        game.court.roots[cheater.operator, cheater.receipt_key.address] = root
        offer = OnOffer(model=WORLD, name="tiny", manifest=MANIFEST.encode(), operators=(cheater.operator,))
        (target,) = await validator.rounds._targets([offer])
        assert target.canaries >= 16
