# SPDX-License-Identifier: Apache-2.0
"""What every Ledger promises (`ports.Ledger`), asked of the one in memory, of the same one over HTTP, and of
the contracts on a real node."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from tests.onchain.devnet import NodeClock, ledger_on, seeded

from bombyx.adapters.evm import EvmLedger
from bombyx.adapters.ledger_http import HttpLedger, LedgerServer, serve_ledger
from bombyx.adapters.memory import MemoryLedger
from bombyx.adapters.memory_chain import KEPT_BLOCKS
from bombyx.errors import ConfigError, MalformedMessage, PaymentError, Unavailable
from bombyx.ports import Claim, Operator, OperatorRole
from bombyx.protocol.primitives import Amount, Digest, Instant, Secret, sha256
from bombyx.protocol.wire.channel import (
    ChannelConfig,
    claim_batch_digest,
    refund_digest,
    settlement_domain,
    voucher_digest,
)
from bombyx.protocol.wire.signing import SigningKey

PAYER, SESSION, PAYEE, STRANGER = (SigningKey(Secret(bytes([n]) * 32)) for n in (1, 2, 3, 4))
Ledger = MemoryLedger | HttpLedger | EvmLedger


class HandClock:
    def __init__(self) -> None:
        self.at = Instant(1_800_000_000_000)

    def now(self) -> Instant:
        return self.at

    def monotonic(self) -> float:
        return self.at / 1000

    async def sleep(self, seconds: float) -> None:
        self.at = self.at.plus(seconds=seconds)


Clock = HandClock | NodeClock


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


@pytest.fixture
def chain(hand: HandClock) -> MemoryLedger:
    return MemoryLedger(hand)


@pytest.fixture
async def server(chain: MemoryLedger) -> AsyncIterator[LedgerServer]:
    made = await serve_ledger(chain)
    yield made
    await made.close()


@pytest.fixture(params=["memory", "http", "evm"])
async def ledger(request: pytest.FixtureRequest, chain: MemoryLedger, server: LedgerServer) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        made: Ledger = chain
        if request.param == "http":
            made = HttpLedger(server.url)
        elif request.param == "evm":
            _, rpc, book = await stack.enter_async_context(seeded())
            made = ledger_on(rpc, book)
        await made.faucet(PAYER.address, 10_000)
        yield made
        assert chain.chain.conserved(), "every token minted is somewhere, once"
        if isinstance(made, EvmLedger):
            parties = [key.address for key in (PAYER, SESSION, PAYEE, STRANGER)] + [made.book.settlement]
            assert sum([await made.balance(party) for party in parties]) == 10_000
        await made.close()


@pytest.fixture
def clock(ledger: Ledger, hand: HandClock) -> HandClock | NodeClock:
    """The time of the ledger under test."""
    return NodeClock(ledger.rpc) if isinstance(ledger, EvmLedger) else hand


@pytest.fixture
async def config(ledger: Ledger) -> ChannelConfig:
    info = await ledger.info()
    return ChannelConfig(
        payer=PAYER.address,
        payer_authorizer=SESSION.address,
        receiver=PAYEE.address,
        receiver_authorizer=PAYEE.address,
        token=info.token,
        withdraw_delay=900,
        salt=Digest.zero(),
    )


@pytest.fixture
async def domain(ledger: Ledger) -> Digest:
    info = await ledger.info()
    return settlement_domain(info.chain_id, info.settlement)


def claim_of(config: ChannelConfig, domain: Digest, ceiling: int, total: int, key: SigningKey = SESSION) -> Claim:
    signature = key.sign(voucher_digest(domain, config.channel_id(domain), ceiling))
    return Claim(config=config, ceiling=Amount(ceiling), signature=signature, total_claimed=Amount(total))


def refused() -> pytest.RaisesExc[PaymentError]:
    return pytest.raises(PaymentError, match="LEDGER-1")


async def test_it_says_what_it_is(ledger: Ledger) -> None:
    """LEDGER-3: nobody mistakes it for a chain."""
    assert (await ledger.info()).kind == ("evm" if isinstance(ledger, EvmLedger) else "memory")


async def test_blocks_come_every_second_and_hang_together(ledger: Ledger, clock: Clock) -> None:
    """LEDGER-4: the beacon of a keyset can be looked up by its hash."""
    first = await ledger.head()
    if isinstance(ledger, EvmLedger):  # its blocks come in real time, and the test's clock asks for more of them
        for _ in range(3):
            await clock.sleep(1)
    else:
        await clock.sleep(3.5)
    head = await ledger.head()
    assert head.number >= first.number + 3
    assert head.timestamp >= first.timestamp + 3_000
    for _ in range(head.number - first.number):
        parent = await ledger.block(head.parent)
        assert parent is not None and parent.number == head.number - 1
        head = parent
    assert head == first
    assert await ledger.block(sha256(b"no such block")) is None


async def test_old_headers_are_forgotten(chain: MemoryLedger, hand: HandClock) -> None:
    """LEDGER-4: memory stays bounded."""
    first = await chain.head()
    await hand.sleep(KEPT_BLOCKS + 5)
    await chain.head()
    assert await chain.block(first.hash) is None
    assert len(chain.chain._blocks) == KEPT_BLOCKS


async def test_a_deposit_opens_a_channel_and_tops_it_up(ledger: Ledger, config: ChannelConfig, domain: Digest) -> None:
    """PAY-1: the channel's name is its config's digest."""
    first = await ledger.deposit(config, Amount(100), signer=PAYER)
    second = await ledger.deposit(config, Amount(50), signer=PAYER)
    assert first != second, "every change has a reference of its own"
    view = await ledger.channel(config.channel_id(domain))
    assert view is not None
    assert (view.config, view.balance, view.total_claimed) == (config, 150, 0)
    assert await ledger.balance(PAYER.address) == 9_850
    assert await ledger.channel(sha256(b"no such channel")) is None


async def test_deposits_a_contract_would_refuse(ledger: Ledger, config: ChannelConfig) -> None:
    """LEDGER-1."""
    with refused():
        await ledger.deposit(config, Amount(100), signer=STRANGER)
    for change in ({"withdraw_delay": 899}, {"withdraw_delay": 2_592_001}, {"token": STRANGER.address}):
        with refused():
            await ledger.deposit(dataclasses.replace(config, **change), Amount(1), signer=PAYER)
    for amount in (0, 10_001):
        with refused():
            await ledger.deposit(config, Amount(amount), signer=PAYER)


async def test_a_claim_pays_the_receiver_once(ledger: Ledger, config: ChannelConfig, domain: Digest) -> None:
    """PAY-3, PAY-15: cumulative: presented again it moves nothing, a smaller one neither."""
    await ledger.deposit(config, Amount(100), signer=PAYER)
    for total in (40, 40, 30, 60):
        await ledger.claim([claim_of(config, domain, 80, total)], signer=PAYEE)
    assert await ledger.balance(PAYEE.address) == 60
    view = await ledger.channel(config.channel_id(domain))
    assert view is not None and (view.balance, view.total_claimed) == (100, 60)


async def test_claims_a_contract_would_refuse(ledger: Ledger, config: ChannelConfig, domain: Digest) -> None:
    """LEDGER-1: above the ceiling, above the balance, the wrong signer, the wrong sender, an unknown channel."""
    await ledger.deposit(config, Amount(100), signer=PAYER)
    good = claim_of(config, domain, 80, 40)
    other = dataclasses.replace(config, salt=sha256(b"other"))
    for claim, sender in (
        (claim_of(config, domain, 80, 81), PAYEE),
        (claim_of(config, domain, 200, 101), PAYEE),
        (claim_of(config, domain, 80, 40, key=PAYER), PAYEE),
        (dataclasses.replace(good, signature=bytes(65)), PAYEE),
        (dataclasses.replace(good, ceiling=Amount(90)), PAYEE),
        (claim_of(other, domain, 80, 40), PAYEE),
        (good, STRANGER),
        (good, PAYER),
    ):
        with refused():
            await ledger.claim([claim], signer=sender)
    with refused():
        await ledger.claim([], signer=PAYEE)
    assert await ledger.balance(PAYEE.address) == 0


async def test_a_batch_of_claims_is_all_or_none(ledger: Ledger, config: ChannelConfig, domain: Digest) -> None:
    """LEDGER-1."""
    other = dataclasses.replace(config, salt=sha256(b"other"))
    for one in (config, other):
        await ledger.deposit(one, Amount(100), signer=PAYER)
    with refused():
        await ledger.claim([claim_of(config, domain, 80, 40), claim_of(other, domain, 80, 81)], signer=PAYEE)
    assert await ledger.balance(PAYEE.address) == 0
    await ledger.claim(
        [claim_of(config, domain, 80, 40), claim_of(other, domain, 80, 50), claim_of(config, domain, 80, 70)],
        signer=PAYEE,
    )
    assert await ledger.balance(PAYEE.address) == 120


async def test_anybody_presents_a_batch_its_authorizer_signed(
    ledger: Ledger, config: ChannelConfig, domain: Digest
) -> None:
    """PAY-26, LEDGER-1: a stranger pays the payee what it signed for; whatever else moves nothing."""
    await ledger.deposit(config, Amount(100), signer=PAYER)
    claim, channel = claim_of(config, domain, 80, 60), config.channel_id(domain)
    authorization = PAYEE.sign(claim_batch_digest(domain, [(channel, 80, 60)]))
    for claims, signed in (
        ([claim], STRANGER.sign(claim_batch_digest(domain, [(channel, 80, 60)]))),
        ([claim_of(config, domain, 80, 61)], authorization),
        ([claim, claim], authorization),
        ([], authorization),
    ):
        with refused():
            await ledger.claim_signed(claims, signed, signer=STRANGER)
    for _ in range(2):
        await ledger.claim_signed([claim], authorization, signer=STRANGER)
    assert (await ledger.balance(PAYEE.address), await ledger.balance(STRANGER.address)) == (60, 0)


async def test_a_withdrawal_waits_and_claims_come_first(
    ledger: Ledger, config: ChannelConfig, domain: Digest, clock: Clock
) -> None:
    """PAY-6: the payee has the whole delay to present what it holds."""
    channel = config.channel_id(domain)
    await ledger.deposit(config, Amount(100), signer=PAYER)
    with refused():
        await ledger.initiate_withdraw(channel, Amount(100), signer=STRANGER)
    await ledger.initiate_withdraw(channel, Amount(100), signer=SESSION)
    view = await ledger.channel(channel)
    assert view is not None and view.withdrawing and view.spendable == 0
    with refused():
        await ledger.initiate_withdraw(channel, Amount(1), signer=PAYER)
    await clock.sleep(880)  # to the second: tests/onchain
    with refused():
        await ledger.finalize_withdraw(channel, signer=PAYER)
    await ledger.claim([claim_of(config, domain, 80, 70)], signer=PAYEE)
    await clock.sleep(21)
    with refused():
        await ledger.finalize_withdraw(channel, signer=STRANGER)
    await ledger.finalize_withdraw(channel, signer=PAYER)
    assert await ledger.balance(PAYER.address) == 9_930
    assert await ledger.balance(PAYEE.address) == 70
    with refused():
        await ledger.finalize_withdraw(channel, signer=PAYER)


async def test_a_refund_is_the_receivers_gift_and_counts_once(
    ledger: Ledger, config: ChannelConfig, domain: Digest
) -> None:
    """PAY-16: at once, by signature; its nonce stops a second use; a pending withdrawal shrinks with it."""
    channel = config.channel_id(domain)
    await ledger.deposit(config, Amount(100), signer=PAYER)
    await ledger.initiate_withdraw(channel, Amount(90), signer=PAYER)
    signature = PAYEE.sign(refund_digest(domain, channel, 0, 60))
    with refused():
        await ledger.refund(channel, Amount(61), 0, signature, signer=PAYER)
    with refused():
        await ledger.refund(channel, Amount(60), 0, PAYER.sign(refund_digest(domain, channel, 0, 60)), signer=PAYER)
    await ledger.refund(channel, Amount(60), 0, signature, signer=PAYER)
    with refused():
        await ledger.refund(channel, Amount(60), 0, signature, signer=PAYER)
    view = await ledger.channel(channel)
    assert view is not None
    assert (view.balance, view.withdraw_amount, view.refund_nonce) == (40, 30, 1)


def operator(key: SigningKey, role: OperatorRole = OperatorRole.WORKER, **changes: object) -> Operator:
    line = Operator(
        address=key.address,
        role=role,
        endpoint="http://127.0.0.1:1",
        receipt_address=STRANGER.address,
        pay_authorizer=STRANGER.address,
        pay_key_config=b"\x00\x01",
        price_sheet=sha256(b"sheet"),
        models=(sha256(b"a"), sha256(b"b")),
    )
    return dataclasses.replace(line, **changes)  # type: ignore[arg-type]


async def test_operators_register_themselves(ledger: Ledger) -> None:
    """LEDGER-5: nobody writes another's line; the list is the same for everybody; the newest line stands."""
    for key in (PAYER, PAYEE, SESSION):
        await ledger.register(operator(key), signer=key)
    with refused():
        await ledger.register(operator(STRANGER), signer=PAYER)
    with refused():
        await ledger.register(operator(PAYER, OperatorRole.PROXY), signer=PAYER)
    changed = operator(PAYER, endpoint="", models=())
    await ledger.register(changed, signer=PAYER)
    found = await ledger.operators(OperatorRole.WORKER)
    assert [line.address for line in found] == sorted(key.address for key in (PAYER, PAYEE, SESSION))
    assert changed in found
    assert await ledger.operators(OperatorRole.PROXY) == ()


