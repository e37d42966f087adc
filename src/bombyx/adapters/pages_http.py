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
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=SECONDS), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return await _bounded(response, most)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"a validator's page did not answer ({type(error).__name__})", rule="AUD-54") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    if response.status != 200:
        raise Unavailable(f"a validator's page answered {response.status}", rule="AUD-54")
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > most:
            raise MalformedMessage(f"a page of more than {most} bytes", peer=Peer.VALIDATOR, rule="AUD-54")
    return bytes(data)
