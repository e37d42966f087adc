# SPDX-License-Identifier: Apache-2.0
"""A server that speaks vLLM's documented form of `prompt_logprobs` and `/tokenize`, with llama.cpp behind it.

NOT vLLM: what is shared is the wire form (docs.vllm.ai: OpenAI-compatible server, `vllm.logprobs.Logprob`).
`spoil` changes an answer before it is sent, to see what a client makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from aiohttp import web

from bombyx.errors import BadRequest
from bombyx.ports import Prefill


class FakeVllm:
    """`async with FakeVllm(prefill, context=256) as server: server.url`."""

    def __init__(self, prefill: Prefill, *, context: int) -> None:
        self._prefill, self._context = prefill, context
        self._runner: web.AppRunner | None = None
        self.url = ""
        self.spoil: Callable[[Any], Any] = lambda answer: answer
        self.status = 200
        self.asked: list[dict[str, Any]] = []

    async def __aenter__(self) -> FakeVllm:
        app = web.Application(client_max_size=1 << 24)
        self.routes(app)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert self._runner.addresses
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    def routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/tokenize", self._tokenize)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _completions(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        ids: Sequence[int] = asked["prompt"]
        if len(ids) > self._context:
            return web.json_response({"error": {"message": "too long", "code": 400}}, status=400)
        try:
            rows = await self._prefill.score(ids[:1], ids[1:], top=asked["prompt_logprobs"])
        except BadRequest:
            return web.json_response({"error": {"message": "out of vocabulary", "code": 400}}, status=400)
        listed: list[Any] = [None]
        for row, token in zip(rows, ids[1:], strict=True):
            entries = {
                str(one): {"logprob": logit, "rank": place + 1, "decoded_token": "x"}
                for place, (one, logit) in enumerate(row.candidates)
            }
            entries.setdefault(str(token), {"logprob": row.chosen, "rank": row.chosen_rank + 1, "decoded_token": "x"})
            listed.append(entries)
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None, "prompt_logprobs": listed}
        answer = {"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": [choice]}
        return web.Response(
            body=json.dumps(self.spoil(answer)).encode(), status=self.status, content_type="application/json"
        )

    async def _tokenize(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        path = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
        body = {name: asked[name] for name in ("messages", "prompt") if name in asked}
        ids = await self._prefill.render(path, json.dumps(body).encode())
        answer = {"count": len(ids), "max_model_len": self._context, "tokens": list(ids)}
        return web.json_response(self.spoil(answer), status=self.status)
