# SPDX-License-Identifier: Apache-2.0
"""The enclave behind the key that users' answers are sealed to: its keys, and fresh evidence for them (spec AUD-57).

Made like a worker's: a keyset bound into a quote. It serves no model, and its receipt key is the validator's own
account. Always: evidence is renewed well before it expires; keys live in this process alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

import aiohttp

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.compose.enclave import Device, enclave_device, vendor_endorsements
from bombyx.compose.service import Service
from bombyx.config import NetworkDescriptor, ValidatorConfig, WorkerConfig, state_home
from bombyx.errors import BombyxError, Unavailable
from bombyx.ports import Ledger
from bombyx.protocol.attest.keyset import report_data
from bombyx.protocol.primitives import Address
from bombyx.protocol.seal import GatewayKey, Kem, encode_key_configs
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE, EvidenceBundle, Keyset

RENEW_SECONDS: Final = 3_000.0
log = logging.getLogger("bombyx.validator")


class OptInEnclave:
    """One boot's key, and the newest evidence for it."""

    def __init__(self, operator: Address, device: Device, ledger: Ledger) -> None:
        entropy = SystemEntropy()
        self._operator = operator
        self._device = device
        self._ledger = ledger
        self._clock = SystemClock()
        self._keys = (
            GatewayKey.generate(1, Kem.MLKEM768_X25519, entropy),
            GatewayKey.generate(2, Kem.X25519, entropy),
        )
        self._bundle: bytes | None = None

    @property
    def key_config(self) -> bytes:
        return encode_key_configs(tuple(key.config for key in self._keys))

    def keys(self) -> tuple[GatewayKey, ...]:
        return self._keys

    def bundle(self) -> bytes | None:
        return self._bundle

    async def renew(self) -> None:
        """Evidence as of now. Raises `Unavailable` when chain or device do not answer."""
        beacon, info = await self._ledger.head(), await self._ledger.info()
        now = self._clock.now()
        keyset = Keyset(
            v=1,
            ohttp_key_config=self.key_config,
            receipt_address=self._operator,
            operator=self._operator,
            chain_id=info.chain_id,
            pay_authorizer=self._operator,
            models=(),
            gpu_evidence=None,
            beacon=beacon.hash,
            not_before=now,
            not_after=min(now.plus(seconds=RENEW_SECONDS + 600), beacon.timestamp.plus(seconds=MAX_KEYSET_LIFE)),
        )
        canonical = keyset.encode()
        quote = await self._device.source.quote(report_data(canonical))
        self._bundle = EvidenceBundle(
            v=1,
            technology=quote.technology,
            quote=quote.quote,
            event_log=quote.event_log,
            keyset=canonical,
            gpu_evidence=None,
            compose=quote.compose,
            manifests=(),
            endorsements=await self._endorsements(quote.quote),
            beacon_header=beacon,
        ).encode()

    async def _endorsements(self, quote: bytes) -> bytes:
        if self._device.endorser is None:
            return b""
        try:
            return await self._device.endorser.endorsements(quote)
        except Unavailable:
            return b""

    async def keep_fresh(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self.renew()
            except BombyxError as error:
                log.warning("our evidence was not renewed: %s", error)


async def open_enclave(
    config: ValidatorConfig, network: NetworkDescriptor, operator: Address, ledger: Ledger, service: Service
) -> OptInEnclave:
    """Raises `ConfigError` when this machine has no such device."""
    like = WorkerConfig(enclave=config.enclave, enclave_endpoint=config.enclave_endpoint, pccs=config.pccs)
    http = await service.stack.enter_async_context(aiohttp.ClientSession())
    vendor = vendor_endorsements(http, config.pccs, state_home() / "endorsements")
    enclave = OptInEnclave(operator, enclave_device(like, network, vendor), ledger)
    await enclave.renew()
    fresh = asyncio.create_task(enclave.keep_fresh())

    async def stop() -> None:
        fresh.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fresh

    service.stack.push_async_callback(stop)
    return enclave
