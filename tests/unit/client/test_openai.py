# SPDX-License-Identifier: Apache-2.0
"""The stock `openai` package, unchanged: through the transports in process, and through the endpoint by `base_url`
alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.unit.client.pair import MODEL, TEXT, Pair, make_pair

from bombyx import AnswerCut, AsyncBombyxTransport, AttestationError, BombyxTransport, StreamTruncated
from bombyx.adapters.http_server import HttpServer
from bombyx.protocol.wire.records import Record
from bombyx.protocol.wire.request import Shape
from bombyx.roles.client.endpoint import Endpoint

ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Where is Paris?"}], "max_tokens": 32}


def cut_short(pair: Pair) -> None:
    """Head and first frame pass, the rest does not."""
    pair.proxy.tamper = lambda records: [r for r in records if r[0] is not Record.RECEIPT][:2]


@pytest.fixture
async def pair() -> Pair:
    """Small frames, so that an answer is many."""
    return await make_pair(shape=Shape.CONSTANT, frame_size=128)


# --- in process, synchronous -----------------------------------------------------------------------------------------


class InProcess:
    """A stock client over `BombyxTransport`; `pair` lives on the transport's own loop."""

    def __init__(self) -> None:
        self.pair: Pair | None = None
        self.transport = BombyxTransport(self._build)
        http: Any = httpx.Client(transport=self.transport)
        self.openai = openai.OpenAI(api_key="unused", base_url="http://bombyx.invalid/v1", http_client=http)

    async def _build(self) -> Any:
        self.pair = await make_pair(shape=Shape.CONSTANT, frame_size=128)
        return self.pair.client


@pytest.fixture
def here() -> Iterator[InProcess]:
    made = InProcess()
    yield made
    made.openai.close()


def test_sync_chat(here: InProcess) -> None:
    """CLI-10: the stock class, no endpoint."""
    answer = here.openai.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == TEXT
    assert [model.id for model in here.openai.models.list()] == [MODEL]


def test_sync_stream(here: InProcess) -> None:
    """CLI-10: streamed through the private loop."""
    stream = here.openai.chat.completions.create(**ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    assert here.pair is not None
    kept = here.transport.run(here.pair.client.book.newest())
    assert len(kept) in (0, 1), "the checks may still be under way, behind the application's back"


def test_sync_from_many_threads(here: InProcess) -> None:
    """CLI-10: one transport, several threads."""
    texts: list[str | None] = []

    def ask() -> None:
        texts.append(here.openai.chat.completions.create(**ASK).choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [TEXT] * 4


def test_a_cut_stream_is_an_exception_in_the_loop(here: InProcess) -> None:
    """SEAL-7: StreamTruncated reaches `for chunk in stream`, and nothing is retried."""
    here.openai.models.list()
    assert here.pair is not None
    cut_short(here.pair)
    with pytest.raises(openai.APIConnectionError) as caught:
        for _ in here.openai.chat.completions.create(**ASK, stream=True):
            pass
    assert isinstance(caught.value.__cause__, AnswerCut)
    assert isinstance(caught.value.__cause__.error, StreamTruncated)
    assert len(here.pair.proxy.seen) == 1


def test_a_typed_error_travels_with_openais_own(here: InProcess) -> None:
    """CLI-6: the status decides openai's class; the typed error is beside it; no retry where one may pay twice."""
    here.openai.models.list()
    assert here.pair is not None
    here.pair.proxy.tamper = lambda records: [r for r in records if r[0] is not Record.RECEIPT]
    with pytest.raises(openai.InternalServerError) as caught:
        here.openai.chat.completions.create(**ASK)
    error = caught.value.response.extensions["bombyx_error"]
    assert error.code == "receipt_mismatch" and caught.value.code == "receipt_mismatch"
    assert len(here.pair.proxy.seen) == 1
    assert not isinstance(error, AttestationError)


def test_an_unknown_model_is_openais_not_found(here: InProcess) -> None:
    """CLI-1: 404 in OpenAI's shape."""
    with pytest.raises(openai.NotFoundError) as caught:
        here.openai.chat.completions.create(**{**ASK, "model": "gpt-5"})
    assert caught.value.code == "model_not_found"


# --- in process, asynchronous ----------------------------------------------------------------------------------------


async def test_async_chat_and_stream(pair: Pair) -> None:
    """CLI-10: on the caller's own loop."""

    async def build() -> Any:
        return pair.client

    http: Any = httpx.AsyncClient(transport=AsyncBombyxTransport(build))
    async with openai.AsyncOpenAI(api_key="unused", base_url="http://bombyx.invalid/v1", http_client=http) as client:
        answer = await client.chat.completions.create(**ASK)
        assert answer.choices[0].message.content == TEXT
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == TEXT
        cut_short(pair)
        with pytest.raises(openai.APIConnectionError) as caught:
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
        assert isinstance(caught.value.__cause__, AnswerCut)


# --- through the endpoint --------------------------------------------------------------------------------------------


@pytest.fixture
async def url(pair: Pair) -> AsyncIterator[str]:
    server = HttpServer(Endpoint(pair.client).handle)
    await server.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.port}"
    await server.close(grace=0.2)


async def test_endpoint_by_base_url_alone(url: str) -> None:
    """CLI-9: stock client, stock transport."""
    async with openai.AsyncOpenAI(api_key="any", base_url=f"{url}/v1") as client:
        raw = await client.chat.completions.with_raw_response.create(**ASK)
        assert raw.parse().choices[0].message.content == TEXT
        assert raw.headers["x-bombyx-trust-class"] == "simulated"
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == TEXT
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**ASK, "model": "none"})