IMAGE = sha256(b"an image")


async def test_publishers_agree_by_quorum_and_each_counts_once(ledger: Ledger, clock: Clock) -> None:
    """LEDGER-8: a value is good where enough of those asked hold it; nobody asked, or no quorum, is no."""
    for key in (PAYER, SESSION):
        await ledger.propose_reference(1, IMAGE, "https://example.org/image", signer=key)
    await clock.sleep(1)
    three = [key.address for key in (PAYER, SESSION, PAYEE)]
    assert await ledger.references_agreed(three, 2, 1, IMAGE)
    assert not await ledger.references_agreed(three, 3, 1, IMAGE)
    assert not await ledger.references_agreed([PAYER.address, PAYER.address], 2, 1, IMAGE)
    assert not await ledger.references_agreed(three, 2, 2, IMAGE), "an image is no model"
    assert not await ledger.references_agreed(three, 2, 1, sha256(b"another image"))
    assert not await ledger.references_agreed([], 0, 1, IMAGE)
    assert not await ledger.references_agreed([], 1, 1, IMAGE)
    assert not await ledger.references_agreed(three, 0, 1, IMAGE)
    assert not await ledger.references_agreed(three, 4, 1, IMAGE)
    assert not await ledger.references_agreed(three * 11, 2, 1, IMAGE), "more than can be asked at once"


