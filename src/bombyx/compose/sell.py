# SPDX-License-Identifier: Apache-2.0
"""A client whose answers strangers buy by x402: the same client, a till, and an endpoint in front of both."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.evm import EvmLedger
from bombyx.adapters.evm.carrier import EvmCarrier
from bombyx.adapters.http_server import HttpLimits, HttpServer
from bombyx.compose.client import opened
from bombyx.compose.service import Service
from bombyx.compose.wallet import Ask
from bombyx.config import ClientConfig, NetworkDescriptor, SellConfig
from bombyx.errors import ConfigError
from bombyx.roles.client.core import Client
from bombyx.roles.client.paid import NOTICE, PaidEndpoint
from bombyx.roles.client.settings import PaidSettings
from bombyx.roles.client.till import Till, asking_of

KEY: Final = "till"  # receiver authorizer: it claims and pays gas; what is claimed goes to the owner


async def start(
    sell: SellConfig, config: ClientConfig, network: NetworkDescriptor, state: Path, *, ask: Ask | None = None
) -> Service:
    """Listens to whoever comes: whoever wants an answer pays for it."""
    service = Service(facts={"role": "sell"})
    client = await opened(config, network, state, ask)
    service.stack.push_async_callback(client.close)
    try:
        till = await _till(sell, config, client, state)
        service.stack.push_async_callback(till.close)
        endpoint = PaidEndpoint(client, till, clock=SystemClock(), randomness=SystemEntropy())
        service.stack.push_async_callback(endpoint.close)
        server = HttpServer(endpoint.handle, limits=HttpLimits(max_body=sell.max_body, max_buffered=1 << 28))
        await server.start(sell.host, sell.port)
    except BaseException:
        await service.stop()
        raise
    service.stack.push_async_callback(server.close)
    url = sell.public_url.rstrip("/") or f"http://{sell.host}:{server.port}"
    till.url = url
    asking = till.asking
    service.facts |= {"url": url + "/v1", "network": asking.network, "receiver": str(asking.receiver)}
    service.facts |= {"till": str(asking.receiver_authorizer)}
    return service


async def _till(sell: SellConfig, config: ClientConfig, client: Client, state: Path) -> Till:
    from bombyx.compose import key_store

    if not isinstance(client.ledger, EvmLedger):
        raise ConfigError("x402 needs an EVM chain: strangers' wallets know no other", rule="X402-1")
    settings, info = _settings(sell), await client.ledger.info()
    key, carrier = key_store(state).load_or_create(KEY), EvmCarrier(client.ledger)
    asking = await asking_of(settings, info, carrier, receiver=client.wallet.owner, key=key, notice=NOTICE)
    till = Till(
        settings,
        asking,
        info,
        key=key,
        ledger=client.ledger,
        carrier=carrier,
        store=client.store,
        clock=SystemClock(),
        longest_request=config.deadline,
    )
    if till.margin > sell.withdraw_delay:
        raise ConfigError(
            f"sell.withdraw_delay = {sell.withdraw_delay} s is below {till.margin}: a deadline and two looks",
            rule="PAY-2",
        )
    await till.open(client.paid_for)
    return till


def _settings(sell: SellConfig) -> PaidSettings:
    return PaidSettings(
        margin_bps=sell.margin_bps,
        min_deposit=sell.min_deposit,
        withdraw_delay=sell.withdraw_delay,
        claim_threshold=sell.claim_threshold,
        claim_seconds=sell.claim_every,
        max_open=sell.max_open,
        rate=sell.rate,
    )
