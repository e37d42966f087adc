# SPDX-License-Identifier: Apache-2.0
"""Pages of other validators over HTTP: bounded in size and time, never followed elsewhere.

Not here: any trust. An address comes from the chain, where its owner wrote it; what it gives is a stranger's bytes.
"""

from __future__ import annotations

from typing import Final

import aiohttp

from bombyx.errors import MalformedMessage, Peer, Unavailable

SECONDS: Final = 10.0
SCHEMES: Final = ("http://", "https://")


class HttpPages:
    """`roles.validator.asking.Pages`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, most: int) -> bytes:
        if not url.startswith(SCHEMES) or not url.isascii() or not url.isprintable():
            raise MalformedMessage("a page that is no http address", peer=Peer.VALIDATOR, rule="AUD-54")
        try:
            async with self._opened().get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise Unavailable(f"a validator's page answered {response.status}", rule="AUD-54")
                return await _read(response, most)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"a validator's page did not answer ({type(error).__name__})", rule="AUD-54") from None

    async def forward(self, method: str, url: str, body: bytes, most: int) -> tuple[int, bytes]:
        """`roles.proxy.opt_in.Forward`: status and at most `most` bytes, whatever the status says."""
        if not url.startswith(SCHEMES) or not url.isascii() or not url.isprintable():
            raise Unavailable("the registry names no http address there", rule="AUD-57")
        try:
            async with self._opened().request(method, url, data=body or None, allow_redirects=False) as response:
                return response.status, await _read(response, most)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"the validator did not answer ({type(error).__name__})", rule="AUD-57") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=SECONDS), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > most:
            raise MalformedMessage(f"a page of more than {most} bytes", peer=Peer.VALIDATOR, rule="AUD-54")
    return bytes(data)
