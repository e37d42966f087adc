# SPDX-License-Identifier: Apache-2.0
"""A chain node as one may get it: late, twice, or in garbage. It stands on loopback in front of a good one."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from enum import StrEnum

import aiohttp
from aiohttp import web

SHARE = 0.3  # of the calls that go wrong
LATE = 11.0  # seconds; more than our client waits


class Mood(StrEnum):
    GOOD = "good"
    LATE = "late"  # carried out, answered when nobody waits any more
    TWICE = "twice"  # carried out two times
    GARBAGE = "garbage"  # carried out, answered with anything


class Relay:
    """`mood` may be changed at any time; `spoilt` counts what went wrong under each."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.mood = Mood.GOOD
        self.spoilt: Counter[Mood] = Counter()
        self.url = ""
        self._chance = random.Random(7)  # repeatable
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> Relay:
        self._http = aiohttp.ClientSession()
        app = web.Application(client_max_size=1 << 25)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def close(self) -> None:
        if self._runner is not None and self._http is not None:
            await self._runner.cleanup()
            await self._http.close()

    async def _handle(self, request: web.Request) -> web.Response:
        body, mood = await request.read(), self.mood
        sending = json.loads(body).get("method") == "eth_sendRawTransaction"
        spoil = mood is not Mood.GOOD and (sending or self._chance.random() < SHARE)
        try:
            answer = await self._forward(body)
            if not spoil:
                return answer
            self.spoilt[mood] += 1
            if mood is Mood.TWICE:
                return await self._forward(body)
        except aiohttp.ClientError:
            return web.Response(status=502)
        if mood is Mood.LATE:
            await asyncio.sleep(LATE)
            return answer
        return web.Response(
            body=self._chance.choice([b"", b"<html>", b'{"id":1}', b"[" * 999, self._chance.randbytes(64)])
        )

    async def _forward(self, body: bytes) -> web.Response:
        assert self._http is not None
        headers = {"content-type": "application/json"}
        async with self._http.post(self.upstream, data=body, headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)
