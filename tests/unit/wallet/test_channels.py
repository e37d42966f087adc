# SPDX-License-Identifier: Apache-2.0
"""WAL-3 .. WAL-5, PAY-25: channels by hand, against a real proxy on loopback and a chain in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from tests.unit.proxy.kit import ENTROPY, ProxyNet, key

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.errors import BudgetExceeded, LocalError, PaymentError, Unavailable
from bombyx.ports import OperatorRole
from bombyx.protocol.pay.grant import KEY_SIZE
from bombyx.protocol.primitives import Digest, Instant, RequestId
from bombyx.protocol.wire.channel import close_digest
from bombyx.roles.client.channels import Channels
from bombyx.roles.client.settings import ClientKeys, ClientSettings, ProxyLine
from bombyx.roles.client.wallet import Wallet

OWNED = 1_000_000
DEPOSIT = 300_000
KEYS = ClientKeys(owner=key("owner"), session=key("session"))
ANY = Digest(b"\x11" * KEY_SIZE)


class JumpClock(SystemClock):
    """Sleeping moves it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> Instant:
        return super().now().plus(seconds=self.ahead)

    async def sleep(self, seconds: float) -> None:
        self.ahead += seconds


@dataclass
class Party:
    """A client's money without the rest of the client."""

    net: ProxyNet
    clock: JumpClock
    store: MemoryStore = field(default_factory=MemoryStore)
    settings: ClientSettings = field(
        default_factory=lambda: ClientSettings(budget=600_000, deposit=DEPOSIT, withdraw_delay=900)
    )

    async def start(self) -> Party:
        self.transport = HttpProxyTransport(self.net.url)
        self.line = ProxyLine(address=self.net.key.address, transport=self.transport, url=self.net.url)
        self.wallet = Wallet(
            self.settings, KEYS, clock=self.clock, randomness=ENTROPY, store=self.store, ledger=self.net.ledger
        )
        await self.wallet.load()
        self.channels = Channels(self.wallet, [self.line], KEYS, ledger=self.net.ledger, clock=self.clock)
        return self

    @property
    def proxy(self) -> Channels:
        return self.channels

    async def pay(self, name: bytes, cap: int) -> None:
        """Authorise a request and have the proxy reserve it."""
        operator = next(iter(await self.net.ledger.operators(OperatorRole.PROXY)))
        payment = await self.wallet.pay(operator, RequestId(name * 16), cap=cap, meta_hash=ANY, body_hash=ANY)
        accounts = self.net.proxy._accounts
        self.reservation = await accounts.reserve(
            payment, request_id=RequestId(name * 16), cap=cap, meta_hash=ANY, body_hash=ANY
        )

    def served(self, charge: int) -> None:
        """The proxy charges what the receipt would say; the client agrees."""
        self.net.proxy._accounts.settle(self.reservation, type(self.reservation.cap)(charge))
        self.wallet.channels()[0].agree(self.reservation.request_id, charge)

    async def balance(self) -> int:
        return int(await self.net.ledger.balance(KEYS.owner.address))


@pytest.fixture
async def party() -> AsyncIterator[Party]:
    clock = JumpClock()
    net = ProxyNet(ledger=MemoryLedger(clock))
    await net.start()
    await net.ledger.faucet(KEYS.owner.address, OWNED)
    made = await Party(net=net, clock=clock).start()
    yield made
    await made.transport.close()
    await net.stop()
    assert net.ledger.chain.conserved()


async def test_a_channel_is_opened_used_and_refunded_at_once(party: Party) -> None:
    """PAY-25, WAL-5: what was not charged comes back in one transaction; the proxy can still claim what was."""
    opened = await party.channels.deposit(party.net.key.address, DEPOSIT)
    assert (opened.how, await party.balance()) == ("deposit", OWNED - DEPOSIT)
    await party.pay(b"a", 50_000)
    party.served(20_000)
    closed = await party.channels.close(party.channels.find(None))
    assert (closed.how, closed.amount) == ("refund", DEPOSIT - 20_000)
    assert await party.balance() == OWNED - 20_000
    before = int(await party.net.ledger.balance(party.net.key.address))
    assert await party.net.proxy.claim() == 1  # a closing channel is claimed whatever the threshold
    assert int(await party.net.ledger.balance(party.net.key.address)) == before + 20_000


async def test_a_closed_channel_takes_no_request_and_another_takes_its_place(party: Party) -> None:
    """PAY-16, PAY-25: nothing can be charged against what was given back; the client goes on under a new salt."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    old = party.channels.find(None)
    await party.channels.close(old)
    await party.pay(b"b", 1_000)
    assert party.channels.find(None).id != old.id
    assert [one.state for one in await party.channels.standings()] == ["open", "closed"]
    again = await Party(net=party.net, clock=party.clock, store=party.store).start()  # and so after a restart
    assert [one.id for one in again.wallet.closed_channels()] == [old.id]
    await again.transport.close()


async def test_while_a_request_runs_there_is_no_refund(party: Party) -> None:
    """PAY-25: the proxy says no, and the client announces a withdrawal, during which it can be claimed."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    await party.pay(b"c", 50_000)
    closed = await party.channels.close(party.channels.find(None))
    assert (closed.how, closed.seconds_left) == ("initiate", 900)
    assert "503" in closed.note


