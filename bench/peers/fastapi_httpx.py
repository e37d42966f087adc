# SPDX-License-Identifier: Apache-2.0
"""A gateway as most people write it: FastAPI, and one shared httpx client."""

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

UPSTREAM = os.environ["BENCH_UPSTREAM"]
app = FastAPI()
client = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))


@app.post("/v1/chat/completions")  # type: ignore[untyped-decorator]  # lives in an environment of its own
async def complete(request: Request) -> Response:
    body = await request.json()
    asked = client.build_request("POST", f"{UPSTREAM}/v1/chat/completions", json=body)
    answer = await client.send(asked, stream=True)
    if not body.get("stream"):
        content = await answer.aread()
        return Response(content, status_code=answer.status_code, media_type="application/json")

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in answer.aiter_raw():
            yield piece
        await answer.aclose()

    return StreamingResponse(pieces(), media_type="text/event-stream")
