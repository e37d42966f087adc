# SPDX-License-Identifier: Apache-2.0
"""A worker that over-counts, signs another model, answers twice or shows other text: caught, by whom, and what
follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.unit.client.pair import IDS, Pair, Script, chat

from bombyx.errors import BombyxError, Equivocation, Peer, ReceiptError
from bombyx.protocol.primitives import Digest

ATTACKS: dict[str, tuple[Callable[[Script], None], str]] = {
    "more billed than ids": (lambda s: setattr(s, "billed", 30), "RCT-6"),
    "ids invented behind the end": (lambda s: setattr(s, "ids", (*IDS[:-1], 3, 4, 5)), "RCT-6"),
    "text of other ids": (lambda s: setattr(s, "text", "Paris is a city."), "RCT-6"),
    "an id outside the table": (lambda s: setattr(s, "ids", (1, 2, 3, 4, 5, 6, 99)), "RCT-6"),
    "another model": (lambda s: setattr(s, "model", Digest(b"\x05" * 32)), "RCT-2"),
    "a charge above the price": (lambda s: setattr(s, "extra_charge", 1), "RCT-5"),
    "two finals": (lambda s: setattr(s, "finals", 2), "RCT-10"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_cheating_worker_is_caught_by_the_client(pair: Pair, attack: str) -> None:
    """RCT-2 .. RCT-10: the worker is blamed, the charge is not agreed to, and it is not drawn again."""
    change, rule = ATTACKS[attack]
    cheat = pair.workers[0]
    change(cheat.script)
    pair.proxy.chosen = cheat
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    error = response.error
    assert isinstance(error, ReceiptError) and error.peer is Peer.WORKER and error.rule == rule, error
    assert isinstance(error, Equivocation) is (attack == "two finals")
    assert response.headers["x-should-retry"] == "false"
    channel = pair.client.wallet.channel(pair.proxy.key.address)
    assert channel is not None and channel.agreed == 0
    assert str(cheat.operator.address) in pair.client.distrusted
    kept = (await pair.client.book.newest())[0]
    assert kept.outcome == "cheated" and kept.fault.startswith(rule)

    pair.proxy.chosen = None
    again = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert again.status == 200
    assert not set(cheat.period.candidates) & set(pair.proxy.seen[-1].meta.candidates)


async def test_over_counting_in_a_stream_comes_out_of_the_loop(pair: Pair) -> None:
    """RCT-6: text has been shown already; the application still learns that the count was false."""
    pair.workers[0].script.billed = 30
    pair.proxy.chosen = pair.workers[0]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    assert b"[DONE]" in await anext(response.body)
    with pytest.raises(ReceiptError):
        await response.read()


async def test_a_charge_for_an_error(pair: Pair) -> None:
    """RCT-9: nothing delivered, nothing owed."""
    pair.workers[0].script = Script(status=500, body=b"{}", charge_refused=True)
    pair.proxy.chosen = pair.workers[0]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert isinstance(response.error, ReceiptError) and response.error.peer is Peer.WORKER


async def test_a_tampered_quote_keeps_a_worker_out_and_shows_its_steps(pair: Pair) -> None:
    """ATT-6: no key without an appraisal; alone, the failure reaches the application with every step."""
    from bombyx.roles.client.problem import problem_of

    for worker in pair.workers:
        worker.platform = type(worker.platform).create(
            seed=b"somebody else's platform", now=worker.period.keyset.not_before
        )
        await worker.rotate()
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    body = json.loads(await response.read())
    assert response.status == 502 and body["error"]["code"] == "attestation_failed"
    assert [step["status"] for step in body["error"]["steps"]].count("failed") == 1
    assert len(body["error"]["steps"]) == 10
    assert isinstance(response.error, BombyxError) and problem_of(response.error)["error"]["fault"] == "worker"
    assert not pair.proxy.seen
