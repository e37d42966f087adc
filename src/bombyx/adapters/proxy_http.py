# SPDX-License-Identifier: Apache-2.0
"""`ports.ProxyTransport` over HTTP, with aiohttp: one pooled session per proxy.

Not here: any trust. What comes back is a stranger's bytes; roles/client judges them.

Always: redirects are not followed and no cookie or environment proxy is used (each would send a sealed request, or the
fact of it, somewhere the user did not name); sizes of small answers are bounded; foreign exceptions do not pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import aiohttp

from bombyx.errors import DeadlineExceeded, MalformedMessage, Peer, StreamTruncated, Unavailable, Unreachable

MAX_SMALL: Final = 33 << 20  # bytes of a directory or a blob; Directory.MAX_SIZE is 32 MiB
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 150.0  # silence between two reads; above the default deadline of 120 s
GET_SECONDS: Final = 30.0


class HttpProxyResponse:
    """One answer of a proxy, open until its body ends or `aclose`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    async def body(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._response.content.iter_any():
                yield data
        except TimeoutError:
            raise DeadlineExceeded("the proxy fell silent inside an answer", rule="CLI-7") from None
        except (aiohttp.ClientError, OSError) as error:
            raise StreamTruncated(
                f"the connection to the proxy broke inside an answer ({type(error).__name__})",
                peer=Peer.PROXY,
                rule="SEAL-7",
            ) from None

    async def aclose(self) -> None:
        """Also the way to cancel: closing an unfinished answer closes its connection."""
        self._response.close()


class HttpProxyTransport:
    """How a client reaches one proxy."""

    def __init__(self, url: str, *, connections: int = 100, read_seconds: float = READ_SECONDS) -> None:
        self.url = url.rstrip("/")
        self._connections = connections
        self._read_seconds = read_seconds
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=GET_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with self._opened().get(self.url + path, timeout=timeout, allow_redirects=False) as response:
                return response.status, await _bounded(response)
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(self.url, error) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(f"the proxy at {self.url} did not answer ({type(error).__name__})") from None

    async def post(self, path: str, content_type: str, body: bytes) -> HttpProxyResponse:
        headers = {"content-type": content_type, "incremental": "?1"}
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=self._read_seconds)
        try:
            response = await self._opened().post(
                self.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(self.url, error) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(f"the proxy at {self.url} broke off before its answer ({type(error).__name__})") from None
        return HttpProxyResponse(response)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=256 << 10,
            )
        return self._session


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > MAX_SMALL:
            raise MalformedMessage(f"a proxy's answer above {MAX_SMALL} bytes", peer=Peer.PROXY, rule="CLI-2")
    return bytes(data)


def _unreachable(url: str, error: Exception) -> Unreachable:
    return Unreachable(f"no connection to the proxy at {url} ({type(error).__name__})", retry_after=1.0)
