# SPDX-License-Identifier: Apache-2.0
"""One look at a network from outside: each proxy's directory against the registry and against the other proxies'.

Also asks a client that runs here what it noticed over time: one look sees inventing and gross hiding, only many see
favouring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.compose.client import settings_of
from bombyx.compose.service import open_ledger
from bombyx.config import ClientConfig, NetworkDescriptor
from bombyx.errors import BombyxError
from bombyx.ports import OperatorRole
from bombyx.roles.client.alarm import Watch
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.network import Network, View
from bombyx.roles.client.settings import ProxyLine

SECONDS = 10.0
MAX_PAGE = 16 << 20  # bytes of a client's own page


async def check(network: NetworkDescriptor, endpoint: str | None) -> dict[str, Any]:
    """`{proxies, alarms, registered, noticed_by}`; `alarms` is empty when nothing is wrong that can be seen."""
    async with AsyncExitStack() as stack:
        ledger = open_ledger(network)
        stack.push_async_callback(ledger.close)
        lines = []
        for proxy in network.proxies:
            transport = HttpProxyTransport(proxy.url)
            stack.push_async_callback(transport.close)
            lines.append(ProxyLine(address=proxy.address, transport=transport, url=proxy.url))
        clock = SystemClock()
        seen = Network(settings_of(ClientConfig()), clock=clock, ledger=ledger, blobs=Blobs(MemoryStore()))
        looks = [await _look(seen, line) for line in lines]
        views = [view for view, _ in looks if view is not None]
        watch = Watch()
        watch.looked(views, clock.now())
        noticed = await _noticed(endpoint) if endpoint else None
        return {
            "registered": {str(role): len(await seen.operators(role)) for role in OperatorRole},
            "proxies": [_row(line, view, why, views) for line, (view, why) in zip(lines, looks, strict=True)],
            "alarms": watch.as_rows() + (noticed or []),
            "noticed_by": endpoint if noticed is not None else None,
        }


async def _look(network: Network, line: ProxyLine) -> tuple[View | None, str]:
    try:
        await network.proxy(line)
        return await network.view(line, fresh=True), ""
    except BombyxError as error:
        return None, error.message


def _row(line: ProxyLine, view: View | None, why: str, views: Sequence[View]) -> dict[str, Any]:
    row: dict[str, Any] = {"proxy": str(line.address), "url": line.url, "error": why or None}
    if view is None:
        return row
    here = {offer.operator for offer in view.report.fit}
    elsewhere = {offer.operator for other in views if other is not view for offer in other.report.fit}
    return row | {
        "commission_bps": view.commission_bps,
        "listed": len(here),
        "invented": [str(who) for who in view.report.invented],
        "expired": [str(who) for who in view.report.expired],
        "registered_not_listed": [str(who) for who in view.report.hidden],
        "listed_elsewhere_only": [str(who) for who in sorted(elsewhere - here)],
    }


async def _noticed(endpoint: str) -> list[dict[str, Any]] | None:
    """Alarms of a client that runs here; None when none answers."""
    url = endpoint.rstrip("/").removesuffix("/v1") + "/verification?format=json"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as http,
            http.get(url, allow_redirects=False) as response,
        ):
            alarms = json.loads(await response.content.read(MAX_PAGE)).get("alarms")
            return [one for one in alarms if isinstance(one, dict)] if isinstance(alarms, list) else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, AttributeError):
        return None
