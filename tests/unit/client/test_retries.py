# SPDX-License-Identifier: Apache-2.0
"""What is sent again, to whom, and that nobody is paid twice for it."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.unit.client.pair import Pair, Proxy, chat, make_client, make_pair

from bombyx.errors import StreamTruncated, Unavailable, Unreachable
from bombyx.protocol.wire.request import Shape

OHTTP = {"type": "https://iana.org/assignments/http-problem-types#ohttp-key", "code": "ohttp_key"}


async def test_rotated_keys_are_appraised_again_and_the_request_goes_to_the_same_workers() -> None:
    """CLI-6: after an `ohttp-key` problem, once, with the same request id."""
    pair = await make_pair(directory_seconds=60.0)
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    before = pair.proxy.seen[-1].meta
    for worker in pair.workers:
        await worker.rotate()
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 200, await response.read()
    first, second = (seen.meta for seen in pair.proxy.seen[-2:])
    assert first.request_id == second.request_id
    assert first.candidates == before.candidates and not set(first.candidates) & set(second.candidates)
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.agreed == 34, "two answers were paid, not three"


async def test_a_proxy_that_keeps_saying_ohttp_key_is_not_believed_twice(pair: Pair) -> None:
    """CLI-6: one retry."""
    pair.proxy.refusals = [(401, OHTTP)] * 5
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 503 and isinstance(response.error, Unavailable)
    assert len(pair.proxy.seen) == 2


async def test_a_proxy_that_forgot_our_session_gets_a_fresh_grant(pair: Pair) -> None:
    """PAY-11: one more payment, the same sealed bytes."""
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    await pair.proxy.forget_sessions()
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 200, await response.read()
    refused, served = pair.proxy.seen[-2:]
    assert refused.payment.grant is None and served.payment.grant is not None
    assert refused.meta.request_id == served.meta.request_id


async def test_a_connection_that_broke_before_the_answer_is_used_once_more(pair: Pair) -> None:
    """CLI-6, SES-1: what was sent may be sent again: same id, same bytes, same proxy; once."""
    pair.proxy.broken = 1
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    first, second = pair.proxy.seen
    assert first.meta == second.meta and first.payment.counter != second.payment.counter
    pair.proxy.broken = 2
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 503 and response.headers["x-should-retry"] == "false"
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.agreed == 17 and channel.open_amount > 0


async def test_another_proxy_is_asked_while_nothing_was_sent(pair: Pair) -> None:
    """CLI-6: failover before the first byte."""
    second = Proxy(pair.ledger, pair.workers)
    await second.boot_up()
    client = make_client(pair, pair.settings, proxies=[pair.proxy, second])
    await client.start()
    pair.proxy.down = True
    response = await client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 200 and len(second.seen) == 1
    second.down = True
    response = await client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 503 and isinstance(response.error, Unreachable)
    assert "x-should-retry" not in response.headers, "nothing was sent: the application may ask again"


async def test_another_proxy_is_not_asked_once_something_was_sent(pair: Pair) -> None:
    """CLI-6: a cut answer may have been paid for."""
    second = Proxy(pair.ledger, pair.workers)
    await second.boot_up()
    client = make_client(pair, pair.settings, proxies=[pair.proxy, second])
    await client.start()
    pair.proxy.cut_bytes = 60
    response = await client.request("POST", "/v1/chat/completions", {}, chat())
    assert isinstance(response.error, StreamTruncated) and not second.seen
    assert response.headers["x-should-retry"] == "false"


async def test_leaving_before_the_end_cancels() -> None:
    """CLI-5: the connection closes, the cap stays reserved, the record says so."""
    pair = await make_pair(shape=Shape.CONSTANT, frame_size=128)
    pair.proxy.pause = 0.02
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    async for _ in response.body:
        break
    await response.aclose()
    assert pair.proxy.closed_early == 1
    kept = (await pair.client.book.newest())[0]
    assert kept.outcome == "cut" and kept.paid < 17
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and not channel.in_flight and channel.open_amount > 0


async def test_what_left_requests_reserve_comes_free_when_the_proxy_gives_up_its_claim(pair: Pair) -> None:
    """PAY-20, PAY-21: its word suffices for that, and a charge that turns up later freezes the channel."""
    pair.proxy.cut_bytes = 60
    for _ in range(8):
        await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and len(channel.left) == 8
    pair.proxy.cut_bytes = None
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    assert len(channel.left) == 8, "the proxy booked them: nothing is given up"
    await pair.proxy.forget_sessions()  # this one's books start anew: it has charged nothing
    assert pair.proxy.book is not None
    view = await pair.ledger.channel(channel.id)
    assert view is not None
    pair.proxy.book.open(view)
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    assert not channel.left and channel.open_amount == 0 and not channel.frozen


async def test_leaving_after_done_does_not_stop_the_checks(pair: Pair) -> None:
    """CLI-5: padding and receipt are read in the background."""
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    async for piece in response.body:
        if b"[DONE]" in piece:
            break
    await response.aclose()
    receipt = await response.receipt()
    assert receipt is not None and receipt["outcome"] == "complete"
    assert pair.proxy.finished_body == 1


async def test_a_request_cancelled_while_it_waits_is_left_not_lost(pair: Pair) -> None:
    """PAY-20: the task of an application that goes away leaves nothing in flight."""
    pair.proxy.pause = 5
    task = asyncio.create_task(pair.client.request("POST", "/v1/chat/completions", {}, chat()))
    await asyncio.sleep(0.2)
    assert pair.proxy.seen
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and not channel.in_flight


async def test_a_silent_proxy_meets_the_deadline(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLI-7: nothing hangs longer than its deadline."""
    monkeypatch.setattr("bombyx.roles.client.core.GRACE_SECONDS", 0.2 - pair.settings.deadline_seconds)
    pair.proxy.pause = 30
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 504 and response.headers["x-should-retry"] == "false"


async def test_the_budget_is_the_limit() -> None:
    """PAY-18: no deposit and no voucher beyond it; the application is told 402 and not to retry."""
    pair = await make_pair(budget=600, deposit=600)
    statuses = [(await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status for _ in range(40)]
    assert statuses[0] == 200 and statuses[-1] == 402
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.ceiling <= 600
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert json.loads(await response.read())["error"]["code"] == "budget_exceeded"
    assert response.headers["x-should-retry"] == "false"


async def test_many_requests_at_once_settle_to_the_unit(pair: Pair) -> None:
    """PAY-20: concurrent answers, one account."""
    asked = [pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=bool(i % 2))) for i in range(24)]
    for response in await asyncio.gather(*asked):
        assert response.status == 200
        await response.read()
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.agreed == 24 * 17 and channel.open_amount == 0 and not channel.frozen
    assert pair.proxy.book is not None
    assert pair.proxy.book.account(channel.id).charged == channel.agreed


async def test_a_restart_keeps_channel_secret_and_receipts(pair: Pair) -> None:
    """PAY-17, MKT-2: the same candidates, the same channel, nothing paid again."""
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    client = await pair.restarted()
    assert (await client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    first, second = pair.proxy.seen
    assert first.payment.channel == second.payment.channel
    assert first.meta.candidates == second.meta.candidates
    assert len(await client.book.newest()) == 2
