# SPDX-License-Identifier: Apache-2.0
"""The proxy's store is away for a while: no end is said that is not booked, and none is booked unsaid (PAY-17)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from tests.unit.proxy.conftest import Hire
from tests.unit.proxy.kit import ProxyNet
from tests.unit.proxy.scripted import PRICE, BareClient, Call, answer

from bombyx.adapters.memory import MemoryStore
from bombyx.errors import LeaseLost, Unavailable
from bombyx.ports import Lease, Write
from bombyx.protocol.pay.price import charge, with_commission
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.records import Record
from bombyx.roles.proxy.holdings import PAYEE, Holdings, channel_name
from bombyx.roles.proxy.scribe import Scribe

COST = with_commission(charge(PRICE, 16, 0, 32), 500)


class Away:
    """Refuses every write while it is set."""

    def __init__(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write = store.write
        self.now = False
        self.pause = 0.0  # seconds until a write that fails has failed
        self.refused = 0
        monkeypatch.setattr(store, "write", self.write)

    async def write(self, rows: Sequence[Write]) -> None:
        if self.now:
            await asyncio.sleep(self.pause)
            self.refused += 1
            raise Unavailable("the store does not answer", rule="PAY-17")
        await self._write(rows)


@pytest.fixture
def away(net: ProxyNet, monkeypatch: pytest.MonkeyPatch) -> Away:
    return Away(net.store, monkeypatch)


@pytest.fixture
async def unheard() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop complains of: among it exceptions that nobody looked at."""
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    loop.set_exception_handler(None)


def at_the_end(away: Away) -> Callable[[Call], Any]:
    """Answers as ever; the store goes away just before the worker's final receipt."""

    async def script(call: Call) -> None:
        call.data()
        call.receipt(output_units=16)
        await asyncio.sleep(0.1)
        away.now = True
        call.data(final=True)
        call.finish()

    return script


async def booked(net: ProxyNet, client: BareClient) -> int:
    """What the store would give back to a proxy that starts now."""
    net.proxy._accounts._stored = lambda channel: net.store.scan(PAYEE)
    account = await net.proxy._accounts.stored(client.channel.id)
    assert account is not None
    return account.charged


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another role
            await asyncio.sleep(0.01)


async def test_an_answers_end_waits_for_a_store_that_is_away(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away, unheard: list[dict[str, Any]]
) -> None:
    """PAY-17: nothing is said while it is away; once it is back, the client has its receipt and its end."""
    worker = await hire("worker a", at_the_end(away))
    asking = asyncio.ensure_future(client.ask(worker))
    await until(lambda: away.refused >= 2)
    assert not asking.done()
    away.now = False
    got = await asyncio.wait_for(asking, 5)
    assert got.kinds[-2:] == [Record.RECEIPT, Record.END]
    assert got.settlement.charge == got.settlement.charged_total == COST == await booked(net, client)
    assert client.channel.agreed == COST
    worker.script = answer
    assert (await client.ask(worker)).settlement.charged_total == 2 * COST
    gc.collect()
    assert not unheard


async def test_a_checkpoint_that_could_not_be_written_is_nobodys_unheard_exception(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away, unheard: list[dict[str, Any]]
) -> None:
    """PAY-17: its record leaves with the end, its failure is known; the log has no complaint of the event loop's."""

    async def script(call: Call) -> None:
        away.now, away.pause = True, 0.2
        call.data()
        call.receipt(output_units=16)
        await asyncio.sleep(0.1)  # its row is on its way
        call.data(final=True)
        call.finish()  # and fails when the answer has ended
        await until(lambda: away.refused >= 1)
        away.now = False

    worker = await hire("worker a", script)
    got = await client.ask(worker)
    assert got.settlement.charged_total == COST == await booked(net, client)
    gc.collect()
    assert not unheard


async def test_a_client_that_leaves_while_the_store_is_away_is_booked_what_it_was_given(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away
) -> None:
    """PAY-17, PAY-20: the charge is that of the receipt, once, and within the cap the client keeps reserved."""
    worker = await hire("worker a", at_the_end(away))
    sealed = client.seal([worker])
    payment = client.pay(sealed, [worker])
    posting = asyncio.ensure_future(client.post(sealed.envelope(payment.encode())))
    await until(lambda: away.refused >= 1)
    posting.cancel()
    await asyncio.gather(posting, return_exceptions=True)
    await until(lambda: not net.proxy._front.open if net.proxy._front else True)
    client.channel.confirm(payment)
    client.channel.leave(sealed.meta.request_id)
    away.now = False
    worker.script = answer
    after = await client.ask(worker)
    assert after.settlement.charged_total == 2 * COST == await booked(net, client)
    client.channel.check_account(after.settlement.charged_total)
    client.channel.reconcile(after.settlement.charged_total, in_flight=0)
    assert client.channel.disputed == COST <= payment.cap
    assert client.channel.frozen is None


