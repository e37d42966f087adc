# SPDX-License-Identifier: Apache-2.0
"""A `Prefill` on llama.cpp's C API: one pass over prompt and answer, logits of the answer's positions alone.

The model lives in this process and computes in a thread of its own, one pass at a time; callers wait in line. NOT an
engine: nothing is generated.

Always: ids are checked against the vocabulary and the context before llama.cpp sees them (it aborts the process on
some it does not expect); a row's numbers are copied out before the next batch; nothing of a prompt is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from bombyx.adapters.chat_prompt import PromptMaker
from bombyx.adapters.llama_api import Item, LlamaContext, LlamaModel
from bombyx.adapters.llama_logits import rank_of, top_candidates
from bombyx.errors import BadRequest, EngineUnavailable
from bombyx.protocol.audit.asked import uncovered
from bombyx.protocol.audit.margin import Row

BATCH: Final = 256  # tokens of one pass; every wanted one costs a row of the vocabulary, 0.2 to 0.6 MB
MAX_TOP: Final = 16_384  # candidates of one row
T = TypeVar("T")


class _Loaded(NamedTuple):
    model: LlamaModel
    context: LlamaContext
    prompts: PromptMaker


class LlamaPrefill:
    """A `Prefill` over the model file at `path`. The model is loaded with the first use, or with `start()`."""

    def __init__(self, path: Path, *, context: int = 4096, threads: int = 1, batch: int = BATCH) -> None:
        self._path = path
        self._context, self._threads, self._batch = context, threads, batch
        self._loaded: _Loaded | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefill")
        self._closed = False

    async def start(self) -> None:
        """Load the model now. Raises `EngineUnavailable`, `ConfigError`."""
        await self._run(self._ready)

    async def render(self, path: str, body: bytes) -> tuple[int, ...]:
        asked = covered(path, body)
        return await self._run(lambda: self._ready().prompts.ids(path, asked))

    async def score(self, prompt_ids: Sequence[int], output_ids: Sequence[int], *, top: int) -> tuple[Row, ...]:
        ids, count = (*prompt_ids, *output_ids), len(output_ids)
        if not prompt_ids:
            raise BadRequest("a prompt without a token: nothing predicts the answer's first", rule="JDG-1")
        if len(ids) > self._context:
            raise BadRequest(f"{len(ids)} ids, {self._context} fit the context", rule="JDG-1")
        if not 0 < top <= MAX_TOP:
            raise BadRequest(f"{top} candidates a row are not given", rule="JDG-1")
        return await self._run(lambda: self._score(ids, count, top)) if count else ()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._unload)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise EngineUnavailable("the prefill is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            model = LlamaModel(self._path)
            try:
                context = LlamaContext(model, context=self._context, threads=self._threads, batch=self._batch)
            except BaseException:
                model.close()
                raise
            self._loaded = _Loaded(model, context, PromptMaker(model))
        return self._loaded

    def _unload(self) -> None:
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            loaded.context.close()
            loaded.model.close()

    def _score(self, ids: Sequence[int], count: int, top: int) -> tuple[Row, ...]:
        model, context, _ = self._ready()
        if not all(0 <= token < model.size for token in ids):
            raise BadRequest("an id the model does not have", rule="JDG-1")
        first = len(ids) - count  # of the answer; position first - 1 predicts it
        rows: list[Row] = []
        context.clear()
        for start in range(0, len(ids) - 1, self._batch):
            places = range(start, min(start + self._batch, len(ids) - 1))
            items = [Item(ids[place], place, 0, place >= first - 1) for place in places]
            for index, logits in context.decode(items):
                token = ids[places[index] + 1]
                rows.append(
                    Row(
                        candidates=top_candidates(logits, top),
                        chosen=float(logits[token]),
                        chosen_rank=rank_of(logits, token),
                    )
                )
        context.clear()
        return tuple(rows)


def covered(path: str, body: bytes) -> dict[str, Any]:
    """The request, if an answer to it can be re-run. Raises `BadRequest`."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON", rule="AUD-3") from None
    if not isinstance(asked, dict):
        raise BadRequest("the request is no object", rule="AUD-3")
    if why := uncovered(path, asked):
        raise BadRequest(f"an answer to this cannot be re-run: {why}", rule="AUD-3")
    return asked
