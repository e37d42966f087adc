# SPDX-License-Identifier: Apache-2.0
"""A server that answers as vLLM does, with llama.cpp's logits behind it: generation too, in one running batch.

NOT vLLM. Shared with it: the wire form (docs.vllm.ai: OpenAI-compatible server), and the order of things inside: each
step computes the whole batch, the loaded logits processor (ours, `SeededSampler` itself) sees all its rows, and at
temperature 0 the largest logit is taken. Temperatures above 0 are not played: the adapter never asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from aiohttp import web
from tests.unit.audit.fake_vllm import FakeVllm
from tests.unit.engines.vllm_batch import Batch, Tensor

from bombyx.adapters.llama_api import Item, LlamaContext, LlamaModel
from bombyx.adapters.prefill_llama import LlamaPrefill
from bombyx.adapters.vllm_sampler import SeededSampler

SEATS = 8  # answers in the running batch
VERSION = "0.11.0"


@dataclass
class Run:
    """One answer on its way."""

    prompt: tuple[int, ...]
    most: int
    extra: dict[str, Any] | None
    done: asyncio.Future[str]
    seat: int = -1
    ids: list[int] = field(default_factory=list)


def _told(kind: str, model: str, prompt: Sequence[int], run: Run) -> dict[str, Any]:
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(run.ids)}
    return {"id": "cmpl-1", "object": kind, "model": model, "usage": usage}


class LlamaVllm(FakeVllm):
    """`async with LlamaVllm(path, context=256) as server: server.url`. `noise`: another machine's sums, in logits."""

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        name: str = "m",
        processors: bool = True,
        noise: float = 0.0,
    ) -> None:
        super().__init__(LlamaPrefill(model, context=context), context=context)
        self.name, self.version = name, VERSION
        self._path, self._noise = model, noise
        self._processor = SeededSampler(None, "cpu", False) if processors else None
        self._waiting: list[Run] = []
        self._running: dict[int, Run] = {}
        self._wake = asyncio.Event()
        self.widest = 0

    async def __aenter__(self) -> LlamaVllm:
        self._model = LlamaModel(self._path)
        self._cells = LlamaContext(self._model, context=self._context, sequences=SEATS, batch=256)
        self._engine = asyncio.create_task(self._steps())
        await super().__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await super().__aexit__(*raised)
        self._engine.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._engine
        await self._prefill.close()
        self._cells.close()
        self._model.close()

    # --- the wire ---

    def routes(self, app: web.Application) -> None:
        super().routes(app)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/chat/completions", self._chat)

    async def _models(self, _: web.Request) -> web.Response:
        one = {"id": self.name, "object": "model", "owned_by": "vllm", "max_model_len": self._context}
        return web.json_response({"object": "list", "data": [one]})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _chat(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        prompt, run, text, finish = await self._run("/v1/chat/completions", asked)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        answer = _told("chat.completion", self.name, prompt, run)
        if asked.get("return_token_ids"):
            choice["token_ids"] = run.ids
            answer["prompt_token_ids"] = list(prompt)
        return web.json_response(self.spoil(answer | {"choices": [choice]}))

    async def _completions(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if "prompt_logprobs" in asked:
            return await super()._completions(request)
        self.asked.append(asked)
        prompt, run, text, finish = await self._run("/v1/completions", asked)
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        if asked.get("return_token_ids"):
            choice |= {"token_ids": run.ids, "prompt_token_ids": list(prompt)}
        return web.json_response(self.spoil(_told("text_completion", self.name, prompt, run) | {"choices": [choice]}))

    async def _run(self, path: str, asked: dict[str, Any]) -> tuple[tuple[int, ...], Run, str, str]:
        """Prompt, answer, its text and why it ended."""
        assert asked["temperature"] == 0
        assert asked["cache_salt"]
        said = {name: asked[name] for name in ("messages", "prompt") if name in asked}
        prompt = await self._prefill.render(path, json.dumps(said).encode())
        run = Run(prompt, asked["max_tokens"], asked.get("vllm_xargs"), asyncio.get_running_loop().create_future())
        self._waiting.append(run)
        self._wake.set()
        finish = await run.done
        return prompt, run, b"".join(self._model.piece(token) for token in run.ids).decode(errors="replace"), finish

    # --- the batch ---

    async def _steps(self) -> None:
        while True:
            if not self._running and not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            added = self._seated()
            removed = await asyncio.to_thread(self._step, added)
            for run in removed:
                del self._running[run.seat]
                self._cells.cut(run.seat)
                if not run.done.done():
                    run.done.set_result("stop" if self._model.is_end(run.ids[-1]) else "length")
            if self._processor is not None:
                self._processor.update_state(Batch(removed=[run.seat for run in removed]))

    def _seated(self) -> list[Run]:
        added = []
        while self._waiting and len(self._running) < SEATS:
            run = self._waiting.pop(0)
            run.seat = min(set(range(SEATS)) - self._running.keys())
            self._running[run.seat] = run
            added.append(run)
        self.widest = max(self.widest, len(self._running))
        return added

    def _step(self, added: Sequence[Run]) -> list[Run]:
        """One token for everybody. Seats are rows: those of nobody are left as they are."""
        if self._processor is not None and added:
            rows = [
                (run.seat, SimpleNamespace(temperature=0.0, extra_args=run.extra), run.prompt, run.ids) for run in added
            ]
            self._processor.update_state(Batch(added=rows))
        logits = np.zeros((SEATS, self._model.size), dtype=np.float32)
        items: list[Item] = []
        for run in self._running.values():
            fresh = (*run.prompt, *run.ids)[0 if run in added else -1 :]
            first = len(run.prompt) + len(run.ids) - len(fresh)
            items += [
                Item(token, first + place, run.seat, place + 1 == len(fresh)) for place, token in enumerate(fresh)
            ]
        for start in range(0, len(items), self._cells.batch):
            part = items[start : start + self._cells.batch]
            for index, row in self._cells.decode(part):
                logits[part[index].sequence] = row
        if self._noise:
            logits += np.random.default_rng(len(items)).normal(0, self._noise, logits.shape).astype(np.float32)
        tensor = Tensor(logits) if self._processor is None else self._processor.apply(Tensor(logits))
        for run in self._running.values():
            run.ids.append(int(tensor.data[run.seat].argmax()))
        return [run for run in self._running.values() if len(run.ids) >= run.most or self._model.is_end(run.ids[-1])]
