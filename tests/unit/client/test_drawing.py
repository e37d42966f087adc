# SPDX-License-Identifier: Apache-2.0
"""Whom requests are sealed to, and where the endpoint may listen."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.unit.client.pair import Pair, chat, make_client, make_pair

from bombyx.errors import ConfigError
from bombyx.roles.client.endpoint import check_host


async def test_a_share_goes_out_to_one(pair: Pair) -> None:
    """MKT-4: k = 1 marks nobody, as everybody does it."""
    always = await make_pair(single_share_bps=10_000)
    await always.client.request("POST", "/v1/chat/completions", {}, chat())
    await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert len(always.proxy.seen[0].meta.candidates) == 1
    assert len(pair.proxy.seen[0].meta.candidates) == 3


async def test_the_draw_is_the_clients_own() -> None:
    """MKT-1: another secret draws others; the same one draws the same."""
    pair = await make_pair(workers=12)
    for _ in range(3):
        await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert len({seen.meta.candidates for seen in pair.proxy.seen}) == 1
    other = await make_pair(workers=1)
    pair.store, pair.keys = other.store, other.keys
    await pair.ledger.faucet(pair.keys.owner.address, 10**9)
    stranger = make_client(pair, pair.settings)
    await stranger.start()
    await stranger.request("POST", "/v1/chat/completions", {}, chat())
    assert pair.proxy.seen[-1].meta.candidates != pair.proxy.seen[0].meta.candidates


async def test_only_candidates_are_appraised() -> None:
    """MKT-1: of twelve workers' evidence the client fetches and judges three, however often it asks or warms up."""
    pair = await make_pair(workers=12)
    await pair.client.warm()
    for _ in range(3):
        await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    bundles = {f"/v1/blob/{worker.offer().bundle.hex()}" for worker in pair.workers}
    assert len(bundles.intersection(pair.proxy.gets)) == len(pair.client.evidence.all()) == 3


async def test_whoever_joins_is_drawn_though_the_order_is_kept() -> None:
    """MKT-2: the order is kept from request to request, but not beyond the directory it was made of."""
    pair = await make_pair(workers=12)
    pair.proxy.tamper_offers = lambda offers: offers[6:]
    for _ in range(2):
        await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    pair.proxy.tamper_offers = lambda offers: offers
    await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    await (await pair.restarted()).request("POST", "/v1/chat/completions", {}, chat())
    first, second, late, fresh = (seen.meta.candidates for seen in pair.proxy.seen)
    assert first == second
    assert late == fresh


async def test_dear_workers_are_not_asked() -> None:
    """MKT-1: price is one of the things that must fit."""
    pair = await make_pair(max_price_output=799_999)
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert response.status >= 400 and not pair.proxy.seen


async def test_counts_of_offered_and_answered(pair: Pair) -> None:
    """MKT-9: a worker that is always offered and never answers shows."""
    pair.proxy.chosen = pair.workers[1]
    for _ in range(4):
        await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    rows = {row["operator"]: row for row in pair.client.tally.as_rows()}
    assert all(row["offered"] == 4 for row in rows.values())
    assert [rows[str(w.operator.address)]["answered"] for w in pair.workers] == [0, 4, 0]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_the_endpoint_listens_on_loopback_unless_told(host: str) -> None:
    """CLI-9: whoever reaches it spends the budget."""
    with pytest.raises(ConfigError):
        check_host(host, expose=False)
    check_host(host, expose=True)
    check_host("127.0.0.1", expose=False)
    check_host("::1", expose=False)


def test_importing_bombyx_is_quick() -> None:
    """CLI-10: nothing heavy before it is used."""
    code = (
        "import sys, bombyx; print(sorted(m for m in sys.modules if m in ('aiohttp', 'httpx', 'openai', 'coincurve')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert out.stdout.strip() == "[]"
