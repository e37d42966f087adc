# SPDX-License-Identifier: Apache-2.0
"""Appraisals: each enclave's evidence judged by this client, once, and remembered until it expires (spec CLI-4,
ATT).

Not here: the judgement (`protocol/attest`). A proxy's word plays no part: bundles come by digest, the operator's
keys and the beacon from the chain.

Always: a failure is remembered too, for a short while, so that a broken worker does not cost a check per request.
An image that only publishers vouch for is appraised again every `recheck_seconds`, so a revocation bites (ATT-14).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from bombyx.errors import AttestationError, MalformedMessage, PeerError, Unavailable
from bombyx.ports import Clock, EndorsementSource, Ledger, Operator, OperatorRole, ReferenceKind
from bombyx.protocol.attest.appraise import appraise
from bombyx.protocol.attest.keyset import RegisteredWorker
from bombyx.protocol.attest.policy import AppraisalPolicy
from bombyx.protocol.attest.result import AttestationResult
from bombyx.protocol.primitives import Address, Digest, Instant, sha256
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle, Keyset
from bombyx.protocol.wire.market import Offer
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.settings import ProxyLine

FAILURE_SECONDS: Final = 10.0  # how long a failed appraisal is not repeated
REMEMBERED: Final = 4096  # enclaves
Key = tuple[Address, Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraised:
    """What became of one enclave's evidence. Exactly one of `result` and `error` is there."""

    offer: Offer
    at: Instant
    result: AttestationResult | None
    error: PeerError | None
    expires: float  # monotonic seconds

    @property
    def steps(self) -> tuple[object, ...]:
        if self.result is not None:
            return self.result.steps
        return self.error.steps if isinstance(self.error, AttestationError) else ()


class EvidenceCache:
    """One appraisal per bundle digest."""

    def __init__(
        self,
        policy: AppraisalPolicy,
        *,
        clock: Clock,
        ledger: Ledger,
        blobs: Blobs,
        endorsements: EndorsementSource | None = None,
        recheck_seconds: float = 30.0,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._ledger = ledger
        self._blobs = blobs
        self._endorsements = endorsements
        self._recheck = recheck_seconds
        # By operator, too: a proxy that lists one worker's evidence under another's name must not spoil it for both.
        self._known: OrderedDict[Key, Appraised] = OrderedDict()
        self._locks: dict[Key, asyncio.Lock] = {}

    def all(self) -> tuple[Appraised, ...]:
        """Every appraisal still remembered, newest last; for `/verification`."""
        return tuple(self._known.values())

    def forget(self, offer: Offer) -> None:
        """Appraise this one again when it is next needed (an `ohttp-key` problem)."""
        self._known.pop(_key(offer), None)

    async def appraised(self, offer: Offer, operator: Operator, line: ProxyLine) -> AttestationResult:
        """Raises `AttestationError` with its steps, or `MalformedMessage`; `Unavailable` when there is no evidence."""
        key = _key(offer)
        known = self._fresh(key)
        if known is None:
            async with self._locks.setdefault(key, asyncio.Lock()):
                known = self._fresh(key) or await self._appraise(offer, operator, line)
            self._locks.pop(key, None)
        if known.result is None:
            assert known.error is not None
            raise known.error
        _check_offer(offer, known.result)
        return known.result

    def _fresh(self, key: Key) -> Appraised | None:
        known = self._known.get(key)
        if known is None or known.expires <= self._clock.monotonic():
            return None
        return known

    async def _appraise(self, offer: Offer, operator: Operator, line: ProxyLine) -> Appraised:
        data = await self._blobs.get(offer.bundle, line.transport)
        now = self._clock.now()
        try:
            result = await self._judge(data, operator, now)
            lasting = max(0.0, (result.until - now) / 1000)
            if self._policy.asks_publishers():
                lasting = min(lasting, self._recheck)
            outcome = self._outcome(offer, now, lasting, result=result)
        except (AttestationError, MalformedMessage) as error:
            outcome = self._outcome(offer, now, FAILURE_SECONDS, error=error)
        self._known[_key(offer)] = outcome
        self._known.move_to_end(_key(offer))
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return outcome

    async def _judge(self, data: bytes, operator: Operator, now: Instant) -> AttestationResult:
        bundle = EvidenceBundle.decode(data)
        beacon = await self._beacon(bundle)
        endorsements = await self._endorsements.endorsements(bundle.quote) if self._endorsements else None
        operator = await self._newest(operator, Keyset.decode(bundle.keyset))
        registered = RegisteredWorker(
            operator=operator.address,
            receipt_address=operator.receipt_address,
            pay_authorizer=operator.pay_authorizer,
            chain_id=(await self._ledger.info()).chain_id,
        )
        policy = await self._admitting(bundle)
        return appraise(data, policy, now=now, registered=registered, beacon=beacon, endorsements=endorsements)

    async def _newest(self, operator: Operator, keyset: Keyset) -> Operator:
        """The registry's line, asked again when it names other keys: the worker may have booted a moment ago."""
        if (keyset.receipt_address, keyset.pay_authorizer) == (operator.receipt_address, operator.pay_authorizer):
            return operator
        found = await self._ledger.operators(OperatorRole.WORKER)
        return next((line for line in found if line.address == operator.address), operator)

    async def _admitting(self, bundle: EvidenceBundle) -> AppraisalPolicy:
        """The policy, with this bundle's image where its publishers agree now. Nobody who answers means no."""
        if not self._policy.asks_publishers():
            return self._policy
        publishers, quorum, image = self._policy.publishers, self._policy.publishers_agree, sha256(bundle.compose)
        try:
            agreed = await self._ledger.references_agreed(publishers, quorum, ReferenceKind.MEASUREMENT, image)
        except (PeerError, Unavailable):
            agreed = False
        return self._policy.admitting(image) if agreed else self._policy

    async def _beacon(self, bundle: EvidenceBundle) -> BlockHeader | None:
        try:
            return await self._ledger.block(Keyset.decode(bundle.keyset).beacon)
        except MalformedMessage:
            return None  # the appraisal names the fault, with its steps

    def _outcome(
        self,
        offer: Offer,
        now: Instant,
        lasting: float,
        *,
        result: AttestationResult | None = None,
        error: PeerError | None = None,
    ) -> Appraised:
        expires = self._clock.monotonic() + lasting
        return Appraised(offer=offer, at=now, result=result, error=error, expires=expires)


def _key(offer: Offer) -> Key:
    return offer.operator, offer.bundle


def _check_offer(offer: Offer, result: AttestationResult) -> None:
    """The offer must speak of the enclave whose evidence it names: a proxy may not put models or keys beside it."""
    if offer.operator != result.keyset.operator:
        raise AttestationError("the offer names another operator than the keyset", steps=result.steps, rule="CLI-4")
    if not set(offer.models) <= set(result.keyset.models):
        raise AttestationError("the offer names models the enclave does not serve", steps=result.steps, rule="CLI-4")
