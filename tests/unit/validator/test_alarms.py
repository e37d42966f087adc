# SPDX-License-Identifier: Apache-2.0
"""Evidence of a thousand to one reaches other validators: over real pages, sealed to keys of appraised enclaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.unit.validator.court import PARAMETERS
from tests.unit.validator.game import Game, line, playing
from tests.unit.validator.world import (
    BEGAN,
    ENDORSEMENTS,
    MANIFEST,
    MODEL,
    PLATFORM,
    POLICY,
    TinyModel,
    TinyWorker,
    key_of,
)

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.http_server import HttpServer
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.pages_http import HttpPages
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.simulator import SimulatedEnclave
from bombyx.compose.auditing import _carry
from bombyx.compose.handing_over import OtherValidators, deliver
from bombyx.ports import HttpExchange, OperatorRole
from bombyx.protocol.attest import report_data
from bombyx.protocol.attest.events import write_event_log
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.audit.case import Accusation, Case, CaseState, Ending, EpochRoot
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.jury import canary_nonce
from bombyx.protocol.audit.plan import Target, make_plan
from bombyx.protocol.audit.verdict import ALARM
from bombyx.protocol.primitives import Address, Digest, Instant, sha256
from bombyx.protocol.seal import GatewayKey, Kem, encode_key_configs
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.cases import PlannedCanary
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle, Keyset
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.opt_in import PATH, OptInRelay
from bombyx.roles.validator.alarms import ALARMS, ANSWERS, TRIES, Alarms
from bombyx.roles.validator.asking import OnOffer
from bombyx.roles.validator.book import Alarmed
from bombyx.roles.validator.runtime import Enclave
from bombyx.roles.validator.settings import ValidatorSettings
from bombyx.roles.validator.standing import Standing

SETTINGS = ValidatorSettings(most_tokens=32, accuse=False, canaries=3, canaries_new=6, figures=True)
CHEATER = TinyWorker("cheater", TinyModel(weights=b"cheap"))
OFFER = OnOffer(model=MODEL, name="tiny", manifest=MANIFEST.encode(), operators=(CHEATER.operator,))


def enclave_of(key: SigningKey) -> tuple[Enclave, bytes]:
    """A validator's simulated enclave, and the key configuration that the registry names."""
    seals = GatewayKey.generate(1, Kem.MLKEM768_X25519, SystemEntropy())
    header = BlockHeader(number=7, hash=sha256(b"7"), parent=sha256(b"6"), timestamp=BEGAN.plus(seconds=-20))
    keyset = Keyset(
        v=1, ohttp_key_config=encode_key_configs((seals.config,)), receipt_address=key.address, operator=key.address,
        chain_id=PARAMETERS.chain_id, pay_authorizer=key.address, models=(), gpu_evidence=None,
        beacon=header.hash, not_before=BEGAN.plus(seconds=-10), not_after=BEGAN.plus(seconds=3_000),
    ).encode()  # fmt: skip
    device = SimulatedEnclave(platform=PLATFORM, instance=bytes(key.address)[:16])
    bundle = EvidenceBundle(
        v=1, technology="tdx", quote=PLATFORM.quote(device.report(report_data(keyset))),
        event_log=write_event_log(device.events), keyset=keyset, gpu_evidence=None, compose=device.image.compose,
        manifests=(), endorsements=ENDORSEMENTS, beacon_header=header,
    ).encode()  # fmt: skip
    return Enclave(bundle=lambda: bundle, keys=lambda: (seals,)), encode_key_configs((seals.config,))


@dataclass
class Wire:
    """What reaches validators' pages, by validator; some of them may be away."""

    pages: HttpPages
    away: set[int] = field(default_factory=set)
    urls: list[str] = field(default_factory=list)
    took: list[tuple[int, bytes]] = field(default_factory=list)
    asked: int = 0

    async def forward(self, method: str, url: str, body: bytes, most: int) -> tuple[int, bytes]:
        number = next(at for at, page in enumerate(self.urls) if url.startswith(page + "/"))
        self.asked += 1
        if number in self.away:
            url = "http://127.0.0.1:9/"
        status, answer = await self.pages.forward(method, url, body, most)
        if method == "POST" and status == 202:
            self.took.append((number, body))
        return status, answer


@dataclass
class SlowWorker(TinyWorker):
    """From its sixth answer on it waits."""

    on_with_it: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, canary: PlannedCanary, nonce: bytes, at: Instant, **changes: Any) -> AuditPackage:
        if self.seq >= 5:
            await self.on_with_it.wait()
        return await super().answer(canary, nonce, at, **changes)


