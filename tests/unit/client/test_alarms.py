# SPDX-License-Identifier: Apache-2.0
"""MKT-9 .. MKT-12: a client notices a proxy that hides, invents or favours workers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from tests.unit.client.pair import CLOCK, MODEL, Pair, Proxy
from tests.unit.proxy.kit import key

from bombyx.protocol.primitives import Address
from bombyx.roles.client.alarm import Watch
from bombyx.roles.client.settings import ProxyLine
from bombyx.roles.client.verification import page, verification


async def second_proxy(pair: Pair) -> Proxy:
    """Another proxy of the same workers."""
    other = Proxy(pair.ledger, pair.workers)
    await other.boot_up()
    pair.client.lines += (ProxyLine(address=other.key.address, transport=other),)
    return other


async def test_two_honest_proxies_raise_no_alarm(pair: Pair) -> None:
    """MKT-11: they list the same workers; hours of looks find nothing."""
    await second_proxy(pair)
    for _ in range(48):
        await pair.client.look()
    assert pair.client.watch.alarms == ()


async def test_an_invented_worker_is_an_alarm_at_first_sight(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """MKT-9: what the registry does not have does not exist; said once in the log, and on the page."""
    await second_proxy(pair)
    stranger = key("nobody").address
    pair.proxy.tamper_offers = lambda offers: [*offers, replace(offers[0], operator=stranger)]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await pair.client.look()
    (alarm,) = pair.client.watch.alarms
    assert (alarm.kind, alarm.proxy, alarm.operator) == ("invents", pair.proxy.key.address, stranger)
    assert sum(str(stranger) in record.getMessage() for record in caplog.records) == 1
    value = await verification(pair.client)
    assert value["alarms"][0]["kind"] == "invents"
    assert b"invents" in page(value)


async def test_a_hidden_worker_is_noticed_within_hours(pair: Pair) -> None:
    """MKT-11: one proxy keeps lacking what the other lists; no single look is enough."""
    await second_proxy(pair)
    pair.proxy.tamper_offers = lambda offers: offers[1:]
    looks = 0
    while not pair.client.watch.alarms and looks < 10:
        await pair.client.look()
        looks += 1
    assert 1 < looks < 10
    alarm = pair.client.watch.alarms[0]
    assert (alarm.kind, alarm.operator) == ("hides", pair.workers[0].operator.address)


def test_a_favourite_is_noticed_and_the_best_worker_is_not() -> None:
    """MKT-12: by our own receipts a clearly better worker was on offer each time."""
    proxy, slow, fast = (Address(bytes([n]) * 20) for n in range(3))
    prices = {slow: 100, fast: 100}
    watch = Watch()
    watch.answered(proxy, fast, {fast: 100}, pace=0.01, now=CLOCK.now())  # sent to one alone: that is how it is known
    watch.answered(proxy, slow, {slow: 100}, pace=0.05, now=CLOCK.now())
    for _ in range(200):
        watch.answered(proxy, fast, prices, pace=0.01, now=CLOCK.now())
    assert watch.alarms == ()
    for _ in range(20):
        watch.answered(proxy, slow, prices, pace=0.05, now=CLOCK.now())
    assert watch.alarms == ()  # two hundred good picks weigh something, too
    fresh = Watch()
    for who in (fast, slow):
        fresh.answered(proxy, who, {who: 100}, pace=0.01 if who == fast else 0.05, now=CLOCK.now())
    for _ in range(20):
        fresh.answered(proxy, slow, prices, pace=0.05, now=CLOCK.now())
    (alarm,) = fresh.alarms
    assert (alarm.kind, alarm.operator) == ("favours", slow)


async def test_every_checked_answer_is_counted(pair: Pair) -> None:
    """MKT-12: who answered, at which price and pace, comes from the receipt."""
    before = dict(pair.client.watch._paces)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 16}
    answer = await pair.client.request("POST", "/v1/chat/completions", {}, json.dumps(asked).encode())
    await answer.read()
    assert before == {}
    assert set(pair.client.watch._paces) <= {worker.operator.address for worker in pair.workers}
    assert len(pair.client.watch._paces) == 1