async def test_a_publisher_revokes_at_once_and_its_own_alone(ledger: Ledger) -> None:
    """LEDGER-8."""
    await ledger.propose_reference(1, IMAGE, "", signer=PAYER)
    with refused():
        await ledger.propose_reference(1, IMAGE, "", signer=PAYER)
    with refused():
        await ledger.revoke_reference(1, IMAGE, signer=STRANGER)
    assert await ledger.references_agreed([PAYER.address], 1, 1, IMAGE)
    await ledger.revoke_reference(1, IMAGE, signer=PAYER)
    assert not await ledger.references_agreed([PAYER.address], 1, 1, IMAGE)
    with refused():
        await ledger.revoke_reference(1, IMAGE, signer=PAYER)


async def test_an_addition_waits_for_the_delay_which_shrinks_late(ledger: Ledger, clock: Clock) -> None:
    """LEDGER-8: a thief of a publisher's key waits in the open."""
    await ledger.set_publisher_delay(1_000, signer=PAYER)
    await ledger.set_publisher_delay(0, signer=PAYER)
    await ledger.propose_reference(1, IMAGE, "", signer=PAYER)
    assert not await ledger.references_agreed([PAYER.address], 1, 1, IMAGE)
    await clock.sleep(900)
    assert not await ledger.references_agreed([PAYER.address], 1, 1, IMAGE)
    await clock.sleep(110)
    assert await ledger.references_agreed([PAYER.address], 1, 1, IMAGE)
    await ledger.propose_reference(2, IMAGE, "", signer=PAYER)
    await clock.sleep(1)
    assert await ledger.references_agreed([PAYER.address], 1, 2, IMAGE), "the shorter delay counts by now"