@asynccontextmanager
async def watching(
    settings: ValidatorSettings = SETTINGS, *, worker: TinyWorker = CHEATER
) -> AsyncIterator[tuple[Game, Wire]]:
    """Three validators with pages and enclaves. The cheater shows itself to the first alone; the others are asked to
    look at a worker of which they have no canary yet."""
    async with AsyncExitStack() as stack, playing([worker], validators=0) as game:
        pages = HttpPages()
        stack.push_async_callback(pages.close)
        wire = Wire(pages)

        async def members() -> tuple[Address, ...]:
            return tuple(game.court.members)

        game.others = lambda key: OtherValidators(
            key.address, ledger=game.ledger, members=members, forward=wire.forward, policy=POLICY, clock=game.clock
        )
        for number in range(3):
            await _seat(game, wire, number, settings, stack)
        for validator in game.validators:
            await validator.book.keep_manifest(MODEL, MANIFEST.encode())
            await validator.start()
        yield game, wire


async def _seat(game: Game, wire: Wire, number: int, settings: ValidatorSettings, stack: AsyncExitStack) -> None:
    def page(exchange: HttpExchange) -> None:
        game.validators[number].handle(exchange)

    server = HttpServer(page)
    await server.start("127.0.0.1", 0)
    stack.push_async_callback(server.close, grace=0.1)
    wire.urls.append(f"http://127.0.0.1:{server.port}")
    key = key_of(f"validator {number}")
    enclave, named = enclave_of(key)
    await game.ledger.register(line(key.address, OperatorRole.VALIDATOR, key.address, wire.urls[-1], named), signer=key)
    game.court.members.append(key.address)
    game.keys.append(key)
    game.stores.append(MemoryStore())
    game.settings.append(settings)
    game.enclaves.append(enclave)
    if number:
        game.served[number] = {}
    game.validators.append(game.seated(number))


async def alarmed(game: Game) -> Alarmed:
    return await game.validators[0].book.alarmed(CHEATER.operator, MODEL)


async def failed_at(game: Game, number: int) -> int:
    standing = await game.validators[number].book.standing(CHEATER.operator, MODEL)
    return 0 if standing is None else standing.opted_in_failed


def alarms_of(game: Game) -> Alarms:
    found = game.validators[0].alarms
    assert found is not None
    return found


def high(game: Game) -> bool:
    return any(one.weighed.peak >= ALARM for one in game.validators[0]._standings.values())


async def judged(game: Game) -> None:
    """Until both others have judged all they were handed."""
    both = [game.validators[number]._standings for number in (1, 2)]
    await game.until(lambda: all(sum(one.opted_in for one in rows.values()) >= ANSWERS for rows in both))


async def test_an_alarm_reaches_every_other_validator_and_each_asks_more_and_accuses_nobody() -> None:
    """AUD-60: handed over once, judged by each itself, soon followed by canaries of its own."""
    async with watching() as (game, wire):
        (before,) = await game.validators[1].rounds._targets([OFFER])
        await judged(game)
        assert sorted(number for number, _ in wire.took) == [1, 1, 1, 2, 2, 2]
        for number in (1, 2):
            assert await failed_at(game, number) == ANSWERS
            standing = await game.validators[number].book.standing(CHEATER.operator, MODEL)
            assert standing is not None
            assert standing.weighed.peak == 0  # evidence is what its own canaries find
            (target,) = await game.validators[number].rounds._targets([OFFER])
            assert (before.canaries, target.canaries) == (6, 12)
        asked = wire.asked
        await game.until(lambda: game.clock.monotonic() > 150)
        assert wire.asked == asked
        assert (await alarmed(game)).times == 1
        assert game.court.kept == {}


async def test_nothing_is_shown_before_its_epoch_is_over_and_nobody_on_the_way_can_read_it() -> None:
    """AUD-60: who reads a package, or sees it pass, learns of no canary that is still to come."""
    async with watching() as (game, wire):
        await game.until(lambda: high(game))
        began = PARAMETERS.epoch_of(game.clock.now().seconds)
        await alarms_of(game).look()
        assert (await alarmed(game)).times == 0
        await game.until(lambda: bool(wire.took))
        over = PARAMETERS.epoch_of(game.clock.now().seconds)
        shown = await alarmed(game)
        assert over > began
        assert {epoch for epoch, _ in shown.answers} <= set(range(began - 1, over))
        assert not {epoch for epoch, _ in shown.answers} & game.validators[0].rounds.under_way
        plan = await game.validators[0].book.plan(shown.answers[0][0])
        assert plan is not None
        bodies = [compose(one.seed, one.name, one.most).body for one in plan.canaries]
        assert not any(body in sealed for body in bodies for _, sealed in wire.took)
        assert not any(bytes(CHEATER.operator) in sealed for _, sealed in wire.took)


