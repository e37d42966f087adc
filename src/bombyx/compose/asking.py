# SPDX-License-Identifier: Apache-2.0
"""Ask a running network one question over its public interfaces, and collect what there is to show about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from bombyx.errors import StreamTruncated, Unavailable

SECONDS = 180.0
SYSTEM = "You are a helpful assistant."  # the small model's own default prompt makes it ramble


async def ask(
    endpoint: str, prompt: str, *, model: str | None = None, on_text: Callable[[str], None] = lambda _: None
) -> tuple[str, str]:
    """(answer, request id) of one streamed chat completion at temperature 0. `on_text` gets each piece as it comes."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as http:
        name = model or await _first_model(http, endpoint)
        body = {
            "model": name,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
            "stream": True,
            "temperature": 0,
            "max_tokens": 128,
        }
        async with http.post(f"{endpoint}/chat/completions", json=body) as response:
            if response.status != 200:
                raise Unavailable(f"the endpoint answered {response.status}: {(await response.text())[:500]}")
            pieces = []
            async for event in _events(response):
                text = _text_of(event)
                pieces.append(text)
                on_text(text)
            return "".join(pieces), response.headers["x-bombyx-request-id"]


async def collect(endpoint: str, proxy_url: str, request_id: str) -> dict[str, Any]:
    """The receipt, the appraisal of the worker that answered, and what the proxy saw."""
    root = endpoint.removesuffix("/v1")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        receipt = await _json(http, f"{endpoint}/receipts/{request_id}")
        checks = (await _json(http, f"{endpoint}/receipts/{request_id}/verify"))["checks"]
        verification = await _json(http, f"{root}/verification?format=json")
        view = await _json(http, f"{proxy_url}/v1/view/{request_id}")
    appraisal = next(a for a in verification["appraisals"] if a["operator"] == receipt["operator"])
    return {"receipt": receipt, "checks": checks, "appraisal": appraisal, "view": view, "verification": verification}


async def _first_model(http: aiohttp.ClientSession, endpoint: str) -> str:
    models = (await _json(http, f"{endpoint}/models"))["data"]
    if not models:
        raise Unavailable("no model is served")
    return str(models[0]["id"])


async def _json(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(url) as response:
        if response.status != 200:
            raise Unavailable(f"{url} answered {response.status}")
        return await response.json(content_type=None)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in response.content:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise StreamTruncated(str(event["error"].get("message", "the answer was cut")))
                yield event
    except aiohttp.ClientError as error:
        raise StreamTruncated(f"the answer was cut: {type(error).__name__}") from None


def _text_of(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")