async def test_references_a_contract_would_refuse(ledger: Ledger) -> None:
    """LEDGER-8."""
    for kind, uri in ((0, ""), (3, ""), (1, "x" * 257)):
        with refused():
            await ledger.propose_reference(kind, IMAGE, uri, signer=PAYER)
    with refused():
        await ledger.set_publisher_delay(31_536_001, signer=PAYER)


async def test_the_faucet_is_bounded(ledger: Ledger) -> None:
    """LEDGER-1: no more than 2^128-1 tokens in all."""
    with refused():
        await ledger.faucet(PAYER.address, 0)
    with refused():
        await ledger.faucet(PAYER.address, 2**128 - 1)


# --- over HTTP alone -------------------------------------------------------------------------------------------------


async def test_it_is_served_on_loopback_only(chain: MemoryLedger) -> None:
    """LEDGER-3."""
    with pytest.raises(ConfigError, match="LEDGER-3"):
        await serve_ledger(chain, host="0.0.0.0")


async def test_a_ledger_that_is_not_there_is_unavailable(server: LedgerServer) -> None:
    """LEDGER-2."""
    ledger = HttpLedger(server.url)
    await server.close()
    with pytest.raises(Unavailable):
        await ledger.head()
    await ledger.close()


async def test_a_call_sent_twice_happens_once(chain: MemoryLedger, server: LedgerServer) -> None:
    """LEDGER-2: a client that lost the answer may ask again with the same call id."""
    await chain.faucet(PAYER.address, 100)
    ledger = HttpLedger(server.url)
    info = await ledger.info()
    config = ChannelConfig(
        payer=PAYER.address,
        payer_authorizer=SESSION.address,
        receiver=PAYEE.address,
        receiver_authorizer=PAYEE.address,
        token=info.token,
        withdraw_delay=900,
        salt=Digest.zero(),
    )
    sent: list[dict[str, object]] = []
    post = ledger._post

    async def lossy(call: dict[str, object]) -> object:
        sent.append(call)
        answer = await post(call)
        if len(sent) == 1:
            raise aiohttp.ClientConnectionError("the answer is lost")
        return answer

    ledger._post = lossy  # type: ignore[method-assign]
    await ledger.deposit(config, Amount(60), signer=PAYER)
    assert len(sent) == 2
    assert await chain.balance(PAYER.address) == 40
    await ledger.close()


