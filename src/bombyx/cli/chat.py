# SPDX-License-Identifier: Apache-2.0
"""`bombyx chat`: talk to a model, see the answer as it comes and the receipt behind it.

Goes through the local endpoint where one runs, else does everything in this process, with keys and books of its
own: two processes must never spend from one channel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import orjson
import typer
from rich.console import Console

from bombyx.adapters.openai_transport import AnswerCut, AsyncBombyxTransport
from bombyx.cli.output import print_json
from bombyx.compose import build_client
from bombyx.config import ClientConfig, load, state_home
from bombyx.errors import Peer, StreamTruncated, Unavailable

app = typer.Typer()
SECONDS: Final = 300.0
Message = dict[str, str]


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="ask this once and leave; without it, a conversation")] = None,
    model: Annotated[str, typer.Option(help="default: the first one offered")] = "",
    system: Annotated[str, typer.Option(help="system message")] = "You are a helpful assistant.",
    network: Annotated[Path | None, typer.Option(help="network descriptor; then no endpoint is used")] = None,
    endpoint: Annotated[str, typer.Option(help="an endpoint that runs; default: the one of this machine")] = "",
    max_tokens: Annotated[int, typer.Option(help="most tokens of one answer", min=1)] = 512,
    json: Annotated[bool, typer.Option("--json", help="with a prompt: print one JSON object")] = False,
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends the conversation."""
    if json and prompt is None:
        raise typer.BadParameter("--json goes with a prompt")
    asyncio.run(_chat(prompt, model, system, network, endpoint, max_tokens, json))


async def _chat(
    prompt: str | None, model: str, system: str, network: Path | None, endpoint: str, max_tokens: int, json: bool
) -> None:
    console = Console(highlight=False, stderr=json)
    async with _opened(network, endpoint) as way:
        name = model or await way.first_model()
        messages: list[Message] = [{"role": "system", "content": system}]
        asked = prompt if prompt is not None else await _read(console)
        while asked:
            messages.append({"role": "user", "content": asked})
            answer, request_id = await _answer(way, name, messages, max_tokens, console, quiet=json)
            messages.append({"role": "assistant", "content": answer})
            receipt = await way.receipt(request_id)
            if json:
                print_json({"model": name, "answer": answer, "receipt": receipt})
            else:
                console.print(f"[{_line(receipt)}]", style="dim", markup=False)
            asked = "" if prompt is not None else await _read(console)


async def _answer(
    way: Way, model: str, messages: list[Message], max_tokens: int, console: Console, *, quiet: bool
) -> tuple[str, str]:
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens}
    pieces: list[str] = []
    async with way.http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise Unavailable(_message(await response.aread()))
        async for piece in _texts(response):
            pieces.append(piece)
            if not quiet:
                console.print(piece, end="", markup=False, soft_wrap=True)
    if not quiet:
        console.print()
    return "".join(pieces), response.headers["x-bombyx-request-id"]


class Way:
    """How questions travel: over HTTP to an endpoint, or through a transport in this process."""

    def __init__(self, http: httpx.AsyncClient, transport: AsyncBombyxTransport | None) -> None:
        self.http = http
        self._transport = transport

    async def first_model(self) -> str:
        response = await self.http.get("/v1/models")
        if response.status_code != 200:
            raise Unavailable(_message(response.content))
        models = response.json()["data"]
        if not models:
            raise Unavailable("no model is served")
        return str(models[0]["id"])

    async def receipt(self, request_id: str) -> dict[str, Any]:
        if self._transport is None:
            response = await self.http.get(f"/v1/receipts/{request_id}")
            value: dict[str, Any] = response.json()
            return value
        from bombyx.roles.client.receipts import summary

        client: Any = await self._transport.client()
        await client.settled()
        return summary((await client.book.get(request_id))[1])


@contextlib.asynccontextmanager
async def _opened(network: Path | None, endpoint: str) -> AsyncIterator[Way]:
    url = endpoint or (f"http://127.0.0.1:{load(ClientConfig).port}" if network is None else "")
    if url and (endpoint or await _answers(url)):
        async with httpx.AsyncClient(base_url=url.removesuffix("/v1"), timeout=SECONDS, trust_env=False) as http:
            yield Way(http, None)
        return
    named = str(network) if network else None
    transport = AsyncBombyxTransport(lambda: build_client(named, state_dir=state_home() / "chat"))
    async with httpx.AsyncClient(transport=transport, base_url="http://bombyx.invalid", timeout=SECONDS) as http:
        yield Way(http, transport)


async def _answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as http:
            return (await http.get(f"{url}/healthz")).status_code == 200
    except httpx.HTTPError:
        return False


async def _texts(response: httpx.Response) -> AsyncIterator[str]:
    try:
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line.startswith("data: [DONE]"):
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise StreamTruncated(_message(line[6:].encode()), peer=Peer.UNKNOWN)
            for choice in event.get("choices", ()):
                yield choice.get("delta", {}).get("content") or ""
    except AnswerCut as cut:
        raise cut.error from None
    except httpx.HTTPError as error:
        raise StreamTruncated(f"the answer was cut ({type(error).__name__})", peer=Peer.UNKNOWN) from None


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "the endpoint gave an answer that is not OpenAI's"


def _line(receipt: dict[str, Any]) -> str:
    units = f"{receipt.get('input_units', 0)} in, {receipt.get('output_units', 0)} out"
    return (
        f"{receipt['trust_class']} enclave; {units}; paid {receipt['paid']}; text {receipt['text']};"
        f" receipt {receipt.get('request_id', '')[:12]}"
    )


async def _read(console: Console) -> str:
    try:
        return (await asyncio.to_thread(console.input, "you> ")).strip()
    except EOFError:
        return ""