async def test_a_store_that_stays_away_cuts_the_answer_at_its_deadline(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away
) -> None:
    """PAY-17, CLI-7: nobody waits for ever; no END is said of what may not be booked, and it is booked once."""
    worker = await hire("worker a", at_the_end(away))
    deadline = net.proxy._clock.now().plus(seconds=1)
    sealed = client.seal([worker], deadline=deadline)
    got = await asyncio.wait_for(client.post(sealed.envelope(client.pay(sealed, [worker]).encode())), 5)
    assert got.cut
    assert Record.END not in got.kinds
    assert await booked(net, client) == 0
    away.now = False
    await net.proxy._scribe.flush()
    assert await booked(net, client) == COST


async def test_a_stop_writes_what_a_failed_write_left(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away
) -> None:
    """PAY-17: the store came back and nobody wrote since: the last act of the process does."""
    worker = await hire("worker a", at_the_end(away))
    sealed = client.seal([worker], deadline=net.proxy._clock.now().plus(seconds=1))
    assert (await client.post(sealed.envelope(client.pay(sealed, [worker]).encode()))).cut
    away.now = False
    await net.proxy._scribe.close()
    assert await booked(net, client) == COST


async def test_nothing_new_is_taken_on_while_the_store_is_known_to_be_away(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away
) -> None:
    """PAY-17, PROXY-5: 503 at once, instead of work whose end could not be said; then all is as before."""
    worker = await hire("worker a", at_the_end(away))
    waiting = asyncio.ensure_future(client.ask(worker))
    await until(lambda: away.refused >= 1)
    got = await asyncio.wait_for(client.ask(worker), 1)
    assert (got.status, got.problem["rule"]) == (503, "PAY-17")
    assert len(worker.calls) == 1
    away.now = False
    assert (await asyncio.wait_for(waiting, 5)).settlement.charged_total == COST
    worker.script = answer
    assert (await client.ask(worker)).settlement.charged_total == 2 * COST
    assert net.proxy._accounts.account(client.channel.id).reserved == 0


async def test_a_payment_to_a_worker_that_could_not_be_written_reserves_nothing(
    net: ProxyNet, client: BareClient, hire: Hire, away: Away
) -> None:
    """PAY-17, PAY-18: nothing left, so nothing of the float is held for it."""
    worker = await hire()
    sealed = client.seal([worker])
    payment = client.pay(sealed, [worker])
    (channel,) = net.proxy._wallet._channels.values()
    authorize = channel.authorize

    def then_away(*args: Any, **kwargs: Any) -> Any:
        away.now = True
        return authorize(*args, **kwargs)

    channel.authorize = then_away  # type: ignore[method-assign]
    got = await client.post(sealed.envelope(payment.encode()))
    assert (got.status, got.problem["code"]) == (503, "unavailable")
    assert not worker.calls
    assert (channel.open_amount, channel.in_flight) == (0, ())
    assert net.proxy._accounts.account(client.channel.id).reserved == 0


class Fenced:
    """A store whose first write fails, while another process takes the lease over."""

    def __init__(self) -> None:
        self.calls = 0
        self.rows: list[Write] = []

    async def write(self, rows: Sequence[Write]) -> None:
        self.calls += 1
        if self.calls == 1:
            raise Unavailable("the store does not answer")
        lost = frozenset((row.lease.name, row.lease.token) for row in rows if row.lease is not None)
        if lost:
            raise LeaseLost("taken over", lost=lost, rule="LEASE-3")
        self.rows += rows


async def test_a_lease_lost_while_the_store_was_away_is_not_taken_for_a_success() -> None:
    """LEASE-3, LEASE-4: the rows were dropped, as they are another replica's: no END may be said on them."""
    channel, store, holdings = Digest(bytes(32)), Fenced(), Holdings(shared=True)
    holdings.add(Lease(name=channel_name(channel), token=7))
    scribe = Scribe(store, holdings)  # type: ignore[arg-type]
    with pytest.raises(LeaseLost):
        await scribe.insist(PAYEE, [(b"s" + channel, b"charged")], while_=lambda: True)
    assert not store.rows
