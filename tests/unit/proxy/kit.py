# SPDX-License-Identifier: Apache-2.0
"""A network around one real proxy: chain and store in memory, real sockets, simulated evidence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.http_server import HttpServer
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.simulator.enclave import SimulatedEnclave, SimulatedEndorsements, development_policy
from bombyx.adapters.simulator.platform import SimulatedPlatform
from bombyx.adapters.websocket import websocket_upgrade
from bombyx.ports import Leases, Operator, OperatorRole
from bombyx.protocol.primitives import Digest, RequestId, Secret
from bombyx.protocol.seal import GatewayKey, Kem
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.runtime import Proxy
from bombyx.roles.proxy.settings import ProxySettings

CLOCK = SystemClock()
ENTROPY = SystemEntropy()
MONEY = 10**12


def key(name: str) -> SigningKey:
    """A key of this name: always the same."""
    return SigningKey(Secret(hashlib.sha256(name.encode()).digest()))


def manifest(name: str = "scripted") -> ModelManifest:
    return ModelManifest(
        v=1,
        name=name,
        weights=(),
        tokenizer=None,
        chat_template=None,
        quantisation="none",
        engine="scripted",
        arguments=(),
        context=4096,
        parameters=0,
    )


@dataclass
class ProxyNet:
    """One proxy on loopback. `restart` is a crash and a new life over the same store and chain."""

    ledger: MemoryLedger = field(default_factory=lambda: MemoryLedger(CLOCK))
    store: MemoryStore = field(default_factory=MemoryStore)
    platform: SimulatedPlatform = field(
        default_factory=lambda: SimulatedPlatform.create(seed=b"the seed of the proxy tests", now=CLOCK.now())
    )
    saw: list[tuple[RequestId, str, bytes]] = field(default_factory=list)
    key: SigningKey = field(default_factory=lambda: key("proxy"))
    settings: ProxySettings | None = None
    leases: Leases | None = None  # with it, this is one replica of several
    pay_key: GatewayKey = field(default_factory=lambda: GatewayKey.generate(1, Kem.X25519, ENTROPY))

    def __post_init__(self) -> None:
        self.settings = self.settings or ProxySettings(policy=development_policy(self.platform), expose_views=True)

    def change(self, **changes: object) -> None:
        assert self.settings is not None
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]

    async def start(self) -> None:
        assert self.settings is not None
        await self.ledger.faucet(self.key.address, MONEY)
        self.proxy = Proxy(
            self.settings,
            key=self.key,
            pay_key=self.pay_key,
            ledger=self.ledger,
            store=self.store,
            clock=CLOCK,
            randomness=ENTROPY,
            observer=lambda request, what, data: self.saw.append((request, what, data)),
            leases=self.leases,
        )
        await self.proxy.start()
        self.server = HttpServer(self.proxy.handle, upgrades={"/v1/link": websocket_upgrade(self.proxy.on_link)})
        await self.server.start("127.0.0.1", 0)
        await self.ledger.register(self._line(), signer=self.key)
        if self.leases is not None:
            await self.leases.announce(self.url)

    def _line(self) -> Operator:
        return Operator(
            address=self.key.address,
            role=OperatorRole.PROXY,
            endpoint=self.url,
            receipt_address=self.key.address,
            pay_authorizer=self.key.address,
            pay_key_config=self.pay_key.config.encode(),
            price_sheet=Digest.zero(),
            models=(),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def link_url(self) -> str:
        return self.url + "/v1/link"

    def enclave(self, name: str) -> SimulatedEnclave:
        return SimulatedEnclave(platform=self.platform, instance=hashlib.sha256(name.encode()).digest()[:16])

    @property
    def endorser(self) -> SimulatedEndorsements:
        return SimulatedEndorsements(platform=self.platform, clock=CLOCK)

    async def stop(self) -> None:
        await self.proxy.stop()
        await self.server.close(grace=0.2)
