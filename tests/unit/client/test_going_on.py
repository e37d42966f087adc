# SPDX-License-Identifier: Apache-2.0
"""A request that went out to one worker alone goes on to the rest of its draw, and nobody gains by provoking that."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.client.pair import Pair, Worker, chat, make_client, make_pair

from bombyx.errors import PaymentError, UntrustedProxyError
from bombyx.protocol.primitives import Address, RequestId
from bombyx.protocol.wire.market import Offer

NOBODY = (503, {"code": "no_workers", "rule": "MKT-5"})
COST = 17  # of one answer


async def alone(**changes: Any) -> Pair:
    """Every request goes out at k = 1."""
    return await make_pair(**{"single_share_bps": 10_000, **changes})


def who(pair: Pair, place: int) -> set[Address]:
    """The workers one sending was sealed to."""
    named = pair.proxy.seen[place].meta.candidates
    return {w.operator.address for w in pair.workers if set(w.period.candidates) & set(named)}


async def drawn(pair: Pair) -> list[Worker]:
    """This client's draw: the one that is asked alone, then the others of it."""
    view = await pair.client.view()
    (model,) = await pair.client.network.models(view)
    assert pair.client._desk is not None
    chosen = await pair.client._desk.candidates.preview(view, model)
    by_operator = {worker.operator.address: worker for worker in pair.workers}
    return [by_operator[candidate.operator] for candidate in chosen]


async def test_the_application_does_not_notice_that_the_one_worker_was_gone() -> None:
    """MKT-14: the same id goes to the others of the same draw; one answer, one charge, one record."""
    pair = await alone(workers=12)
    first, *others = await drawn(pair)
    pair.proxy.refusals = [NOBODY]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 200, await response.read()
    one, two = (seen.meta for seen in pair.proxy.seen)
    assert (who(pair, 0), who(pair, 1)) == ({first.operator.address}, {w.operator.address for w in others})
    assert (one.request_id, one.deadline) == (two.request_id, two.deadline)
    assert [kept.outcome for kept in await pair.client.book.newest()] == ["complete"]
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None
    assert (channel.agreed, channel.open_amount, channel.frozen) == (COST, 0, None)


async def test_the_tally_shows_who_was_asked_alone_and_did_not_answer() -> None:
    """MKT-9, MKT-14: a proxy that keeps requests from a worker by refusing them leaves that trace."""
    pair = await alone(workers=4)
    first, *others = await drawn(pair)
    for _ in range(3):
        pair.proxy.refusals = [NOBODY]
        assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    counts = pair.client.tally.of(first.operator.address)
    assert (counts.drawn, counts.offered, counts.answered) == (3, 3, 0)
    assert sum(pair.client.tally.of(w.operator.address).answered for w in others) == 3


async def test_it_goes_on_once() -> None:
    """MKT-14: two sendings; then the application is told."""
    pair = await alone(workers=5)
    pair.proxy.refusals = [NOBODY] * 5
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 503
    assert len(pair.proxy.seen) == 2
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None
    assert channel.open_amount == 0
    assert "x-should-retry" not in response.headers, "nothing ran: the application may ask again"


@pytest.mark.parametrize(
    "refusal",
    [
        (503, {"code": "unavailable", "rule": "PROXY-4"}),
        (503, {"code": "held_elsewhere", "replica": "http://elsewhere.invalid"}),
        (503, {"code": "lease_lost"}),
        (402, {"code": "no_workers", "rule": "PAY-5"}),
        (409, {"code": "duplicate_request"}),
        (429, {"code": "overloaded"}),
        (504, {"code": "deadline_exceeded"}),
        (503, {}),
    ],
)
async def test_what_is_not_for_want_of_workers_is_not_sent_elsewhere(refusal: tuple[int, dict[str, Any]]) -> None:
    """MKT-14: another worker would help none of it."""
    pair = await alone()
    pair.proxy.refusals = [refusal] * 3
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status != 200
    assert len(pair.proxy.seen) == 1


async def test_what_went_to_all_of_the_draw_goes_no_further(pair: Pair) -> None:
    """MKT-3, MKT-14: there is no second draw."""
    pair.proxy.refusals = [NOBODY] * 3
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 503
    assert len(pair.proxy.seen) == 1


async def test_where_nobody_else_was_drawn_the_first_refusal_is_told() -> None:
    """MKT-14: one worker in all."""
    pair = await alone(workers=1)
    pair.proxy.refusals = [NOBODY]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status == 503
    assert isinstance(response.error, UntrustedProxyError)
    assert len(pair.proxy.seen) == 1


async def test_a_worker_whose_keys_are_gone_and_who_is_listed_no_more_is_replaced() -> None:
    """MKT-14, CLI-6: a proxy that started again does not know it, and we find that it is not listed."""
    pair = await alone(workers=4, directory_seconds=60.0)
    first, *others = await drawn(pair)
    pair.proxy.refusals = [(401, {"type": "https://iana.org/assignments/http-problem-types#ohttp-key"})]
    pair.proxy.tamper_offers = lambda offers: [o for o in offers if o.operator != first.operator.address]
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    assert (who(pair, 0), who(pair, 1)) == ({first.operator.address}, {w.operator.address for w in others[:2]})


