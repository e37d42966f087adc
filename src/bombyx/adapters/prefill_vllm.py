# SPDX-License-Identifier: Apache-2.0
"""A `Prefill` on vLLM: `prompt_logprobs` of /v1/completions over prompt and answer together, prompts from /tokenize.

The server is the operator's, on loopback, started so that it tells logits and enough of them:

    vllm serve MODEL --logprobs-mode raw_logits --max-logprobs 136 --chat-template PINNED.jinja

With `raw_logprobs`, vLLM's default, the numbers are logits less one constant a row; margins do not change. Row i of
`prompt_logprobs` says what the model thinks of token i: its best candidates, and token i itself among or beside them.

Always: an answer is bounded, parsed strictly, and held against what was asked: as many rows as ids, the ids that were
sent; anything else is `EngineUnavailable`. No message holds content.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
from yarl import URL

from bombyx.adapters.engine_openai import is_loopback
from bombyx.adapters.prefill_llama import MAX_TOP, covered
from bombyx.errors import BadRequest, ConfigError, DeadlineExceeded, EngineUnavailable
from bombyx.protocol.audit.asked import CHAT, message_text
from bombyx.protocol.audit.margin import Row

ENTRY: Final = 160  # bytes of one candidate: id, number, rank and decoded token, as JSON writes them
SLACK: Final = 1 << 20  # bytes of an answer around its rows
MAX_ANSWER: Final = 1 << 30  # bytes; what is asked for is refused before it could come to more
MAX_IDS: Final = 1 << 20  # of one prompt
TIMEOUT: Final = 300.0  # seconds of one pass


class VllmPrefill:
    """A `Prefill` behind `base_url`, e.g. "http://127.0.0.1:8000". `model` is the name vLLM serves it by."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        unsafe_allow_remote: bool = False,
    ) -> None:
        self._base = URL(base_url)
        if not unsafe_allow_remote and not is_loopback(self._base.host):
            raise ConfigError("a prefill must be on loopback: its connection is not encrypted")
        self._model, self._timeout = model, timeout
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def render(self, path: str, body: bytes) -> tuple[int, ...]:
        asked = covered(path, body)
        prompt = asked.get("prompt")
        if path != CHAT and isinstance(prompt, list):
            return tuple(prompt)
        if path == CHAT:
            messages = [_message(message) for message in asked["messages"]]
            question: dict[str, Any] = {"messages": messages, "add_generation_prompt": True}
        else:
            question = {"prompt": prompt, "add_special_tokens": True}
        told = await self._post("tokenize", {"model": self._model, **question}, SLACK + 16 * MAX_IDS)
        return _ids(told)

    async def score(self, prompt_ids: Sequence[int], output_ids: Sequence[int], *, top: int) -> tuple[Row, ...]:
        ids, first = [*prompt_ids, *output_ids], len(prompt_ids)
        if not 0 < top <= MAX_TOP:
            raise BadRequest(f"{top} candidates a row are not given", rule="JDG-1")
        if not prompt_ids or any(token < 0 for token in ids) or len(ids) > MAX_IDS:
            raise BadRequest("a prompt without a token, or ids no vocabulary has", rule="JDG-1")
        if not output_ids:
            return ()
        limit = SLACK + len(ids) * (top + 1) * ENTRY
        if limit > MAX_ANSWER:
            raise BadRequest(f"{len(ids)} ids with {top} candidates are too many for one pass", rule="JDG-1")
        question = {
            "model": self._model,
            "prompt": ids,
            "max_tokens": 1,  # vLLM generates at least one; it is thrown away
            "temperature": 0,
            "prompt_logprobs": top,
        }
        told = await self._post("v1/completions", question, limit)
        return _rows(told, ids, first, top)

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _post(self, path: str, question: dict[str, Any], limit: int) -> Any:
        if self._closed:
            raise EngineUnavailable("the prefill is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),  # as for engines: idle ones are closed without a word
                headers=self._headers,
                trust_env=False,
            )
        try:
            async with asyncio.timeout(self._timeout):
                async with self._session.post(self._base / path, json=question, allow_redirects=False) as response:
                    body = await _bounded(response, limit)
        except TimeoutError:
            raise DeadlineExceeded(f"vLLM did not answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"vLLM is not reachable or broke off: {type(error).__name__}") from None
        if response.status in (400, 404, 422):
            raise BadRequest(f"vLLM refused the ids or the model's name (status {response.status})", rule="JDG-1")
        if response.status != 200:
            raise EngineUnavailable(f"vLLM answered with status {response.status}")
        try:
            # Parsed beside the loop: rows of a long answer are tens of megabytes.
            return await asyncio.to_thread(json.loads, body)
        except (ValueError, RecursionError):
            raise EngineUnavailable("vLLM's answer is not JSON") from None


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """As the embedded template reads it: one text, and no role that templates do not know."""
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": message_text(message)}


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    while data := await response.content.readany():
        body += data
        if len(body) > limit:
            raise EngineUnavailable(f"vLLM's answer is larger than {limit} bytes")
    return bytes(body)


def _ids(told: Any) -> tuple[int, ...]:
    ids = told.get("tokens") if isinstance(told, dict) else None
    if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(type(one) is int and one >= 0 for one in ids):
        raise EngineUnavailable("vLLM's tokenizer answered in another form than documented")
    return tuple(ids)


def _rows(told: Any, ids: Sequence[int], first: int, top: int) -> tuple[Row, ...]:
    """The rows of positions `first` and later, in the documented form or not at all."""
    try:
        (choice,) = told["choices"]
        listed = choice["prompt_logprobs"]
        if len(listed) != len(ids):
            raise EngineUnavailable(f"vLLM gave {len(listed)} rows for {len(ids)} ids")
        return tuple(_row(listed[place], ids[place], top) for place in range(first, len(ids)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EngineUnavailable("vLLM's rows are in another form than documented") from None


def _row(entries: dict[str, Any], token: int, top: int) -> Row:
    if len(entries) > top + 1:
        raise ValueError("more candidates than asked for")
    candidates, own = [], None
    for name, entry in entries.items():
        identity, logit, rank = int(name), float(entry["logprob"]), entry["rank"]
        if type(rank) is not int or rank < 1 or identity < 0 or not math.isfinite(logit):
            raise ValueError("an impossible candidate")
        if identity == token:
            own = (logit, rank - 1)
        if rank <= top:
            candidates.append((identity, logit))
    if own is None:
        raise ValueError("the scored token is not among its row")
    candidates.sort(key=lambda one: (-one[1], one[0]))
    # vLLM's rank counts equal logits before it; ours goes by the order of candidates where it is one of them.
    place = next((at for at, (identity, _) in enumerate(candidates) if identity == token), own[1])
    return Row(candidates=tuple(candidates), chosen=own[0], chosen_rank=place)