async def test_a_stranger_cannot_close_a_channel(party: Party) -> None:
    """PAY-25: only the payer or its authorizer; else anybody could end what others pay through."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    channel = party.channels.find(None)
    for signer in (key("stranger"), party.net.key):
        signature = signer.sign(close_digest(channel.domain, channel.id, party.net.key.address))
        response = await party.transport.post(
            f"/v1/channel/{channel.id.hex()}/close",
            "application/json",
            json.dumps({"signature": signature.hex()}).encode(),
        )
        assert response.status == 402
        await response.aclose()
    await party.pay(b"d", 1_000)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"signature": 5}', b'{"signature": "zz"}', b'{"signature": "00"}'])
async def test_nonsense_is_not_a_close(party: Party, body: bytes) -> None:
    """PAY-25, PROXY-1: a 4xx, and the channel stays as it was."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    name = party.channels.find(None).id.hex()
    response = await party.transport.post(f"/v1/channel/{name}/close", "application/json", body)
    assert 400 <= response.status < 500
    await response.aclose()
    await party.pay(b"e", 1_000)


async def test_a_proxy_that_is_gone_cannot_keep_the_money(party: Party) -> None:
    """WAL-5: announce, wait, take; progress is told; stopping between is safe."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    channel = party.channels.find(None)
    await party.net.server.close(grace=0.1)
    closed = await party.channels.close(channel)
    assert closed.how == "initiate"
    waiting = await party.channels.withdraw(channel, wait=False)
    assert waiting.how == "wait"
    assert 0 < waiting.seconds_left <= 900
    told: list[int] = []
    taken = await party.channels.withdraw(channel, wait=True, progress=told.append)
    assert (taken.how, taken.amount, await party.balance()) == ("finalize", DEPOSIT, OWNED)
    assert told == sorted(told, reverse=True)
    assert (await party.channels.withdraw(channel, wait=True)).how == "nothing"


async def test_a_proxy_that_refunds_too_little_is_not_the_last_word(party: Party) -> None:
    """WAL-5: it booked more than receipts say; the refund is taken, the rest is said and can be withdrawn."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    await party.pay(b"f", 50_000)
    party.net.proxy._accounts.settle(party.reservation, type(party.reservation.cap)(50_000))
    channel = party.channels.find(None)
    channel.agree(party.reservation.request_id, 20_000)
    closed = await party.channels.close(channel)
    assert (closed.how, closed.amount) == ("refund", DEPOSIT - 50_000)
    assert "receipts agree to 20000" in closed.note
    taken = await party.channels.withdraw(channel, wait=True)  # the proxy never claims: even that comes back
    assert (taken.how, taken.amount) == ("finalize", 50_000)


async def test_deposits_by_hand_keep_to_the_budget(party: Party) -> None:
    """WAL-4, PAY-18: what lies in channels and what was spent counts; what came back does not."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    with pytest.raises(BudgetExceeded):
        await party.channels.deposit(party.net.key.address, 300_001)
    await party.channels.close(party.channels.find(None))
    assert party.wallet.spent == 0
    await party.channels.deposit(party.net.key.address, 600_000)
    with pytest.raises(LocalError, match="choice is"):
        party.channels.find(key("stranger").address)


async def test_a_client_tops_its_channel_up_by_itself_within_its_budget(party: Party) -> None:
    """PAY-18: the deposit is raised when the next request needs it, to the budget and no further."""
    for count in range(4):
        await party.pay(bytes([count]), 140_000)
        party.served(140_000)
    assert party.wallet.spent == 600_000
    with pytest.raises(BudgetExceeded):
        await party.pay(b"z", 140_000)


async def test_a_refund_signed_twice_pays_once(party: Party) -> None:
    """PAY-25: asked again before the first reached the chain, the proxy signs the same; its nonce lets one through."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    channel = party.channels.find(None)
    standing = await party.channels.standing(channel)
    first, again = [await party.channels._ask_refund(channel, standing) for _ in range(2)]
    assert first == again
    await party.net.ledger.refund(channel.id, type(channel.agreed)(first[0]), first[1], first[2], signer=KEYS.session)
    with pytest.raises(PaymentError):
        await party.net.ledger.refund(channel.id, type(channel.agreed)(again[0]), again[1], again[2], signer=KEYS.owner)


@dataclass
class OtherReplica:
    """Answers every close as a replica that does not keep the channel; or not at all."""

    holder: str | None
    asked: int = 0

    async def get(self, path: str) -> tuple[int, bytes]:
        raise Unavailable("only closes are asked for here")

    async def post(self, path: str, content_type: str, body: bytes) -> Told:
        self.asked += 1
        if self.holder is None:
            raise Unavailable("it is gone")
        return Told(json.dumps({"code": "held_elsewhere", "replica": self.holder}).encode())

    async def close(self) -> None:
        return


@dataclass
class Told:
    data: bytes
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)

    async def body(self) -> AsyncIterator[bytes]:
        yield self.data

    async def aclose(self) -> None:
        return


@pytest.mark.parametrize("names", ["the keeper", "a stranger", "nobody: it is gone"])
async def test_the_replica_that_keeps_the_channel_closes_it(party: Party, names: str) -> None:
    """LEASE-5, PAY-25: another replica names it and it is asked; a URL we were not configured with never is."""
    await party.channels.deposit(party.net.key.address, DEPOSIT)
    holder = {"the keeper": party.net.url + "/", "a stranger": "http://127.0.0.1:9"}.get(names)
    other = OtherReplica(holder)
    lines = [party.line, ProxyLine(address=party.net.key.address, transport=other, url="http://other")]
    channels = Channels(party.wallet, lines, KEYS, ledger=party.net.ledger, clock=party.clock)
    while channels._replicas.lines()[0].transport is not other:  # ours begins with the other one
        channels._replicas.served(lines[1])
    closed = await channels.close(channels.find(None))
    assert other.asked == 1
    assert closed.how == ("initiate" if names == "a stranger" else "refund")
