# SPDX-License-Identifier: Apache-2.0
"""Any OpenAI-compatible model server over HTTP: vLLM, SGLang, Ollama, llama.cpp. NOT a place where prompts are changed.

Always: the server is on loopback, inside the enclave; no buffer grows past its bound; a closed run closes its
connection, which makes the server stop (llama.cpp: for streams only; a whole answer nobody waits for runs to its output
limit); foreign exceptions never pass, and no error message holds content.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import aiohttp
from yarl import URL

from bombyx.adapters.engine_answer import Answer
from bombyx.adapters.engine_dialect import Dialect, Plan, plan_request
from bombyx.adapters.sse import MAX_EVENT, SseSplitter
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.errors import ConfigError, DeadlineExceeded, EngineUnavailable
from bombyx.ports import EngineChunk, EngineEnd, EngineEvent, EngineHead, EngineRequest, EngineUsage

MAX_BODY: Final = 32 * 1024 * 1024  # bytes of a whole answer
MAX_ERROR_BODY: Final = 64 * 1024  # bytes of an engine's refusal that are passed on
CONNECT_TIMEOUT: Final = 5.0  # seconds; it is on loopback
IDLE_TIMEOUT: Final = 120.0  # seconds without an event; a long prompt on a slow machine may take a minute to read
# `owned_by` in the model list. Ollama says "library", others their own name: those are `plain`.
OWNERS: Final = {"vllm": Dialect.VLLM, "llamacpp": Dialect.LLAMA_CPP, "sglang": Dialect.SGLANG}
RETRY_AFTER: Final = 2.0  # seconds

_T = TypeVar("_T")


class OpenAIEngine:
    """An `Engine` behind `base_url`, e.g. "http://127.0.0.1:8000". `index` lets it find ids llama.cpp withholds."""

    def __init__(
        self,
        base_url: str,
        *,
        dialect: Dialect = Dialect.PLAIN,
        index: TokenIndex | None = None,
        api_key: str | None = None,
        idle_timeout: float = IDLE_TIMEOUT,
        max_connections: int = 256,
        unsafe_allow_remote: bool = False,
        build: str = "",
    ) -> None:
        self._base = URL(base_url)
        if not unsafe_allow_remote and not is_loopback(self._base.host):
            raise ConfigError("an engine must be on loopback: its connection is not encrypted")
        self._dialect = dialect
        self._build = build  # what the manifest calls this engine; audits name it
        self._index = index
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._idle_timeout = idle_timeout
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def models(self) -> tuple[str, ...]:
        """What the server says it serves."""
        try:
            return tuple(str(model["id"]) for model in await self._listed())
        except (KeyError, TypeError):
            raise EngineUnavailable("the engine's model list is not readable") from None

    async def detect(self) -> Dialect:
        """Speak the dialect of the engine that owns the listed models; `plain` where that is none we know."""
        try:
            owners = {str(model.get("owned_by", "")).lower() for model in await self._listed()}
        except (AttributeError, TypeError):
            owners = set()
        self._dialect = OWNERS.get(owners.pop(), Dialect.PLAIN) if len(owners) == 1 else Dialect.PLAIN
        return self._dialect

    async def _listed(self) -> Any:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT * 2):
                async with self._http().get(self._base / "v1/models", allow_redirects=False) as response:
                    if response.status != 200:
                        raise EngineUnavailable(f"the engine's model list came with status {response.status}")
                    listed = json.loads(await _read(response, 1 << 20))
            return listed["data"]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _gone(error) from None
        except (ValueError, KeyError, TypeError):
            raise EngineUnavailable("the engine's model list is not readable") from None

    def run(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """One request; see `ports.Engine`."""
        return self.run_with(request, {})

    async def run_with(self, request: EngineRequest, additions: Mapping[str, Any]) -> AsyncGenerator[EngineEvent, None]:
        """`run`, with fields of the engine's own set beside the application's."""
        plan = plan_request(request, self._dialect, additions)
        timer = _Timer(request.deadline_seconds, self._idle_timeout if request.stream else None)
        response = await timer.wait(self._post(request.path, plan.body))
        try:
            async for event in self._events(plan, response, timer):
                yield event
        finally:
            response.close()  # cuts the connection of an unfinished answer: that is how the server learns to stop

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        headers = {"Content-Type": "application/json"}
        return await self._http().post(self._base / path.lstrip("/"), data=body, headers=headers, allow_redirects=False)

    async def _events(self, plan: Plan, response: aiohttp.ClientResponse, timer: _Timer) -> AsyncIterator[EngineEvent]:
        if response.status != 200:
            body = await timer.wait(_read(response, MAX_ERROR_BODY))
            yield EngineHead(status=_refusal(response.status, body), content_type=response.content_type)
            yield EngineChunk(data=body)
            yield EngineEnd(usage=_NOTHING)
            return
        if plan.stream != (response.content_type == "text/event-stream"):
            raise EngineUnavailable("the engine answered in another form than was asked for")
        yield EngineHead(status=200, content_type=response.content_type)
        answer = Answer(plan, self._index)
        if plan.stream:
            # llama.cpp's last event may repeat the prompt, hence the request's size
            splitter = SseSplitter(MAX_EVENT + 2 * len(plan.body))
            async for chunk in _stream(answer, splitter, response, timer):
                yield chunk
        else:
            yield answer.body(await timer.wait(_read(response, MAX_BODY)))
        usage = answer.usage()
        if usage.audit is not None:
            usage = replace(usage, audit=replace(usage.audit, engine=self._build))
        yield EngineEnd(usage=usage)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # One connection per request: servers close idle ones without a word (llama.cpp, uvicorn after 5 s),
                # and a POST that meets such a one cannot be repeated safely. On loopback a new one costs 0.1 ms.
                connector=aiohttp.TCPConnector(limit=self._max_connections, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                trust_env=False,  # a proxy from the environment would carry prompts out of the enclave
            )
        return self._session


class _Timer:
    """The deadline of one request, and how long its engine may be silent."""

    def __init__(self, deadline_seconds: float, idle_timeout: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + deadline_seconds
        self._idle = idle_timeout
        self._heard = self._loop.time()

    def heard(self) -> None:
        """The engine made progress. Its pings are not progress: a hung engine still pings."""
        self._heard = self._loop.time()

    async def wait(self, answer: Awaitable[_T]) -> _T:
        until = self._deadline if self._idle is None else min(self._deadline, self._heard + self._idle)
        try:
            async with asyncio.timeout_at(until):
                return await answer
        except TimeoutError:
            if self._loop.time() >= self._deadline:
                raise DeadlineExceeded("the engine did not finish before the deadline") from None
            raise EngineUnavailable("the engine hung: it was silent for too long", retry_after=RETRY_AFTER) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _gone(error) from None


async def _stream(
    answer: Answer, splitter: SseSplitter, response: aiohttp.ClientResponse, timer: _Timer
) -> AsyncIterator[EngineChunk]:
    while not answer.done:
        data = await timer.wait(response.content.readany())
        if not data:
            break
        for event in splitter.feed(data):
            if event.startswith(b"data:"):
                timer.heard()
            chunk = answer.event(event)
            if chunk is not None:
                yield chunk
    splitter.finish()
    if not answer.done:
        raise EngineUnavailable("the engine's stream stopped before its end")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    while data := await response.content.readany():
        body += data
        if len(body) > limit:
            raise EngineUnavailable(f"the engine's answer is larger than {limit} bytes")
    return bytes(body)


def _refusal(status: int, body: bytes) -> int:
    """The status an application sees for an engine's refusal. Raises when it is not the application's fault."""
    if 400 <= status < 500 and status not in (401, 403, 407, 408, 429):
        return status
    if status in (500, 501) and b"not support" in body:  # llama.cpp: images or embeddings this model does not have
        return 400
    if status in (401, 403):
        raise EngineUnavailable("the engine refused our key")
    raise EngineUnavailable(f"the engine answered with status {status}", retry_after=RETRY_AFTER)


def _gone(error: BaseException) -> EngineUnavailable:
    return EngineUnavailable(
        f"the engine is not reachable or broke off: {type(error).__name__}", retry_after=RETRY_AFTER
    )


def is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_NOTHING: Final = EngineUsage(input=0, cached_input=0, output=0, ids=(), finish=(), verified=True, note="")
