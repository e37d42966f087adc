# SPDX-License-Identifier: Apache-2.0
"""A client of a network: for the local endpoint, and for the SDK."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.evm import EvmLedger
from bombyx.adapters.http_server import HttpServer
from bombyx.adapters.ledger_http import HttpLedger
from bombyx.adapters.proxy_http import HttpProxyTransport
from bombyx.adapters.state_folder import StateFolder
from bombyx.compose.policy import read_policy
from bombyx.compose.service import Service, fund, open_clock, open_store, validation_of
from bombyx.compose.wallet import Ask, client_ledger, kept_keys
from bombyx.config import ClientConfig, NetworkDescriptor, load, state_home
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.request import Shape
from bombyx.roles.client.core import Client
from bombyx.roles.client.endpoint import Endpoint, check_host
from bombyx.roles.client.settings import ClientKeys, ClientSettings, ProxyLine

SDK_FOLDER: Final = "sdk"  # not the endpoint's: both may run at once, each with channels of its own


async def start(
    config: ClientConfig, network: NetworkDescriptor, state: Path, *, expose: bool, ask: Ask | None = None
) -> Service:
    """A client behind a local OpenAI endpoint."""
    check_host(config.host, expose=expose)
    service = Service(facts={"role": "client"})
    client = await opened(config, network, state, ask)
    service.stack.push_async_callback(client.close)
    endpoint = Endpoint(client, any_host=expose)
    server = HttpServer(endpoint.handle)
    await server.start(config.host, config.port)
    service.stack.push_async_callback(server.close)
    service.facts |= {"url": f"http://{config.host}:{server.port}/v1"}
    return service


async def build(
    network: str | dict[str, Any] | None,
    *,
    state_dir: Path | None = None,
    budget: int | None = None,
    keys: ClientKeys | None = None,
    keep_openings: bool = False,
) -> Client:
    """A started client; `close` it when done. `keys`: an agent brings its own; others are kept in the state folder."""
    config = load(ClientConfig, overrides={"budget": budget})
    state = state_dir or state_home() / SDK_FOLDER
    return await opened(config, descriptor_of(network), state, keys=keys, keep_openings=keep_openings)


def descriptor_of(network: str | dict[str, Any] | None) -> NetworkDescriptor:
    if isinstance(network, dict):
        return NetworkDescriptor.from_json(json.dumps(network))
    return NetworkDescriptor.load(Path(network) if network else None)


async def opened(
    config: ClientConfig,
    network: NetworkDescriptor,
    state: Path,
    ask: Ask | None = None,
    *,
    keys: ClientKeys | None = None,
    keep_openings: bool = False,
) -> Client:
    """Its `close` also closes the ledger, the store and the transports made here."""
    held = StateFolder.hold(state)
    ledger = client_ledger(config, network, state)
    try:
        keys = keys or await kept_keys(config, state, ledger, ask)
        settings = replace(settings_of(config), keep_openings=keep_openings)
        await fund(ledger, keys.payer, config.budget)
        return await _started(settings, network, ledger, held, keys)
    except BaseException:
        await ledger.close()
        held.release()
        raise


async def _started(
    settings: ClientSettings,
    network: NetworkDescriptor,
    ledger: HttpLedger | EvmLedger,
    held: StateFolder,
    keys: ClientKeys,
) -> Client:
    policy = read_policy(network.policy)
    store = open_store(held.path / "client.db", released=held.release)
    lines = tuple(ProxyLine(address=p.address, transport=HttpProxyTransport(p.url), url=p.url) for p in network.proxies)
    client = Client(
        settings,
        keys=keys,
        proxies=lines,
        policy=policy,
        clock=open_clock(),
        randomness=SystemEntropy(),
        store=store,
        ledger=ledger,
        validation=validation_of(ledger),
    )
    try:
        await client.start()
    except BaseException:
        await client.close()
        raise
    return client


def settings_of(config: ClientConfig) -> ClientSettings:
    """What an operator set, as the role takes it."""
    try:
        shape = Shape(config.shape)
    except ValueError:
        raise ConfigError(f"client.shape is one of {', '.join(Shape)}, not {config.shape!r}") from None
    return ClientSettings(
        k=config.k,
        single_share_bps=config.single_share_bps,
        shape=shape,
        frame_size=config.frame_size,
        default_output=config.max_output,
        deadline_seconds=config.deadline,
        max_commission_bps=config.max_commission_bps,
        max_price_input=config.max_price_input or None,
        max_price_output=config.max_price_output or None,
        deposit=config.deposit,
        budget=config.budget,
        claim_refunds=config.claim_refunds,
        refund_to=_refund_to(config.refund_to),
        keep_audits=config.keep_audits,
        audits_days=config.audits_days,
    )


def _refund_to(text: str) -> Address | None:
    try:
        return Address.parse(text) if text else None
    except ValueError:
        raise ConfigError(f"client.refund_to takes an address of 20 bytes, not {text!r}") from None
