# SPDX-License-Identifier: Apache-2.0
"""A validator's page, over real HTTP, and the answers users hand over to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from tests.unit.validator.world import BEGAN, DOMAIN, MANIFEST, MODEL, TinyModel, TinyWorker, examiner

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.http_server import HttpServer
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.pages_http import HttpPages
from bombyx.errors import BombyxError, KeyConfigError, MalformedMessage, Overloaded, Unavailable
from bombyx.protocol.audit.jury import canary_nonce
from bombyx.protocol.audit.plan import Target, make_plan
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.seal import GatewayKey, Kem, encapsulate_request
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.desk import Desk
from bombyx.roles.validator.opt_in import LABEL, OptIns
from bombyx.roles.validator.settings import ValidatorSettings

ENTROPY = SystemEntropy()
KEY = GatewayKey.generate(1, Kem.X25519, ENTROPY)
EVIDENCE = b"evidence of a case"


@dataclass
class Taker:
    """Opt-ins of one validator, its desk on loopback."""

    book: Book = field(default_factory=lambda: Book(MemoryStore()))
    settings: ValidatorSettings = field(default_factory=lambda: ValidatorSettings(opt_ins_kept=2))
    known: set[Address] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.opt_ins = OptIns(
            self.settings, keys=lambda: (KEY,), domain=DOMAIN, examiner=examiner(), book=self.book, entropy=ENTROPY,
            is_worker_key=self.is_known,
            weighing=asyncio.Lock(),
        )  # fmt: skip

    async def is_known(self, operator: Address, key: Address) -> bool:
        return key in self.known

    async def answer(self, worker: TinyWorker, number: int = 0) -> bytes:
        target = Target(operator=worker.operator, model=MODEL, name="tiny", canaries=1, most=64)
        canary = make_plan(1, [target], sha256(bytes([number])), k=1, single_bps=0).canaries[0]
        package = await worker.answer(canary, canary_nonce(canary), BEGAN)
        self.known.add(worker.receipt_key.address)
        return seal(package)

    async def judge(self) -> None:
        while self.opt_ins._waiting:
            await self.opt_ins._judge(self.opt_ins._waiting.popleft())


def seal(package: AuditPackage) -> bytes:
    return encapsulate_request(KEY.config, package.encode(), ENTROPY, label=LABEL)[0]


@pytest.fixture
async def taker() -> Taker:
    taker = Taker()
    await taker.book.keep_manifest(MODEL, MANIFEST.encode())
    return taker


async def test_a_users_answer_is_judged_and_raises_an_alarm_and_no_case(taker: Taker) -> None:
    """AUD-57: evidence stays where canaries put it; suspicion makes canaries more frequent."""
    cheater = TinyWorker("cheater", TinyModel(weights=b"cheap"))
    await taker.opt_ins.take(await taker.answer(cheater))
    await taker.judge()
    standing = await taker.book.standing(cheater.operator, MODEL)
    assert standing is not None
    assert (standing.opted_in, standing.opted_in_failed) == (1, 1)
    assert standing.weighed.peak == 0
    assert standing.suspicious


async def test_an_honest_answer_handed_over_changes_nothing(taker: Taker) -> None:
    """AUD-57."""
    honest = TinyWorker("honest")
    await taker.opt_ins.take(await taker.answer(honest))
    await taker.judge()
    standing = await taker.book.standing(honest.operator, MODEL)
    assert standing is not None
    assert (standing.opted_in, standing.opted_in_failed, standing.suspicious) == (1, 0, False)


async def test_the_same_answer_again_is_not_judged_again(taker: Taker) -> None:
    """AUD-57: a client cannot repeat one bad answer."""
    sealed = await taker.answer(TinyWorker("cheater", TinyModel(weights=b"cheap")))
    await taker.opt_ins.take(sealed)
    await taker.opt_ins.take(sealed)
    assert len(taker.opt_ins._waiting) == 1


async def test_answers_of_nobody_sealed_to_nobody_or_too_many_are_refused(taker: Taker) -> None:
    """AUD-57: typed errors, bounded memory."""
    other = GatewayKey.generate(1, Kem.X25519, ENTROPY)
    with pytest.raises(KeyConfigError):
        await taker.opt_ins.take(encapsulate_request(other.config, b"x", ENTROPY, label=LABEL)[0])
    with pytest.raises(MalformedMessage):
        await taker.opt_ins.take(encapsulate_request(KEY.config, b"x", ENTROPY, label=LABEL)[0])
    with pytest.raises(MalformedMessage, match="above the limit"):
        await taker.opt_ins.take(bytes(taker.settings.max_opt_in + 1))
    sealed = await taker.answer(TinyWorker("unregistered"))
    taker.known.clear()
    with pytest.raises(MalformedMessage, match="no registered worker"):
        await taker.opt_ins.take(sealed)
    for number in range(2):
        await taker.opt_ins.take(await taker.answer(TinyWorker("honest"), number))
    with pytest.raises(Overloaded):
        await taker.opt_ins.take(await taker.answer(TinyWorker("honest"), 3))


async def test_attack_a_flood_of_one_workers_answers_keeps_no_others_out(taker: Taker) -> None:
    """AUD-60: a liar with a worker of its own signs as many receipts as it likes; an eighth of the places is its."""
    taker.opt_ins = Taker(taker.book, ValidatorSettings(opt_ins_kept=32), taker.known).opt_ins
    flooding = TinyWorker("accomplice", TinyModel(weights=b"cheap"))
    for number in range(4):
        await taker.opt_ins.take(await taker.answer(flooding, number))
    for number in range(4, 8):
        with pytest.raises(Overloaded):
            await taker.opt_ins.take(await taker.answer(flooding, number))
    await taker.opt_ins.take(await taker.answer(TinyWorker("cheater", TinyModel(weights=b"cheap"))))
    await taker.judge()
    await taker.opt_ins.take(await taker.answer(flooding, 4))  # not forgotten: only put off


@pytest.fixture
async def url(taker: Taker) -> AsyncIterator[str]:
    async def report() -> dict[str, str]:
        return {"role": "validator"}

    async def evidence(digest: Digest) -> bytes | None:
        return EVIDENCE if digest == sha256(EVIDENCE) else None

    async def certificate(case: int, round_: int) -> bytes:
        if case != 7:
            raise Unavailable("others may still commit", rule="AUD-56")
        return bytes(65)

    desk = Desk(
        report=report, metrics=lambda: b"# none\n", evidence=evidence, certificate=certificate, enclave=lambda: None,
        opt_in=taker.opt_ins.take,
    )  # fmt: skip
    server = HttpServer(desk.handle)
    await server.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.port}"
    await server.close(grace=0.1)
    await desk.close()


async def test_the_page_shows_what_it_should_and_refuses_the_rest(url: str, taker: Taker) -> None:
    """AUD-58."""
    wanted = {
        ("GET", "/healthz"): 200,
        ("GET", "/metrics"): 200,
        ("GET", "/v1/report"): 200,
        ("GET", f"/v1/evidence/{sha256(EVIDENCE).hex()}"): 200,
        ("GET", f"/v1/evidence/{sha256(b'other').hex()}"): 404,
        ("GET", "/v1/evidence/zz"): 404,
        ("GET", "/v1/certificates/7/1"): 200,
        ("GET", "/v1/certificates/8/1"): 503,
        ("GET", "/v1/certificates/7/1/2"): 404,
        ("GET", "/v1/certificates/-7/1"): 404,
        ("GET", "/v1/enclave"): 503,
        ("GET", "/"): 404,
        ("POST", "/v1/report"): 405,
        ("POST", "/v1/opt-in"): 400,
    }
    async with aiohttp.ClientSession() as http:
        for (method, path), status in wanted.items():
            async with http.request(method, url + path, data=b"x" if method == "POST" else None) as response:
                assert (response.status, method, path) == (status, method, path)
        async with http.post(url + "/v1/opt-in", data=await taker.answer(TinyWorker("honest"))) as response:
            assert response.status == 202
    assert len(taker.opt_ins._waiting) == 1


async def test_what_others_serve_is_bounded_and_never_followed_elsewhere(url: str) -> None:
    """AUD-54: juror's hands: sizes, schemes and redirects."""
    pages = HttpPages()
    try:
        page = f"{url}/v1/evidence/{sha256(EVIDENCE).hex()}"
        assert await pages.get(page, 100) == EVIDENCE
        with pytest.raises(MalformedMessage):
            await pages.get(page, 5)
        for bad in (f"{url}/nothing", "http://127.0.0.1:9/x", "file:///etc/passwd", "", "http://"):
            with pytest.raises(BombyxError):
                await pages.get(bad, 100)
    finally:
        await pages.close()
