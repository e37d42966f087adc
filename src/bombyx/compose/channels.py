# SPDX-License-Identifier: Apache-2.0
"""A client's channels, opened for one command: its books, its keys where they are needed, the chain and the proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.sqlite import SqliteStore
from bombyx.adapters.state_folder import StateFolder
from bombyx.compose.client import settings_of
from bombyx.compose.wallet import Ask, client_ledger, kept_keys
from bombyx.config import ClientConfig, NetworkDescriptor
from bombyx.protocol.primitives import Secret
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.channels import Channels
from bombyx.roles.client.settings import ClientKeys, ProxyLine
from bombyx.roles.client.wallet import Wallet


@asynccontextmanager
async def open_channels(
    config: ClientConfig, network: NetworkDescriptor, state: Path, *, ask: Ask | None, change: bool
) -> AsyncIterator[tuple[Channels, Wallet]]:
    """`change`: the folder is locked and the owner's key is opened. Otherwise this only looks, beside a running client.

    Raises `ConfigError` when a client runs on the folder and something is to change.
    """
    async with AsyncExitStack() as stack:
        if change:
            stack.callback(StateFolder.hold(state).release)
        ledger = client_ledger(config, network, state if change else None)
        stack.push_async_callback(ledger.close)
        store = SqliteStore.open(state / "client.db")
        stack.push_async_callback(store.close)
        lines = []
        for proxy in network.proxies:
            transport = HttpProxyTransport(proxy.url)
            stack.push_async_callback(transport.close)
            lines.append(ProxyLine(address=proxy.address, transport=transport, url=proxy.url))
        keys = await kept_keys(config, state, ledger, ask) if change else None
        clock = SystemClock()
        wallet = Wallet(
            settings_of(config),
            keys or _NOBODY,
            clock=clock,
            randomness=SystemEntropy(),
            store=store,
            ledger=ledger,
        )
        await wallet.load()
        yield Channels(wallet, lines, keys, ledger=ledger, clock=clock), wallet


_LOOKING = SigningKey(Secret(b"\x01" * 32))  # a wallet that only looks signs nothing; this key holds nothing anywhere
_NOBODY = ClientKeys(owner=_LOOKING, session=_LOOKING)
