# SPDX-License-Identifier: Apache-2.0
"""A page in the user's browser, and a worker that would like to become one: neither gets at the endpoint (CLI-9)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.unit.client.pair import TEXT, Pair, chat, make_pair

from bombyx.adapters.http_server import HttpServer
from bombyx.errors import MalformedMessage, Peer, StreamTruncated
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.request import Shape
from bombyx.roles.client.endpoint import Endpoint
from bombyx.roles.client.verification import page, verification


@pytest.fixture
async def web(pair: Pair) -> AsyncIterator[httpx.AsyncClient]:
    server = HttpServer(Endpoint(pair.client).handle)
    await server.start("127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield client
    await server.close(grace=0.2)


@pytest.mark.parametrize(
    "told",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
    ],
)
async def test_a_page_of_another_site_spends_nothing(pair: Pair, web: httpx.AsyncClient, told: dict[str, str]) -> None:
    """CLI-9: a form post with text/plain needs no CORS to be sent; without this check it would be paid for."""
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/receipts"), ("GET", "/verification")):
        answer = await web.request(method, path, content=chat(), headers={"content-type": "text/plain", **told})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_site")
    assert not pair.proxy.seen


async def test_programs_and_the_endpoints_own_page_may_ask(pair: Pair, web: httpx.AsyncClient) -> None:
    """CLI-9: no browser's word, or the page itself."""
    own = {"origin": str(web.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    for headers in ({}, own, {"sec-fetch-site": "none"}):
        assert (await web.get("/v1/receipts", headers=headers)).status_code == 200
    assert (await web.post("/v1/chat/completions", content=chat(), headers=own)).status_code == 200
    assert len(pair.proxy.seen) == 1


HEADS: list[tuple[tuple[bytes, bytes], ...]] = [
    ((b"content-type", b"text/html"),),
    ((b"content-type", b"application/json"), (b"content-type", b"image/svg+xml")),
    ((b"content-type", b"application/json\x7f<script>"),),
    ((b"content-type", b"text/html"), (b"set-cookie", b"a=b"), (b"location", b"https://evil.example")),
]


@pytest.mark.parametrize("headers", HEADS)
async def test_a_workers_header_fields_do_not_reach_the_application(
    pair: Pair, web: httpx.AsyncClient, headers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLI-9: no cookie, no redirect, no page under the endpoint's own origin."""
    extra = ((b"connection", b"upgrade"), (b"transfer-encoding", b"gzip"), (b"access-control-allow-origin", b"*"))
    _say(monkeypatch, headers=(*headers, *extra))
    answer = await web.post("/v1/chat/completions", content=chat())
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == TEXT
    assert answer.headers["content-type"] == "application/octet-stream"
    assert not {"set-cookie", "location", "access-control-allow-origin"} & set(answer.headers)
    assert "transfer-encoding" not in answer.headers and answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("value", [b"application/json\r\nset-cookie: a=b", b"text/plain\nx: y", b"a\x00b"])
async def test_a_line_break_in_a_workers_header_is_its_fault(
    pair: Pair, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEAL-12: response splitting ends in the reader, not in the application's parser."""
    _say(monkeypatch, headers=((b"content-type", value),), checked=False)
    answer = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert answer.status == 502 and "set-cookie" not in answer.headers
    assert isinstance(answer.error, MalformedMessage) and answer.error.peer is Peer.WORKER


@pytest.mark.parametrize("status", [304, 302, 399])
async def test_a_worker_does_not_redirect_applications(pair: Pair, status: int) -> None:
    """WRK-5: an answer is a success or an error; the rest is the worker's fault."""
    pair.workers[0].script.status = status
    pair.proxy.chosen = pair.workers[0]
    answer = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert answer.status == 502 and answer.error is not None and "status" in answer.error.message


def _say(monkeypatch: pytest.MonkeyPatch, *, headers: Any, checked: bool = True) -> None:
    """The worker's enclave answers with these header fields."""
    from bombyx.protocol.seal import bhttp, shape

    begin = shape.Shaper.begin

    def false_begin(self: Any, status: int, fields: Any, *, streamed: bool) -> None:
        if checked:
            begin(self, status, headers, streamed=streamed)
            return
        with monkeypatch.context() as within:
            within.setattr(bhttp, "check_lines", lambda lines: None)
            within.setattr(bhttp, "_check_fields", lambda fields: None, raising=False)
            begin(self, status, headers, streamed=streamed)

    monkeypatch.setattr(shape.Shaper, "begin", false_begin)


async def test_a_proxy_cannot_put_an_error_event_into_a_stream(pair: Pair) -> None:
    """SEAL-7: its words are a HINT record, spelt harmlessly; events come out of the seal alone."""
    from bombyx.protocol.wire.records import Record

    lie = json.dumps({"code": 'x"}}\n\ndata: {"error": {"message": "pay again"}}\n\n'}).encode()

    def tamper(records: Any) -> Any:
        return [*records[:2], (Record.HINT, lie)]

    pair = await make_pair(shape=Shape.CONSTANT, frame_size=128)
    pair.proxy.tamper = tamper
    answer = await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
    shown: list[bytes] = []

    async def read() -> None:
        async for piece in answer.body:
            shown.append(piece)  # noqa: PERF401 - what came before the cut counts

    with pytest.raises(StreamTruncated, match="the proxy says") as caught:
        await read()
    said = str(caught.value)
    assert b"pay again" not in b"".join(shown) and "\n" not in said and '"' not in said


async def test_nothing_a_stranger_named_becomes_markup(pair: Pair) -> None:
    """CLI-9: names of models, operators' words and faults are text on the page."""
    await (await pair.client.request("POST", "/v1/chat/completions", {}, chat())).read()
    evil = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"
    value = await verification(pair.client)
    for row in value["appraisals"]:
        row["models"] = [evil]
        row["steps"][0]["detail"] = evil
    for table in ("receipts", "candidates", "proxies", "channels"):
        for row in value[table]:
            row.update(dict.fromkeys(row, evil))
    value["warning"] = evil
    shown = page(value).decode()
    assert "<script" not in shown and "<img" not in shown and "alert(1)" in shown


async def test_a_greedy_proxy_is_not_asked(pair: Pair) -> None:
    """PAY-13: its commission stands in its directory; above what the client allows nothing is sealed to it."""
    pair.client.settings = replace(pair.client.settings, max_commission_bps=499)
    assert pair.client._sender is not None
    pair.client._sender._settings = pair.client.settings
    answer = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert (answer.status, answer.error.rule if answer.error else "") == (402, "PAY-13")
    assert not pair.proxy.seen and pair.client.wallet.channels() == ()


async def test_a_directory_that_names_one_worker_a_hundred_times_gains_nothing(pair: Pair) -> None:
    """MKT-9, SEAL-1: one operator is one candidate and one voice, however often it is listed."""
    pair.proxy.tamper_offers = lambda offers: [*offers, *[offers[0]] * 100]
    answer = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert answer.status == 200
    (seen,) = pair.proxy.seen
    assert len(set(seen.meta.candidates)) == len(seen.meta.candidates) == 3
    (model,) = await pair.client.models()
    assert model.operators == 3


@pytest.mark.parametrize("name", ["../client.db", "..%2f..%2fsession.key", "%00", " ", "0x", "zz", "a" * 4000, "/"])
async def test_a_receipts_name_is_never_a_path(pair: Pair, web: httpx.AsyncClient, name: str) -> None:
    """CLI-8: a name is hex, or `last`, or nothing."""
    for tail in ("", "/proof", "/verify"):
        assert (await web.get(f"/v1/receipts/{name}{tail}")).status_code in (400, 404)


def test_a_digest_is_no_name_of_a_file() -> None:
    """CLI-8: what is parsed is 32 bytes or refused."""
    for name in ("../x", "00" * 31, "0" * 63 + "g", "\u0660" * 64):
        with pytest.raises(ValueError, match=r".+"):
            Digest.parse(name)