async def test_another_replica_goes_on_where_the_first_was() -> None:
    """MKT-14, LEASE-5: the one that was asked alone is not asked alone again."""
    pair = await alone(workers=4)
    first, *others = await drawn(pair)
    held = (503, {"code": "held_elsewhere", "replica": "memory2"})
    pair.proxy.refusals = [NOBODY, held]
    lines = pair.client.lines
    other = type(lines[0])(address=lines[0].address, transport=lines[0].transport, url="memory2")
    client = make_client(pair, pair.settings)
    client.lines = (lines[0], other)
    client._replicas = type(client._replicas)(client.lines, Address(bytes(20)))
    client._replicas.served(lines[0])
    await client.start()
    assert (await client.request("POST", "/v1/chat/completions", {}, chat())).status == 200
    rest = {worker.operator.address for worker in others}
    assert [who(pair, place) for place in range(3)] == [{first.operator.address}, rest, rest]
    await client.close()


# --- attacks ---


async def test_attack_a_proxy_runs_the_first_all_the_same_and_books_both() -> None:
    """MKT-14, PAY-21: what it said came to nothing is not paid: its account is above ours, and the channel freezes."""
    pair = await alone()
    pair.proxy.refusals = [NOBODY]
    pair.proxy.extra_total = COST
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert isinstance(response.error, PaymentError)
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None
    assert channel.agreed == COST
    assert channel.frozen is not None
    with pytest.raises(PaymentError):
        channel.agree(pair.proxy.seen[0].meta.request_id, COST + 1)  # a second final of one id: never


async def test_attack_a_connection_that_broke_may_hide_a_request_that_runs() -> None:
    """MKT-14, CLI-6: after that, "no workers" is no reason to have it run by another; its cap stays reserved."""
    pair = await alone()
    pair.proxy.broken = 1
    pair.proxy.refusals = [NOBODY]
    assert (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status == 503
    assert len(pair.proxy.seen) == 2
    assert who(pair, 0) == who(pair, 1)
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None
    assert channel.open_amount == pair.proxy.seen[0].payment.cap


async def test_attack_refusing_and_hiding_brings_no_stranger_into_the_draw() -> None:
    """MKT-3, MKT-14: a request is sealed to k workers in its life, and their places stay empty when they are hidden."""
    for hidden in (1, 2, 3):
        pair = await alone(workers=12)
        chosen = [worker.operator.address for worker in await drawn(pair)]

        def hide(offers: list[Offer], gone: list[Address] = chosen[:hidden], pair: Pair = pair) -> list[Offer]:
            return [offer for offer in offers if offer.operator not in gone] if pair.proxy.seen else offers

        pair.proxy.tamper_offers = hide
        pair.proxy.refusals = [NOBODY]
        status = (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).status
        left = set(chosen[hidden:])
        assert [who(pair, place) for place in range(len(pair.proxy.seen))] == [{chosen[0]}, *([left] if left else [])]
        assert status == (200 if left else 503)


async def test_attack_refusing_tells_no_canary_from_a_request() -> None:
    """MKT-14, AUD-52: what was for one worker alone comes again for the others, whoever asked, and looks the same. A
    validator hears the refusal; what the others say is cover, paid once and given to nobody."""
    ordinary, validator = await alone(workers=6), await make_pair(workers=6)
    ordinary.proxy.refusals, validator.proxy.refusals = [NOBODY], [NOBODY]
    await ordinary.client.request("POST", "/v1/chat/completions", {}, chat())
    own = await drawn(validator)
    last = next(w.operator.address for w in validator.workers if w not in own)
    canary = RequestId(b"a planned canary"[:16])
    heard = await validator.client.request(
        "POST", "/v1/chat/completions", {}, chat(), request_id=canary, candidates=(last,), nonce=bytes(32)
    )
    assert heard.status == 503
    assert isinstance(heard.error, UntrustedProxyError)
    assert heard.delivery is None
    await validator.client.settled()
    shapes = []
    for pair in (ordinary, validator):
        one, two = pair.proxy.seen
        assert one.meta.request_id == two.meta.request_id
        shapes.append([(len(s.meta.candidates), len(s.envelope), s.payment.cap) for s in (one, two)])
        assert not who(pair, 0) & who(pair, 1)
        channel = pair.client.wallet.channel(pair.proxy.key.address)
        assert channel is not None
        assert (channel.agreed, channel.open_amount) == (COST, 0)
    assert [row[0] for row in shapes[0]] == [row[0] for row in shapes[1]] == [1, 2]
    assert shapes[0][1][2] == shapes[1][1][2]


async def test_a_canary_in_company_goes_no_further(pair: Pair) -> None:
    """MKT-14: as a request that went to all of its draw."""
    everybody = tuple(worker.operator.address for worker in pair.workers)
    pair.proxy.refusals = [NOBODY]
    heard = await pair.client.request("POST", "/v1/chat/completions", {}, chat(), candidates=everybody)
    assert heard.status == 503
    assert len(pair.proxy.seen) == 1


async def test_cover_that_fails_changes_nothing_for_the_validator() -> None:
    """MKT-14: it hears the first refusal whatever becomes of the second sending."""
    pair = await make_pair(workers=4)
    first = (await drawn(pair))[0].operator.address
    pair.proxy.refusals = [NOBODY, (429, {"code": "overloaded"})]
    heard = await pair.client.request("POST", "/v1/chat/completions", {}, chat(), candidates=(first,))
    assert heard.status == 503
    assert len(pair.proxy.seen) == 2
