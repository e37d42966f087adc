# SPDX-License-Identifier: Apache-2.0
"""What the chain's registry says of workers, cached for a few seconds, and the proxy's own appraisal of their evidence.

The appraisal protects the proxy's purse and its clients' time; a client never relies on it and appraises again (ATT-6).
"""

from __future__ import annotations

import asyncio

from bombyx.errors import AttestationError, MalformedMessage, Peer, PeerError, Unavailable
from bombyx.ports import Clock, Ledger, Operator, OperatorRole, ReferenceKind
from bombyx.protocol.attest import AppraisalPolicy, AttestationResult, RegisteredWorker, appraise
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset


class Registry:
    """Workers by address. An unknown one, or one that does not fit, is looked up afresh before it is refused."""

    def __init__(
        self, ledger: Ledger, clock: Clock, policy: AppraisalPolicy, *, chain_id: int, fresh_seconds: float
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._policy = policy
        self._chain_id = chain_id
        self._fresh = fresh_seconds
        self._workers: dict[Address, Operator] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def worker(self, address: Address, *, fresh: bool = False) -> Operator | None:
        asked = self._clock.monotonic()
        async with self._lock:
            old = asked - self._read_at > self._fresh
            if self._read_at < asked and (fresh or old or address not in self._workers):
                found = await self._ledger.operators(OperatorRole.WORKER)
                self._workers = {operator.address: operator for operator in found}
                self._read_at = self._clock.monotonic()
        return self._workers.get(address)

    async def vet(self, bundle: bytes) -> tuple[AttestationResult, Operator]:
        """Appraise a worker's bundle under our policy and the chain. Raises `AttestationError`, `MalformedMessage`."""
        shown = EvidenceBundle.decode(bundle)
        keyset = Keyset.decode(shown.keyset)
        line = await self.worker(keyset.operator)
        if line is None or (line.receipt_address, line.pay_authorizer) != (
            keyset.receipt_address,
            keyset.pay_authorizer,
        ):
            line = await self.worker(keyset.operator, fresh=True)  # it may have registered a moment ago
        if line is None:
            raise AttestationError(f"operator {keyset.operator} is not in the registry", rule="ATT-7")
        beacon = await self._ledger.block(keyset.beacon)
        result = appraise(
            bundle,
            await self._admitting(sha256(shown.compose)),
            now=self._clock.now(),
            registered=RegisteredWorker(
                operator=line.address,
                receipt_address=line.receipt_address,
                pay_authorizer=line.pay_authorizer,
                chain_id=self._chain_id,
            ),
            beacon=beacon,
        )
        if not set(result.keyset.models) <= set(line.models):
            raise MalformedMessage("it serves a model it has not registered", peer=Peer.WORKER, rule="MKT-9")
        return result, line

    async def _admitting(self, image: Digest) -> AppraisalPolicy:
        """Our policy, with this image where its publishers agree now. A chain that cannot be asked means no."""
        try:
            return self._policy.admitting(image) if await self._agreed(image) else self._policy
        except (PeerError, Unavailable):
            return self._policy

    async def _agreed(self, image: Digest) -> bool:
        policy = self._policy
        return policy.asks_publishers() and await self._ledger.references_agreed(
            policy.publishers, policy.publishers_agree, ReferenceKind.MEASUREMENT, image
        )

    async def still_admits(self, result: AttestationResult) -> bool:
        """Whether an image that only publishers vouched for is still good. Raises `Unavailable`."""
        image = result.claims.boot.compose_hash
        ours = {value.name for value in self._policy.reference_values}
        return result.claims.reference_value in ours or image is None or await self._agreed(image)
