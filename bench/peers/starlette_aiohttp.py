# SPDX-License-Identifier: Apache-2.0
"""A gateway by somebody who measured: Starlette, and one shared aiohttp client."""

import os
from collections.abc import AsyncIterator

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

UPSTREAM = os.environ["BENCH_UPSTREAM"]
sessions: list[aiohttp.ClientSession] = []


def session() -> aiohttp.ClientSession:
    if not sessions:
        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout()))
    return sessions[0]


async def complete(request: Request) -> Response:
    body = await request.body()
    headers = {"content-type": "application/json"}
    answer = await session().post(f"{UPSTREAM}/v1/chat/completions", data=body, headers=headers)
    if "event-stream" not in answer.headers.get("content-type", ""):
        return Response(await answer.read(), status_code=answer.status, media_type="application/json")

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in answer.content.iter_any():
            yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
