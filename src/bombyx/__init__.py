# SPDX-License-Identifier: Apache-2.0
"""bombyx: private, verified, paid AI inference.

    import bombyx

    client = bombyx.openai()        # the stock openai.OpenAI; prompts are sealed to attested enclaves
    answer = client.chat.completions.create(model="SmolLM2-135M-Instruct", messages=[...])

Its channels and receipts lie in a folder of their own, apart from the endpoint's; one process at a time uses a folder,
`state_dir` names another.

`network` names how to reach a network: a descriptor file, its content as a dict, or None for the one that `bombyx
up` runs on this machine. Nothing is sent before the first request; constructing a client does no I/O.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bombyx.errors import (
    AttestationError,
    BombyxError,
    BudgetExceeded,
    LocalError,
    PaymentError,
    PeerError,
    ReceiptError,
    StreamTruncated,
    Unavailable,
    UntrustedProxyError,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from bombyx.adapters.openai_transport import AnswerCut, AsyncBombyxTransport, BombyxTransport
    from bombyx.roles.agent import Agent
    from bombyx.roles.client.core import Client

__all__ = [
    "openai",
    "async_openai",
    "connect",
    "agent",
    "Client",
    "BombyxTransport",
    "AsyncBombyxTransport",
    "AnswerCut",
    "BombyxError",
    "LocalError",
    "BudgetExceeded",
    "PeerError",
    "AttestationError",
    "StreamTruncated",
    "PaymentError",
    "ReceiptError",
    "UntrustedProxyError",
    "Unavailable",
]

Network = str | Path | dict[str, Any] | None
_LAZY = {
    "Client": "bombyx.roles.client.core",
    "BombyxTransport": "bombyx.adapters.openai_transport",
    "AsyncBombyxTransport": "bombyx.adapters.openai_transport",
    "AnswerCut": "bombyx.adapters.openai_transport",
}


def openai(
    network: Network = None, *, state_dir: Path | None = None, budget: int | None = None, **options: Any
) -> OpenAI:
    """A stock `openai.OpenAI` whose requests are sealed, checked and paid for in this process. Close it when done."""
    import httpx
    from openai import OpenAI

    from bombyx.adapters.openai_transport import BombyxTransport

    transport = BombyxTransport(lambda: connect(network, state_dir=state_dir, budget=budget))
    # openai 3 names httpx2 and takes either. Deadlines are the client's own: no timeout here.
    http: Any = httpx.Client(transport=transport, timeout=None)  # noqa: S113
    return OpenAI(http_client=http, **_options(options))


def async_openai(
    network: Network = None, *, state_dir: Path | None = None, budget: int | None = None, **options: Any
) -> AsyncOpenAI:
    """The same for `openai.AsyncOpenAI`; use it on one event loop."""
    import httpx
    from openai import AsyncOpenAI

    from bombyx.adapters.openai_transport import AsyncBombyxTransport

    transport = AsyncBombyxTransport(lambda: connect(network, state_dir=state_dir, budget=budget))
    http: Any = httpx.AsyncClient(transport=transport, timeout=None)  # noqa: S113
    return AsyncOpenAI(http_client=http, **_options(options))


async def connect(network: Network = None, *, state_dir: Path | None = None, budget: int | None = None) -> Client:
    """A started `Client`: `await client.request("POST", "/v1/chat/completions", {}, body)`."""
    from bombyx.compose import build_client

    named = str(network) if isinstance(network, Path) else network
    return await build_client(named, state_dir=state_dir, budget=budget)


async def agent(
    network: Network = None, *, endpoint: str = "", state_dir: Path | None = None, budget: int | None = None
) -> Agent:
    """An agent inside an enclave: its wallet is derived there, and `await agent.say(...)` gives a `Statement`.

    `endpoint`: socket or URL of dstack's guest agent; empty: where its own clients look. Outside: `ConfigError`.
    """
    from bombyx.compose.agent_client import build_agent

    named = str(network) if isinstance(network, Path) else network
    return await build_agent(named, endpoint=endpoint, state_dir=state_dir, budget=budget)


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """No key and no address are needed: nothing leaves this process but sealed bytes."""
    return {"api_key": "unused", "base_url": "http://bombyx.invalid/v1", **options}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bombyx' has no attribute {name!r}")
