# SPDX-License-Identifier: Apache-2.0
"""A proxy that is cut down in the middle of answers, and lives again over the same store (PAY-17, RCT-3)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.proxy.kit import ProxyNet
from tests.unit.proxy.scripted import PRICE, BareClient, Call, ScriptedWorker, answer

from bombyx.adapters.sqlite import SqliteStore
from bombyx.protocol.pay.price import charge, with_commission
from bombyx.protocol.wire.records import Record

HALF = charge(PRICE, 16, 0, 16)


async def crash(net: ProxyNet) -> None:
    """No drain, no goodbye: connections break, tasks vanish, only what was written is left."""
    for connection in list(net.server.connections):
        connection.transport.abort()
    front, desk = net.proxy._front, net.proxy._desk
    assert front is not None and desk is not None and net.proxy._housekeeper is not None
    tasks = [*front._tasks, net.proxy._housekeeper]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for session in list(desk.links):
        session.closed = True
        session._link.cut()  # type: ignore[attr-defined]
    await net.server.close(grace=0)


async def test_a_crash_mid_stream_charges_the_last_receipt_once(tmp_path: Path) -> None:
    """PAY-17: after the restart both books stand at the last receipt, the id is spent, the channel goes on."""
    net = ProxyNet(store=SqliteStore.open(tmp_path / "proxy.db"))  # type: ignore[arg-type]
    await net.start()
    client = await BareClient(net).start()

    async def halfway(call: Call) -> None:
        call.data()
        call.receipt(output_units=16)
        call.data()
        await asyncio.sleep(60)

    worker = await ScriptedWorker(net, "worker a", halfway).start()
    sealed = client.seal([worker])
    payment = client.pay(sealed, [worker])
    posting = asyncio.ensure_future(client.post(sealed.envelope(payment.encode())))
    while not worker.calls or worker.calls[0].sealer.chain.frames < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await crash(net)
    got = await posting
    assert got.cut, "the client sees a broken connection, not a short answer"
    assert Record.END not in got.kinds
    await worker.stop()

    await net.start()
    booked = net.proxy._accounts.account(client.channel.id)
    assert (booked.charged, booked.reserved, booked.in_flight) == (with_commission(HALF, 500), 0, 0)
    assert sum(channel.agreed for channel in net.proxy._wallet._channels.values()) == HALF
    client.channel.agree(sealed.meta.request_id, booked.charged)
    client.channel.drop_session()
    worker = await ScriptedWorker(net, "worker a", answer).start()
    again = await client.post(sealed.envelope(client.pay(client.seal([worker]), [worker]).encode()))
    assert again.status in (401, 402, 409), "the cut request is not served a second time"
    assert (await client.ask(worker)).status == 200
    await client.close()
    await worker.stop()
    await net.stop()
    await net.store.close()


async def test_a_crash_before_the_first_frame_charges_nothing(tmp_path: Path) -> None:
    """PAY-17: a reservation without a receipt is released, and the request may come again."""
    net = ProxyNet(store=SqliteStore.open(tmp_path / "proxy.db"))  # type: ignore[arg-type]
    await net.start()
    client = await BareClient(net).start()

    async def silent(call: Call) -> None:
        await asyncio.sleep(60)

    worker = await ScriptedWorker(net, "worker a", silent).start()
    sealed = client.seal([worker])
    posting = asyncio.ensure_future(client.post(sealed.envelope(client.pay(sealed, [worker]).encode())))
    while not worker.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await crash(net)
    await asyncio.gather(posting, return_exceptions=True)
    await worker.stop()
    await net.start()
    booked = net.proxy._accounts.account(client.channel.id)
    assert (booked.charged, booked.in_flight) == (0, 0)
    client.channel.drop_session()
    back = ScriptedWorker(net, "worker a", answer)
    back.keyring, back.boot = worker.keyring, worker.boot
    back.rotate = _nothing  # type: ignore[method-assign]
    await back.start()
    again = await client.post(sealed.envelope(client.pay(sealed, [back]).encode()))
    assert again.status == 200
    await client.close()
    await back.stop()
    await net.stop()
    await net.store.close()


async def _nothing() -> None:
    """The same keys as before."""