async def test_endpoint_for_the_synchronous_client(url: str) -> None:
    """CLI-9: from a thread of its own."""

    def ask() -> str:
        with openai.OpenAI(api_key="any", base_url=f"{url}/v1") as client:
            return str(client.chat.completions.create(**ASK).choices[0].message.content)

    assert await asyncio.to_thread(ask) == TEXT


async def test_a_cut_answer_is_cut_at_the_endpoint(pair: Pair, url: str) -> None:
    """CLI-9: the body ends after the check, so what fails it is never just short."""
    cut_short(pair)
    async with openai.AsyncOpenAI(api_key="any", base_url=f"{url}/v1") as client:
        with pytest.raises(openai.APIError):
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
    assert len(pair.proxy.seen) == 1


async def test_pages_of_the_endpoint(pair: Pair, url: str) -> None:
    """CLI-8, CLI-9: receipts and `/verification` for people and programs; nothing for other hosts."""
    async with httpx.AsyncClient(base_url=url) as web:
        asked = await web.post("/v1/chat/completions", json=ASK)
        assert asked.headers["x-bombyx-receipt"] == f"/v1/receipts/{asked.headers['x-bombyx-request-id']}"
        receipt = (await web.get(asked.headers["x-bombyx-receipt"])).json()
        assert receipt["outcome"] == "complete" and receipt["paid"] == 17
        assert (await web.get("/v1/receipts")).json()["data"] == [receipt]
        checks = (await web.get(asked.headers["x-bombyx-receipt"] + "/verify")).json()["checks"]
        assert all(check["ok"] is not False for check in checks), checks
        told = (await web.get("/verification?format=json")).json()
        assert told["trust_classes"] == ["simulated"] and "simulated" in told["warning"]
        assert len(told["appraisals"]) == 3 and len(told["appraisals"][0]["steps"]) == 10
        html = await web.get("/verification", headers={"accept": "text/html"})
        assert html.headers["content-type"].startswith("text/html") and "simulated" in html.text
        assert TEXT not in html.text and TEXT not in str(told)
        assert (await web.get("/healthz")).json()["status"] == "ok"
        unknown = await web.get("/v2/anything")
        assert unknown.status_code == 404 and unknown.json()["error"]["type"] == "invalid_request_error"
        assert (await web.get("/v1/chat/completions")).status_code == 405
        rebound = await web.get("/verification", headers={"host": "evil.example:10000"})
        assert rebound.status_code == 403
        assert not any(name.startswith("access-control") for name in html.headers)
        bad = await web.post("/v1/chat/completions", content=b"{")
        assert bad.status_code == 400 and bad.json()["error"]["code"] == "invalid_json"
