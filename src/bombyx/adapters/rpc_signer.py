# SPDX-License-Identifier: Apache-2.0
"""`ports.Signer` over JSON-RPC: an owner key that lives in clef, in a hardware wallet's bridge, or in another process.

It is asked for EIP-712 typed data alone, which its holder can read before saying yes; never for a bare digest. Always:
the signature it gives is checked against the digest we computed ourselves and the account we asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from bombyx.errors import ConfigError, MalformedMessage, PeerError, Unavailable
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.signing import recover

SECONDS: Final = 300.0  # somebody may have to press a button
MAX_ANSWER: Final = 65_536  # bytes
METHODS: Final = ("account_signTypedData", "eth_signTypedData_v4")  # clef's; everybody else's
UNKNOWN_METHOD: Final = -32_601


class RpcSigner:
    """One account of a signer at `url` (loopback, or https)."""

    def __init__(self, url: str, address: Address) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError("a signer is reached on loopback or by https", rule="WAL-6")
        self._url = url
        self._address = address

    @property
    def address(self) -> Address:
        return self._address

    async def sign_typed(self, data: Mapping[str, Any], digest: Digest) -> bytes:
        """65 bytes by our account over `digest`, which is `data`'s. `Unavailable` when it refuses or is not there."""
        problem: Any = None
        for method in METHODS:
            shown = dict(data) if method == METHODS[0] else json.dumps(data)
            answer = await self._call(method, [str(self.address), shown])
            if "error" not in answer:
                return self._checked(answer.get("result"), digest)
            problem = answer["error"]
            if not isinstance(problem, dict) or problem.get("code") != UNKNOWN_METHOD:
                break
        said = problem.get("message") if isinstance(problem, dict) else problem
        raise Unavailable(f"the signer refuses: {str(said)[:200]}", rule="WAL-6")

    def _checked(self, result: Any, digest: Digest) -> bytes:
        try:
            raw = bytes.fromhex(str(result).removeprefix("0x"))
            signature = raw[:64] + bytes([raw[64] + 27 if raw[64] < 27 else raw[64]])  # some give 0 or 1
            if recover(digest, signature) == self.address:
                return signature
        except (ValueError, IndexError, PeerError):
            pass
        raise MalformedMessage(f"the signer gave no signature of {self.address} for what was asked", rule="WAL-6")

    async def _call(self, method: str, params: list[Any]) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS), trust_env=False) as http,
                http.post(self._url, json=body, allow_redirects=False) as response,
            ):
                answer = json.loads(await response.content.read(MAX_ANSWER))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"the signer at {self._url} does not answer ({type(error).__name__})") from None
        if not isinstance(answer, dict):
            raise Unavailable("the signer answers with something that is no JSON-RPC", rule="WAL-6")
        return answer
