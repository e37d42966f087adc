# SPDX-License-Identifier: Apache-2.0
"""A model server for tests: it speaks as vLLM, or as one without ids, and misbehaves on demand.

It speaks the words of `engine_scripted.TOKENS`. What to do wrong is a field of the server, not of the request, because
requests belong to the application.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from bombyx.adapters.engine_scripted import END, FIRST_WORD, TOKENS

REPLY = (*(FIRST_WORD + at for at in range(12)), END)


@dataclass
class FakeServer:
    """`async with FakeServer() as server: OpenAIEngine(server.url)`."""

    with_ids: bool = True
    wrong: str = ""  # see _go_wrong and _end
    status: int = 200
    owner: object = None  # `owned_by` in the model list; None: not told
    pause: float = 0.0  # seconds before each token
    extra: dict[str, Any] = field(default_factory=dict)  # fields of every answer
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set when a request was left or answered
    url: str = ""

    async def __aenter__(self) -> FakeServer:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/{kind:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        told = {} if self.owner is None else {"owned_by": self.owner}
        return web.json_response({"object": "list", "data": [{"id": "fake", **told}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        self.idle.clear()
        try:
            return await self._speak(request, body)
        finally:
            self.idle.set()

    async def _speak(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        if self.status != 200:
            return web.json_response({"error": {"message": "no", "code": self.status}}, status=self.status)
        if chat and not isinstance(body.get("messages"), list):
            return web.json_response({"error": {"message": "messages are required"}}, status=400)
        if request.path.endswith("embeddings"):
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            return web.json_response({"data": [{"index": 0, "embedding": [0.5]}], "usage": usage})
        ids = self._ids(body)
        if body.get("stream"):
            return await self._stream(request, body, ids, chat)
        await asyncio.sleep(self.pause * len(ids))
        if self.wrong == "garbage":
            return web.Response(body=b"{broken", content_type="application/json")
        if self.wrong == "huge":
            return web.Response(body=b"x" * (33 << 20), content_type="application/json")
        return web.json_response(self._whole(body, ids, chat))

    def _ids(self, body: dict[str, Any]) -> tuple[int, ...]:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        return REPLY[:limit]

    def _whole(self, body: dict[str, Any], ids: tuple[int, ...], chat: bool) -> dict[str, Any]:
        choices = []
        for index in range(body.get("n") or 1):
            text = TOKENS.detokenise(ids).decode()
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            given = {"token_ids": list(ids)} if self._gives(body) else {}
            choices.append({"index": index, **said, **given, "finish_reason": _finish(ids)})
        prompt = {"prompt_token_ids": [1, 2, 3]} if self._gives(body) else {}
        return {"model": "fake", "choices": choices, **prompt, **self.extra, "usage": self._usage(body, ids)}

    async def _stream(
        self, request: web.Request, body: dict[str, Any], ids: tuple[int, ...], chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for at, token in enumerate(ids):
            await asyncio.sleep(self.pause)
            if at == 2 and await self._go_wrong(request, response):
                return response
            for index in range(body.get("n") or 1):
                text = TOKENS.piece(token).decode()
                spoken = {"delta": {"content": text}} if chat else {"text": text}
                given = {"token_ids": [token]} if self._gives(body) else {}
                choice = {"index": index, **spoken, **given, "finish_reason": None}
                await _send(response, {"model": "fake", **self.extra, "choices": [choice]})
        for index in range(body.get("n") or 1):
            said: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            await _send(response, {"choices": [{"index": index, **said, "finish_reason": _finish(ids)}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await _send(response, {"choices": [], "usage": self._usage(body, ids)})
        if self.wrong != "no end":
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _go_wrong(self, request: web.Request, response: web.StreamResponse) -> bool:
        if self.wrong == "crash":
            assert request.transport is not None
            request.transport.abort()
            return True
        if self.wrong == "garbage":
            await response.write(b"data: {broken\n\n")
        elif self.wrong == "error":
            await _send(response, {"error": {"message": "secret words of the prompt", "code": 500}})
        elif self.wrong == "huge":
            await response.write(b"data: " + b"x" * (3 << 20) + b"\n\n")
        elif self.wrong == "torn":
            await response.write(b'data: {"choices":')
            return True
        elif self.wrong == "strange choice":
            await _send(response, {"choices": [{"index": 7, "delta": {}}]})
        elif self.wrong == "hang":
            while True:
                await response.write(b": ping\n\n")
                await asyncio.sleep(0.05)
        return False

    def _gives(self, body: dict[str, Any]) -> bool:
        return self.with_ids and bool(body.get("return_token_ids"))

    def _usage(self, body: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
        made = len(ids) * (body.get("n") or 1) + (5 if self.wrong == "count" else 0)
        details = {"cached_tokens": 2}
        return {
            "prompt_tokens": 3,
            "completion_tokens": made,
            "total_tokens": 3 + made,
            "prompt_tokens_details": details,
        }


def _finish(ids: tuple[int, ...]) -> str:
    return "stop" if ids and ids[-1] == END else "length"


async def _send(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")
