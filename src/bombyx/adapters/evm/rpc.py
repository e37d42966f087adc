# SPDX-License-Identifier: Apache-2.0
"""A thin JSON-RPC client: one POST a call, several nodes in order of preference, every answer bounded and checked.

Always: an answer is a JSON-RPC 2.0 object with our id and either a result or an error; anything else (late, too large,
garbage, another call's id, a node of another chain) counts as no answer, and the next node is asked. When none answers:
`Unavailable`. A node's own error object is an answer and is raised as `RpcError`, which never leaves this package.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from bombyx.errors import ConfigError, Unavailable

MAX_ANSWER: Final = 32 << 20  # bytes; logs of a busy range are the largest
TIMEOUT: Final = 10.0  # seconds a node has for one call
_BUSY: Final = frozenset({-32005, -32016, 429})  # "limit exceeded" and its dialects: another node may be free


class RpcError(Exception):
    """A node refuses: code, message and revert data. Translated before it leaves the adapter."""

    def __init__(self, code: int, message: str, data: bytes) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.data = data


class _NoAnswer(Exception):
    pass


class Rpc:
    """`urls` are nodes of one chain, the preferred one first."""

    def __init__(self, urls: Sequence[str], *, chain_id: int | None = None, timeout: float = TIMEOUT) -> None:
        if not urls:
            raise ConfigError("no RPC address is given", rule="LEDGER-2")
        self.urls = tuple(urls)
        self._chain_id = chain_id
        self._timeout = timeout
        self._first = 0
        self._checked: set[str] = set()
        self._ids = itertools.count(1)
        self._http: aiohttp.ClientSession | None = None

    async def chain_id(self) -> int:
        """The chain's id; once known, nodes that give another one are not asked."""
        if self._chain_id is None:
            self._chain_id = as_int(await self.call("eth_chainId"))
        return self._chain_id

    async def call(self, method: str, *params: Any) -> Any:
        """The result of the first node that answers. Raises `RpcError` or `Unavailable`."""
        reasons = []
        for turn in range(len(self.urls)):
            position = (self._first + turn) % len(self.urls)
            url = self.urls[position]
            try:
                await self._check_chain(url, method)
                result = await self._post(url, method, params)
            except _NoAnswer as reason:
                self._checked.discard(url)
                reasons.append(f"{_host(url)} {reason}")
                continue
            self._first = position
            return result
        raise Unavailable(f"no chain node answers {method}: {'; '.join(reasons)}", retry_after=1.0, rule="LEDGER-2")

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def _check_chain(self, url: str, method: str) -> None:
        if url in self._checked or self._chain_id is None or method == "eth_chainId":
            return
        found = as_int(await self._post(url, "eth_chainId", ()))
        if found != self._chain_id:
            raise _NoAnswer(f"is on chain {found}, not {self._chain_id}")
        self._checked.add(url)

    async def _post(self, url: str, method: str, params: Sequence[Any]) -> Any:
        call_id = next(self._ids)
        body = {"jsonrpc": "2.0", "id": call_id, "method": method, "params": list(params)}
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout))
        try:
            async with self._http.post(url, json=body) as response:
                text = await _bounded(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _NoAnswer(f"does not answer ({type(error).__name__})") from None
        return _result(text, status, call_id)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER:
            raise _NoAnswer(f"answers with more than {MAX_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _result(text: bytes, status: int, call_id: int) -> Any:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise _NoAnswer(f"answers {status} with something that is no JSON") from None
    if not isinstance(answer, dict) or answer.get("id") != call_id:
        raise _NoAnswer(f"answers {status} to another call")
    error = answer.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        if status == 429 or code in _BUSY:
            raise _NoAnswer("is busy")
        raise RpcError(code if isinstance(code, int) else 0, str(error.get("message"))[:500], _revert_data(error))
    if status != 200 or "result" not in answer:
        raise _NoAnswer(f"answers {status} without a result")
    return answer["result"]


def _revert_data(error: dict[str, Any]) -> bytes:
    """Where nodes put what a contract reverted with: `data`, or `data.data`."""
    data = error.get("data")
    if isinstance(data, dict):
        data = data.get("data")
    try:
        return bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") else b""
    except ValueError:
        return b""


def as_int(value: Any) -> int:
    """A JSON-RPC quantity."""
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 66:
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise Unavailable("a chain node answers with something that is no number", rule="LEDGER-2")


def as_bytes(value: Any, size: int | None = None) -> bytes:
    """JSON-RPC data, of `size` bytes where one is asked for."""
    try:
        if isinstance(value, str) and value.startswith("0x"):
            found = bytes.fromhex(value[2:])
            if size is None or len(found) == size:
                return found
    except ValueError:
        pass
    raise Unavailable("a chain node answers with something that is no data", rule="LEDGER-2")


def _host(url: str) -> str:
    """The address without what may be a key in its path or user name."""
    return url.split("://")[-1].split("@")[-1].split("/")[0]
