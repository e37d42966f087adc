# SPDX-License-Identifier: Apache-2.0
"""A proxy: its books in SQLite, its keys in files, one listener for clients and worker links."""

from __future__ import annotations

import ssl
from pathlib import Path

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.http_server import HttpLimits, HttpServer
from bombyx.adapters.sqlite import SqliteStore
from bombyx.adapters.state_folder import StateFolder
from bombyx.adapters.websocket import websocket_upgrade
from bombyx.compose.policy import read_policy
from bombyx.compose.service import Service, fund, open_ledger
from bombyx.config import NetworkDescriptor, ProxyConfig
from bombyx.errors import ConfigError
from bombyx.ports import Operator, OperatorRole
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal import GatewayKey, Kem, KeyConfig, PrivateKey
from bombyx.roles.proxy.runtime import Proxy
from bombyx.roles.proxy.settings import Limits, ProxySettings

LINK_PATH = "/v1/link"
DEV_FUNDS = 1_000_000_000  # base units a development chain gives a new proxy


async def start(config: ProxyConfig, network: NetworkDescriptor, state: Path) -> Service:
    from bombyx.compose import key_store

    service = Service(facts={"role": "proxy"})
    entropy, clock = SystemEntropy(), SystemClock()
    service.stack.callback(StateFolder.hold(state).release)
    key = key_store(state).load_or_create("proxy")
    ledger = open_ledger(network)
    service.stack.push_async_callback(ledger.close)
    store = SqliteStore.open(state / "proxy.db")
    service.stack.push_async_callback(store.close)
    private = PrivateKey.generate(Kem.X25519, entropy)  # fresh at every start: sessions do not outlive the process
    pay_key = GatewayKey(
        config=KeyConfig(key_id=0, kem=Kem.X25519, public_key=private.public_bytes), private_key=private
    )
    await fund(ledger, key.address, DEV_FUNDS)
    proxy = Proxy(
        _settings(config, network),
        key=key,
        pay_key=pay_key,
        ledger=ledger,
        store=store,
        clock=clock,
        randomness=entropy,
    )
    await proxy.start()
    server = HttpServer(
        proxy.handle,
        limits=HttpLimits(max_body=config.max_body),
        upgrades={LINK_PATH: websocket_upgrade(proxy.on_link)},
    )
    await server.start(config.host, config.port, ssl=_tls(config))
    url = config.public_url or f"http{'s' if config.tls_cert else ''}://{config.host}:{server.port}"
    await ledger.register(_operator(key.address, url, pay_key), signer=key)
    service.facts |= {"url": url, "address": str(key.address), "commission_bps": config.commission_bps}

    async def stop() -> None:
        await server.close()
        await proxy.stop(claim=True)

    service.drain = proxy.drain
    service.stack.push_async_callback(stop)
    return service


def _settings(config: ProxyConfig, network: NetworkDescriptor) -> ProxySettings:
    return ProxySettings(
        policy=read_policy(network.policy),
        commission_bps=config.commission_bps,
        float_limit=config.float_limit,
        expose_views=config.expose_views,
        limits=Limits(
            max_body=config.max_body,
            open_per_channel=config.open_per_channel,
            rate_per_channel=config.rate_per_channel,
        ),
    )


def _operator(address: Address, url: str, pay_key: GatewayKey) -> Operator:
    return Operator(
        address=address,
        role=OperatorRole.PROXY,
        endpoint=url,
        receipt_address=address,
        pay_authorizer=address,
        pay_key_config=pay_key.config.encode(),
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
