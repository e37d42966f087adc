# SPDX-License-Identifier: Apache-2.0
"""Client, proxy and workers together, under attack: what their logs say, what a bomb does, who pays for doubles."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from tests.scenarios.test_proxy_network import Network, ask

from bombyx.adapters.engine_scripted import Fault, Script
from bombyx.adapters.proxy_http import MAX_SMALL, HttpProxyTransport
from bombyx.errors import MalformedMessage
from bombyx.ports import EngineEnd, EngineEvent, EngineRequest, EngineUsage
from bombyx.protocol.wire.request import Shape
from bombyx.roles.proxy.links import LinkSession
from bombyx.roles.proxy.relay import Stream

PROMPT = "the zebra wears violet galoshes on thursdays"
ANSWER = "indeed nine crimson umbrellas applaud quietly"


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    made = Network()
    await made.net.start()
    yield made
    await made.stop()


class TellTale:
    """An engine whose every failure quotes what it was asked."""

    async def models(self) -> tuple[str, ...]:
        return ("scripted",)

    async def run(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        if request.body:
            raise RuntimeError(f"cannot do {request.body.decode()}")
        yield EngineEnd(usage=EngineUsage(input=0, cached_input=0, output=0, ids=(), finish=(), verified=True, note=""))

    async def close(self) -> None:
        return None


async def test_no_log_of_any_role_holds_content_or_keys_even_at_debug(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """WRK-7, PROXY-7: good answers, refusals, cuts, engine faults and an engine that quotes prompts in its errors."""
    with caplog.at_level(logging.DEBUG):
        good = await network.worker("worker a", Script(reply=lambda asked: ANSWER))
        client = await network.client(shape=Shape.OFF, k=1, directory_seconds=0.0, registry_seconds=0.0)
        for stream in (False, True):
            answer = await client.request("POST", "/v1/chat/completions", {}, ask(PROMPT, stream=stream))
            assert answer.status == 200 and await answer.read()
        await client.request("POST", "/v1/chat/completions", {}, b'{"model": "' + PROMPT.encode() + b'"}')
        await client.request("POST", "/v1/chat/completions", {}, b"{" + PROMPT.encode())
        await good.stop()
        await network.worker("worker b", Script(reply=lambda asked: ANSWER, fault=Fault.CRASH, fault_after=2))
        answer = await client.request("POST", "/v1/chat/completions", {}, ask(PROMPT, stream=True))
        assert b'"error"' in await answer.read()
        assert answer.error is None or PROMPT not in repr(answer.error)
        await network.workers[-1].stop()
        await network.worker("worker c", engine=TellTale())
        last = await client.request("POST", "/v1/chat/completions", {}, ask(PROMPT))
        assert last.status >= 500 and PROMPT.encode() not in await last.read()
    said = caplog.text + "".join(str(record.args) + str(record.exc_info or "") for record in caplog.records)
    assert "RuntimeError in the worker" in said and "failed" in said, "every one of them was logged"
    for secret in _pieces(PROMPT) | _pieces(ANSWER):
        assert secret not in said
    for key in _secrets(network):
        assert key.hex() not in said.lower()


def _pieces(text: str) -> set[str]:
    """Every run of eight letters: a leak need not be whole."""
    return {text[at : at + 8] for at in range(len(text) - 7)}


def _secrets(network: Network) -> list[bytes]:
    return [network.net.key.secret().reveal(), *(worker._operator.secret().reveal() for worker in network.workers)]


async def test_a_request_a_proxy_sends_twice_runs_once_and_is_paid_once(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEAL-6, PAY-20: the same bytes on one link, one after another; the second comes to nothing."""
    worker = await network.worker("worker a")
    client = await network.client(shape=Shape.OFF, k=1)
    upload, sent = LinkSession.upload, []

    async def twice(self: LinkSession, stream: Stream, request: bytes) -> None:
        sent.append(request)
        await upload(self, stream, request)
        self._number += 1
        copy = Copy(self._number)
        await upload(self, copy, request)  # type: ignore[arg-type]

    monkeypatch.setattr(LinkSession, "upload", twice)
    answer = await client.request("POST", "/v1/chat/completions", {}, ask(PROMPT))
    assert answer.status == 200, await answer.read()
    kept = (await answer.finished()).kept
    (channel,) = client.wallet.channels()
    assert kept is not None and channel.agreed == kept.paid
    assert len(sent) == 1 and len(network.engines[0].requests) == 1  # type: ignore[attr-defined]
    assert sum(worker._booted.till.book.account(c).charged for c in worker._booted.till.book.channels) < kept.paid


class Copy:
    """A stream number without anybody behind it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_a_bomb_in_a_proxys_directory_does_not_unfold(encoding: str) -> None:
    """CLI-2: answers are not unpacked, and bounded as they come."""
    bomb = gzip.compress(bytes(200 << 20)) if encoding != "identity" else bytes(MAX_SMALL + 1)

    async def give(request: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"content-encoding": encoding})

    app = web.Application()
    app.router.add_get("/v1/directory", give)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    transport = HttpProxyTransport(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        if encoding == "identity":
            with pytest.raises(MalformedMessage):
                await transport.get("/v1/directory")
        else:
            _, data = await transport.get("/v1/directory")
            assert data == bomb and len(data) < 1 << 20
    finally:
        await transport.close()
        await runner.cleanup()