async def test_an_epoch_whose_canaries_are_still_being_asked_is_not_shown_though_its_time_is_over() -> None:
    """AUD-60: canaries may queue past the end, and they share a payer."""
    worker = SlowWorker("cheater", CHEATER.model)
    async with watching(worker=worker) as (game, wire):
        await game.until(lambda: high(game))
        await game.until(lambda: game.clock.monotonic() > 200)
        assert wire.asked == 0
        worker.on_with_it.set()
        await game.until(lambda: len(wire.took) == 2 * ANSWERS)


async def test_a_restart_neither_forgets_an_alarm_nor_raises_it_again() -> None:
    """AUD-60: who was away hears of it later."""
    async with watching() as (game, wire):
        wire.away = {2}
        await game.until(lambda: len(wire.took) == ANSWERS)
        await game.until(lambda: wire.asked > 4)
        await game.killed(0)
        before = await alarmed(game)
        wire.away = set()
        await game.restarted(0)
        await judged(game)
        after = await alarmed(game)
        assert (before.times, after.times) == (1, 1)
        assert after.answers == before.answers
        assert [number for number, _ in wire.took].count(2) == ANSWERS


async def test_attack_validators_that_never_take_it_are_left_after_some_tries_and_hold_up_nothing() -> None:
    """AUD-60: bounded; rounds and the others go on."""
    async with watching() as (game, wire):
        wire.away = {1, 2}
        await game.until(lambda: wire.asked > 0)
        count = game.validators[0]._standings.values
        before = sum(one.judged for one in count())
        await game.until(lambda: wire.asked >= 4)
        await game.until(lambda: sum(one.judged for one in count()) > before)
        alarms = alarms_of(game)
        await game.killed(0)
        for _ in range(TRIES):
            alarms._due.clear()
            await alarms.look()
        assert (await alarmed(game)).tries == TRIES
        asked = wire.asked
        alarms._due.clear()
        await alarms.look()
        assert wire.asked == asked <= 2 * (TRIES + 1)  # a try that a restart cut short is made again


async def test_attack_a_page_with_a_key_that_the_registry_does_not_name_gets_nothing() -> None:
    """AUD-60, AUD-57: nor does who has no stake; the others hear of it all the same."""
    async with watching() as (game, wire):
        _, other = enclave_of(game.keys[2])
        key = game.keys[2]
        await game.ledger.register(
            line(key.address, OperatorRole.VALIDATOR, key.address, wire.urls[2], other), signer=key
        )
        await game.until(lambda: len(wire.took) == ANSWERS)
        await game.until(lambda: game.clock.monotonic() > 150)
        assert {number for number, _ in wire.took} == {1}
        assert (await alarmed(game)).told == (game.keys[1].address,)
        others = game.others
        assert others is not None
        game.court.members.remove(game.keys[1].address)
        assert game.keys[1].address not in await others(game.keys[0]).taking()


async def test_a_client_hands_over_through_a_proxy_by_the_same_steps() -> None:
    """AUD-57: `bombyx audit --opt-in`, and what an alarm does without the proxy, are one piece."""
    async with watching() as (game, _), AsyncExitStack() as stack:
        pages = HttpPages()
        stack.push_async_callback(pages.close)
        relay = OptInRelay(game.ledger, pages.forward, game.clock)
        running: set[asyncio.Task[None]] = set()

        async def carried(exchange: HttpExchange) -> None:
            name = exchange.request.path.removeprefix(PATH)
            if exchange.request.method == "GET":
                exchange.respond(200, {}, await relay.evidence(name))
            else:
                exchange.respond(await relay.take(name, exchange.request.body), {})

        server = HttpServer(lambda exchange: running.add(asyncio.create_task(carried(exchange))))
        await server.start("127.0.0.1", 0)
        stack.push_async_callback(server.close, grace=0.1)
        transport = HttpProxyTransport(f"http://127.0.0.1:{server.port}")
        stack.push_async_callback(transport.close)
        lines = {one.address: one for one in await game.ledger.operators(OperatorRole.VALIDATOR)}
        named = lines[game.keys[1].address]
        target = Target(operator=CHEATER.operator, model=MODEL, name="tiny", canaries=1, most=64)
        canary = make_plan(1, [target], sha256(b"9"), k=1, single_bps=0).canaries[0]
        package = await CHEATER.answer(canary, canary_nonce(canary), BEGAN)
        result, sent = await deliver(_carry(transport, named.address), package, named, POLICY, game.clock)
        assert (str(result.trust_class), sent > len(package.encode())) == ("simulated", True)
        await game.until(lambda: any(one.opted_in_failed for one in game.validators[1]._standings.values()))


