# SPDX-License-Identifier: Apache-2.0
"""A proxy: its books in SQLite or a shared database, its keys in files, one listener for clients and worker links."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from pathlib import Path

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.http_server import HttpLimits, HttpServer
from bombyx.adapters.pages_http import HttpPages
from bombyx.adapters.state_folder import StateFolder
from bombyx.adapters.websocket import websocket_upgrade
from bombyx.compose.books import open_books, pay_key
from bombyx.compose.policy import read_policy
from bombyx.compose.service import Service, fund, open_clock, open_ledger
from bombyx.config import NetworkDescriptor, ProxyConfig
from bombyx.errors import BombyxError, ConfigError
from bombyx.ports import Clock, Ledger, Operator, OperatorRole
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal import GatewayKey
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.runtime import Proxy
from bombyx.roles.proxy.settings import Limits, ProxySettings, Timings

log = logging.getLogger("bombyx.proxy")
LINK_PATH = "/v1/link"
REGISTRY_LOOK = 60.0  # seconds
DEV_FUNDS = 1_000_000_000  # base units a development chain gives a new proxy


async def start(config: ProxyConfig, network: NetworkDescriptor, state: Path) -> Service:
    from bombyx.compose import key_store

    service = Service(facts={"role": "proxy"})
    entropy, clock = SystemEntropy(), open_clock()
    service.stack.callback(StateFolder.hold(state).release)
    key = key_store(state).load_or_create("proxy")
    ledger = open_ledger(network, state)
    service.stack.push_async_callback(ledger.close)
    settings = _settings(config, network)
    store, leases = await open_books(config, state, service, entropy, settings.timings.lease_life)
    payments = pay_key(key, entropy, shared=leases is not None)
    await fund(ledger, key.address, DEV_FUNDS)
    pages = HttpPages()
    service.stack.push_async_callback(pages.close)
    proxy = Proxy(
        settings,
        key=key,
        pay_key=payments,
        ledger=ledger,
        store=store,
        clock=clock,
        randomness=entropy,
        leases=leases,
        forward=pages.forward,
    )
    await proxy.start()
    server = HttpServer(
        proxy.handle,
        limits=HttpLimits(max_body=config.max_body),
        upgrades={LINK_PATH: websocket_upgrade(proxy.on_link)},
    )
    await server.start(config.host, config.port, ssl=_tls(config))
    url = config.public_url or f"http{'s' if config.tls_cert else ''}://{config.host}:{server.port}"
    if leases is not None:
        await leases.announce(config.replica_url or url)
    await _register(ledger, _operator(key.address, url, payments), key, keep_url=leases is not None)
    service.facts |= {"url": url, "address": str(key.address), "commission_bps": config.commission_bps}

    async def stop() -> None:
        await server.close()
        await proxy.stop(claim=True)

    service.drain = proxy.drain
    service.stack.push_async_callback(stop)
    staying = asyncio.create_task(_stay_registered(ledger, _operator(key.address, url, payments), key, clock))
    service.stack.push_async_callback(_cancelled, staying)
    return service


async def _stay_registered(ledger: Ledger, line: Operator, key: SigningKey, clock: Clock) -> None:
    """A reorg can take our line of the registry back: publish it again."""
    while True:
        await clock.sleep(REGISTRY_LOOK)
        try:
            await _register(ledger, line, key, keep_url=True)
        except BombyxError as error:
            log.warning("our line of the registry: %s", error)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _register(ledger: Ledger, line: Operator, key: SigningKey, *, keep_url: bool) -> None:
    """Publish our line. Replicas share one: with `keep_url` it stays whose URL came first, where all else agrees."""
    known = {operator.address: operator for operator in await ledger.operators(OperatorRole.PROXY)} if keep_url else {}
    found = known.get(line.address)
    if found is None or replace(found, endpoint=line.endpoint) != line:
        await ledger.register(line, signer=key)


def _settings(config: ProxyConfig, network: NetworkDescriptor) -> ProxySettings:
    return ProxySettings(
        policy=read_policy(network.policy),
        commission_bps=config.commission_bps,
        float_limit=config.float_limit,
        claim_threshold=config.claim_threshold,
        claim_age=config.claim_age,
        expose_views=config.expose_views,
        limits=Limits(
            max_body=config.max_body,
            open_per_channel=config.open_per_channel,
            rate_per_channel=config.rate_per_channel,
        ),
        timings=Timings(housekeeping=config.claim_every),
    )


def _operator(address: Address, url: str, payments: GatewayKey) -> Operator:
    return Operator(
        address=address,
        role=OperatorRole.PROXY,
        endpoint=url,
        receipt_address=address,
        pay_authorizer=address,
        pay_key_config=payments.config.encode(),
        price_sheet=Digest.zero(),
        models=(),
    )


def _tls(config: ProxyConfig) -> ssl.SSLContext | None:
    if not config.tls_cert and not config.tls_key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS certificate {config.tls_cert}: {error}") from None
    return context