BAD_CALLS = [
    b"",
    b"[]",
    b"\xff",
    b"{}",
    b'{"method": 1, "params": "{}", "id": "", "signature": ""}',
    json.dumps({"method": "head", "params": "{}", "id": "zz", "signature": ""}).encode(),
    json.dumps({"method": "nothing", "params": "{}", "id": "0" * 32, "signature": ""}).encode(),
    json.dumps({"method": "balance", "params": "[]", "id": "0" * 32, "signature": ""}).encode(),
    json.dumps({"method": "balance", "params": '{"account": "0x00"}', "id": "0" * 32, "signature": ""}).encode(),
    json.dumps({"method": "deposit", "params": "{}", "id": "0" * 32, "signature": ""}).encode(),
    json.dumps({"method": "deposit", "params": "{}", "id": "0" * 32, "signature": "00" * 65}).encode(),
    json.dumps(
        {"method": "faucet", "params": '{"account": "", "amount": -1}', "id": "0" * 32, "signature": ""}
    ).encode(),
    b"[" * 5_000,
]


@pytest.mark.parametrize("body", BAD_CALLS)
async def test_malformed_calls_get_a_typed_refusal(server: LedgerServer, body: bytes) -> None:
    """LEDGER-2: 4xx with a body that says what; the server goes on."""
    async with aiohttp.ClientSession() as http, http.post(f"{server.url}/call", data=body) as answer:
        assert 400 <= answer.status < 500
        assert (await answer.json())["code"] == MalformedMessage.code
    ledger = HttpLedger(server.url)
    assert (await ledger.head()).number >= 0
    await ledger.close()


async def test_many_callers_at_once(chain: MemoryLedger, server: LedgerServer) -> None:
    """LEDGER-2: calls are transactions: none is lost, none is done twice."""
    ledgers = [HttpLedger(server.url) for _ in range(5)]
    await asyncio.gather(*(one.faucet(PAYER.address, 1) for one in ledgers for _ in range(20)))
    assert await chain.balance(PAYER.address) == 100
    for one in ledgers:
        await one.close()


async def test_an_endless_answer_is_no_answer() -> None:
    """LEDGER-2: a node that sends without end fills nobody's memory."""

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await answer.write(bytes(1 << 20))
        return answer

    app = web.Application()
    app.router.add_post("/call", endless)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ledger = HttpLedger(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        with pytest.raises(MalformedMessage, match="LEDGER-2"):
            await ledger.head()
    finally:
        await ledger.close()
        await runner.cleanup()
