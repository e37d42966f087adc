# SPDX-License-Identifier: Apache-2.0
"""Where a proxy keeps its books: a file of its own, or a database it shares with the other replicas."""

from __future__ import annotations

from pathlib import Path

from bombyx.compose.service import Service, open_store
from bombyx.config import SQLITE, ProxyConfig
from bombyx.errors import ConfigError
from bombyx.ports import Entropy, Leases, Store
from bombyx.protocol.primitives import sha256
from bombyx.protocol.seal import GatewayKey, Kem, KeyConfig, PrivateKey
from bombyx.protocol.wire.signing import SigningKey

HOLDER_SIZE = 16
PAY_KEY_LABEL = b"bombyx replicas' payment key v1"


async def open_books(
    config: ProxyConfig, state: Path, service: Service, entropy: Entropy, seconds: float
) -> tuple[Store, Leases | None]:
    """The store, and the leases where others share it. Both are closed with the service."""
    if config.store == SQLITE:
        store = open_store(state / "proxy.db")
        service.stack.push_async_callback(store.close)
        return store, None
    try:
        from bombyx.adapters.postgres import PostgresStore
        from bombyx.adapters.postgres_leases import PostgresLeases
    except ImportError:
        raise ConfigError("proxy.store names a PostgreSQL database: pip install 'bombyx[postgres]'") from None
    shared = await PostgresStore.open(config.store)
    service.stack.push_async_callback(shared.close)
    holder = entropy.bytes(HOLDER_SIZE)
    leases = await PostgresLeases.join(config.store, holder, reached_at=config.replica_url, seconds=seconds)
    service.stack.push_async_callback(leases.leave)
    return shared, leases


def pay_key(key: SigningKey, entropy: Entropy, *, shared: bool) -> GatewayKey:
    """What clients seal session keys to. Alone: fresh at every start, so that sessions do not outlive the process.
    Replicas all need the same one, so it follows from the account key they have in common."""
    seed = sha256(PAY_KEY_LABEL + key.secret().reveal()) if shared else entropy.bytes(32)
    private = PrivateKey.from_seed(Kem.X25519, seed)
    return GatewayKey(config=KeyConfig(key_id=0, kem=Kem.X25519, public_key=private.public_bytes), private_key=private)
