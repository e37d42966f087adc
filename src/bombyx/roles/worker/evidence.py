# SPDX-License-Identifier: Apache-2.0
"""A period's Evidence: keyset, quote, manifests, endorsements, put together and published as one bundle (spec ATT).

Not here: any appraisal; a worker that appraised itself would prove nothing.

Always: the quote's report data is the digest of the keyset's canonical bytes; the beacon is the ledger's head of now;
endorsements that cannot be had are left out, and a verifier then says so in its steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from bombyx.errors import Unavailable
from bombyx.ports import Clock, EndorsementSource, EvidenceSource, Ledger, LedgerInfo
from bombyx.protocol.attest.keyset import gpu_nonce, report_data
from bombyx.protocol.primitives import Address, sha256
from bombyx.protocol.seal.ohttp import GatewayKey, encode_key_configs
from bombyx.protocol.seal.replay import ReplayGuard
from bombyx.protocol.wire.evidence import MAX_KEYSET_LIFE, BlockHeader, EvidenceBundle, Keyset, ModelManifest
from bombyx.roles.worker.keys import BootKeys, Period
from bombyx.roles.worker.settings import Timings

log = logging.getLogger("bombyx.worker")

VERSION: Final = 1


class EvidenceMaker:
    """Makes periods for one boot of one enclave."""

    def __init__(
        self,
        *,
        operator: Address,
        chain: LedgerInfo,
        boot: BootKeys,
        manifests: Sequence[ModelManifest],
        device: EvidenceSource,
        endorser: EndorsementSource | None,
        ledger: Ledger,
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._operator = operator
        self._chain = chain
        self._boot = boot
        self._manifests = tuple(manifest.encode() for manifest in manifests)
        self._device = device
        self._endorser = endorser
        self._ledger = ledger
        self._clock = clock
        self._timings = timings

    async def period(self, gateways: tuple[GatewayKey, ...]) -> Period:
        """Evidence for `gateways`, valid from now. Raises `Unavailable` when chain or device do not answer."""
        made_at = self._clock.monotonic()  # before the beacon is read: our keys never outlive what was promised
        beacon = await self._ledger.head()
        keyset, gpu = await self._with_gpu(self._keyset(gateways, beacon))
        bundle = (await self._bundle(keyset, gpu, beacon)).encode()
        return Period(
            gateways=gateways,
            replays=ReplayGuard(),
            keyset=keyset,
            bundle=bundle,
            bundle_digest=sha256(bundle),
            made_at=made_at,
            erase_at=made_at + self._timings.rotation + self._timings.overlap,
        )

    def _keyset(self, gateways: tuple[GatewayKey, ...], beacon: BlockHeader) -> Keyset:
        now = self._clock.now()
        return Keyset(
            v=VERSION,
            ohttp_key_config=encode_key_configs(tuple(gateway.config for gateway in gateways)),
            receipt_address=self._boot.receipt.address,
            operator=self._operator,
            chain_id=self._chain.chain_id,
            pay_authorizer=self._boot.pay_authorizer.address,
            models=tuple(sha256(manifest) for manifest in self._manifests),
            gpu_evidence=None,
            beacon=beacon.hash,
            not_before=now,
            # Verifiers count from the beacon (ATT-3): on a chain that stands still a keyset is short, not void.
            not_after=min(
                now.plus(seconds=self._timings.rotation + self._timings.overlap),
                beacon.timestamp.plus(seconds=MAX_KEYSET_LIFE),
            ),
        )

    async def _with_gpu(self, keyset: Keyset) -> tuple[Keyset, bytes | None]:
        evidence = await self._device.gpu(gpu_nonce(keyset))
        if evidence is None:
            return keyset, None
        return replace(keyset, gpu_evidence=sha256(evidence)), evidence

    async def _bundle(self, keyset: Keyset, gpu: bytes | None, beacon: BlockHeader) -> EvidenceBundle:
        canonical = keyset.encode()
        quote = await self._device.quote(report_data(canonical))
        return EvidenceBundle(
            v=VERSION,
            technology=quote.technology,
            quote=quote.quote,
            event_log=quote.event_log,
            keyset=canonical,
            gpu_evidence=gpu,
            compose=quote.compose,
            manifests=self._manifests,
            endorsements=await self._endorsements(quote.quote),
            beacon_header=beacon,
        )

    async def _endorsements(self, quote: bytes) -> bytes:
        if self._endorser is None:
            return b""
        try:
            return await self._endorser.endorsements(quote)
        except Unavailable as error:
            log.warning("no endorsements for this quote: %s", error)
            return b""