async def test_evidence_that_hovers_about_the_bound_is_told_a_bounded_number_of_times() -> None:
    """AUD-60: once an alarm; anew only after it fell below."""
    async with watching() as (game, _):
        await judged(game)
        await game.killed(0)
        book, alarms = game.validators[0].book, alarms_of(game)
        rose = await book.standing(CHEATER.operator, MODEL)
        assert rose is not None
        fell = replace(rose, evidence=replace(Evidence.none(DEFAULT), peak=rose.weighed.peak).encode())
        assert rose.weighed.log10 >= ALARM
        for _ in range(2):
            await alarms.look()
            assert (await alarmed(game)).times == 1
        for _ in range(2 * ALARMS):
            for standing in (fell, rose):
                await book.keep(standing)
                await alarms.look()
        assert (await alarmed(game)).times == ALARMS


async def test_nobody_is_told_of_ones_own_decoy() -> None:
    """AUD-60, AUD-59: it is to be convicted by its owner alone."""
    async with watching(replace(SETTINGS, decoy=CHEATER.operator)) as (game, wire):
        await game.until(lambda: high(game))
        await game.until(lambda: game.clock.monotonic() > 150)
        assert wire.asked == 0


def case(game: Game, *, last: int, state: CaseState, ending: Ending) -> Case:
    accusation = Accusation(
        accused=CHEATER.operator, model=MODEL, evidence=sha256(b"evidence"), uri="", from_epoch=last - 1,
        to_epoch=last, plant=Digest.zero(),
    )  # fmt: skip
    return Case(
        id=1, state=state, accuser=game.keys[1].address, accusation=accusation, round=1, jury_block=1, ballots=(),
        commit_until=0, reveal_until=0, appeal_until=0, veto_until=0, outcome=None, ending=ending, sentence=0,
        opened_at=1, appellant=Address.zero(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "ending", "told"),
    [
        (CaseState.VOTING, Ending.OPEN, False),
        (CaseState.CLOSED, Ending.SLASHED, False),
        (CaseState.CLOSED, Ending.ACQUITTED, True),  # or an accomplice's hopeless case would silence everybody
    ],
)
async def test_what_a_case_has_made_public_is_not_told_again(state: CaseState, ending: Ending, told: bool) -> None:
    """AUD-60: who watches the chain has heard."""
    async with watching() as (game, wire):
        wire.away = {1, 2}
        await game.until(lambda: bool(wire.asked))
        await game.killed(0)
        book, alarms = game.validators[0].book, alarms_of(game)
        last = max(await book.epochs())
        await book.keep_alarmed(CHEATER.operator, MODEL, Alarmed())
        game.validators[0].clerk.cases[1] = case(game, last=last, state=state, ending=ending)
        await alarms.look()
        assert ((await alarmed(game)).times == 1) is told


async def test_suspicion_doubles_also_what_a_busy_worker_is_asked() -> None:
    """AUD-60: the least alone would be no more than it gets anyway."""
    async with watching(replace(SETTINGS, canaries_new=8)) as (game, _):
        validator = game.validators[1]
        calm = replace(Standing.new(CHEATER.operator, MODEL, "tiny", DEFAULT), judged=1_000)
        served = game.court.roots
        served[CHEATER.operator, CHEATER.receipt_key.address] = EpochRoot(epoch=1, root=MODEL, first_seq=1, count=6_000)
        await validator.register.look()
        asked = []
        for standing in (calm, replace(calm, opted_in_failed=1)):
            await validator.book.keep(standing)
            asked += [one.canaries for one in await validator.rounds._targets([OFFER])]
        assert asked == [20, 40]


def test_what_was_told_to_whom_is_read_as_it_was_written() -> None:
    """AUD-60: the row of a restart."""
    for row in (
        Alarmed(),
        Alarmed(times=3, high=True, tries=2, answers=((60_000_000, 7), (1, 2)), told=(CHEATER.operator,) * 3),
    ):
        assert Alarmed.read(row.encode()) == row
