# SPDX-License-Identifier: Apache-2.0
"""The candidates of one request: drawn by this client's secret among the workers that convinced it (spec MKT-1 ..
MKT-4).

The proxy supplies the list, so it could steer by hiding workers. Hence, within an epoch: an operator whose evidence
once convinced keeps its place in the ranking, and when the proxy then hides or spoils it, its place stays empty. A
proxy must hide all k to have another drawn, and the tally shows it.

Always: one draw per request, reused by its retry (what went out to the first alone goes on to the others of the same
draw); no candidate without an `AttestationResult` of our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import AttestationError, MalformedMessage, NoWorkers, PaymentError, PeerError, Unavailable
from bombyx.ports import Clock, Store, Write
from bombyx.protocol.attest import AttestationResult
from bombyx.protocol.market import Ranking, epoch_of, goes_single
from bombyx.protocol.pay.price import price_of
from bombyx.protocol.primitives import Address, Digest, RequestId, Secret
from bombyx.protocol.seal import KeyConfig, Randomness
from bombyx.protocol.session import recipient
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.market import Offer, PriceSheet
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.evidence import REMEMBERED, EvidenceCache
from bombyx.roles.client.network import Model, View
from bombyx.roles.client.settings import ClientSettings
from bombyx.roles.client.tally import Tally

SECRET_TABLE: Final = "client_secret"  # noqa: S105  a table's name
SECRET_KEY: Final = b"draw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One worker a request may be sealed to, and why."""

    offer: Offer
    result: AttestationResult
    key_config: KeyConfig
    sheet: PriceSheet
    sheet_digest: Digest
    manifest: ModelManifest
    model: Digest

    @property
    def operator(self) -> Address:
        return self.result.keyset.operator

    @property
    def id(self) -> Digest:
        return self.key_config.candidate_id()


@dataclass(slots=True)
class _Pool:
    """What was seen of one model at one proxy within one epoch."""

    epoch: int
    ranking: Ranking
    convinced: set[Address] = field(default_factory=set)
    order: tuple[Address, ...] = ()  # kept: a directory of 100 000 is not sorted for each request
    order_of: tuple[Mapping[Address, Offer], frozenset[Address], int] | None = None  # what it was made of


async def client_secret(store: Store, randomness: Randomness) -> Secret:
    """The secret of all draws: made once, kept, so that a restart does not redraw."""
    kept = await store.read(SECRET_TABLE, SECRET_KEY)
    if kept is None:
        kept = randomness.bytes(32)
        await store.write([Write(table=SECRET_TABLE, key=SECRET_KEY, value=kept)])
    return Secret(kept)


class Candidates:
    """Draws. Holds the pools of the running epoch."""

    def __init__(
        self,
        settings: ClientSettings,
        secret: Secret,
        *,
        clock: Clock,
        evidence: EvidenceCache,
        blobs: Blobs,
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._clock = clock
        self._evidence = evidence
        self._blobs = blobs
        self._tally = tally
        self._pools: dict[tuple[Address, Digest], _Pool] = {}
        self._distrusted: dict[Address, str] = {}
        self._made: dict[tuple[Address, Digest], Candidate] = {}  # as they were last; a new appraisal makes a new one

    async def choose(
        self, view: View, model: Model, request_id: RequestId, *, only: tuple[Address, ...] = ()
    ) -> tuple[Candidate, ...]:
        """k candidates, or fewer; one for the published share of requests. Raises why nobody convinced.

        `only`: no draw; those workers, for what no other can answer, or by another's draw.
        """
        k = len(only) or self._k(request_id)
        offers = view.offers(model.digest)
        pool = self._pool(view, model)
        ranking = only or self._ranking(pool, offers)
        await self._appraise_ahead(ranking[:k], offers, view)
        chosen, absent, reasons = await self._walk(ranking, offers, view, model, pool, k)
        self._tally.drew([c.operator for c in chosen], absent)
        if not chosen:
            raise _nobody(model, reasons)
        return chosen

    async def others(self, view: View, model: Model, alone: Address) -> tuple[Candidate, ...]:
        """The rest of the draw of a request that went out to `alone` first, and came back; may be nobody (MKT-14)."""
        offers, pool, k = view.offers(model.digest), self._pool(view, model), self._settings.k
        ranking = self._ranking(pool, offers)
        await self._appraise_ahead(ranking[:k], offers, view)
        chosen, absent, _ = await self._walk(ranking, offers, view, model, pool, k)
        if len(absent) >= k:  # whoever was found then stands further down: not of this draw
            chosen = ()
        rest = tuple(candidate for candidate in chosen if candidate.operator != alone)[: k - 1]
        self._tally.drew([c.operator for c in rest], [who for who in absent if who != alone])
        return rest

    async def preview(self, view: View, model: Model) -> tuple[Candidate, ...]:
        """Whom a request sent now would go to, at the most: for a price. Nothing is counted as drawn."""
        offers = view.offers(model.digest)
        pool = self._pool(view, model)
        ranking = self._ranking(pool, offers)
        k = self._settings.k
        await self._appraise_ahead(ranking[:k], offers, view)
        chosen, _, reasons = await self._walk(ranking, offers, view, model, pool, k)
        if not chosen:
            raise _nobody(model, reasons)
        return chosen

    async def again(self, candidate: Candidate, view: View, model: Model) -> Candidate:
        """The same worker with its new keys, after it said it no longer holds those we sealed to."""
        self._evidence.forget(candidate.offer)
        for offer in view.report.fit:
            if offer.operator == candidate.operator:
                return await self._candidate(offer, view, model)
        raise NoWorkers(f"worker {candidate.operator} is no longer listed", retry_after=1.0, rule="MKT-3")

    def distrust(self, operator: Address, why: str) -> None:
        """A worker whose signed words were false: it is not drawn again while this process lives."""
        self._distrusted.setdefault(operator, why)

    @property
    def distrusted(self) -> dict[Address, str]:
        return dict(self._distrusted)

    def _k(self, request_id: RequestId) -> int:
        settings = self._settings
        return 1 if goes_single(self._secret, request_id, settings.single_share_bps) else settings.k

    def _pool(self, view: View, model: Model) -> _Pool:
        epoch = epoch_of(self._clock.now())
        key = (view.line.address, model.digest)
        pool = self._pools.get(key)
        if pool is None or pool.epoch != epoch:
            pool = self._pools[key] = _Pool(epoch=epoch, ranking=Ranking(self._secret, model.digest, epoch))
        return pool

    def _ranking(self, pool: _Pool, offers: Mapping[Address, Offer]) -> tuple[Address, ...]:
        missing, distrusted = frozenset(pool.convinced.difference(offers)), len(self._distrusted)
        made = pool.order_of
        if made is None or made[0] is not offers or made[1:] != (missing, distrusted):
            pool.order = pool.ranking.order(missing.union(offers).difference(self._distrusted))
            pool.order_of = (offers, missing, distrusted)
        return pool.order

    async def _appraise_ahead(
        self, operators: tuple[Address, ...], offers: Mapping[Address, Offer], view: View
    ) -> None:
        """Fetch the likely evidence side by side; what fails here fails again, from memory, in the walk."""
        listed = [offers[operator] for operator in operators if operator in offers]
        await asyncio.gather(
            *(self._evidence.appraised(offer, view.workers[offer.operator], view.line) for offer in listed),
            return_exceptions=True,
        )

    async def _walk(
        self,
        ranking: tuple[Address, ...],
        offers: Mapping[Address, Offer],
        view: View,
        model: Model,
        pool: _Pool,
        k: int,
    ) -> tuple[tuple[Candidate, ...], list[Address], list[Exception]]:
        chosen: list[Candidate] = []
        absent: list[Address] = []
        reasons: list[Exception] = []
        for operator in ranking:
            if chosen and len(chosen) + len(absent) >= k:
                break
            try:
                offer = offers.get(operator)
                if offer is None:
                    raise NoWorkers(f"worker {operator} is not listed any more", rule="MKT-3")
                chosen.append(await self._candidate(offer, view, model))
                pool.convinced.add(operator)
            except (PeerError, Unavailable) as error:
                reasons.append(error)
                if operator in pool.convinced:
                    absent.append(operator)
        return tuple(chosen), absent, reasons

    async def _candidate(self, offer: Offer, view: View, model: Model) -> Candidate:
        result, now = await self._evidence.appraised(offer, view.workers[offer.operator], view.line), self._clock.now()
        known = self._made.get((offer.operator, model.digest))
        if known is not None and known.result is result and known.offer == offer and now < result.until:
            return known
        key_config = recipient(result, now)
        sheet = PriceSheet.decode(await self._blobs.get(offer.price_sheet, view.line.transport))
        self._check_price(sheet, offer, model.digest)
        made = Candidate(
            offer=offer,
            result=result,
            key_config=key_config,
            sheet=sheet,
            sheet_digest=offer.price_sheet,
            manifest=model.manifest,
            model=model.digest,
        )
        if len(self._made) >= REMEMBERED:
            self._made.clear()
        self._made[offer.operator, model.digest] = made
        return made

    def _check_price(self, sheet: PriceSheet, offer: Offer, model: Digest) -> None:
        if sheet.operator != offer.operator:
            raise MalformedMessage("the price sheet is another operator's", rule="CLI-4")
        price, settings = price_of(sheet, model), self._settings
        read = max(price.input, price.cached_input)
        for asked, limit in ((read, settings.max_price_input), (price.output, settings.max_price_output)):
            if limit is not None and asked > limit:
                raise PaymentError(f"its price of {asked} per million units is above our {limit}", rule="MKT-1")


def _nobody(model: Model, reasons: list[Exception]) -> Exception:
    """What to tell the application: the evidence that failed if that is all there was, else that nobody is there."""
    failed = next((error for error in reasons if isinstance(error, AttestationError)), None)
    if failed is not None and all(isinstance(error, PeerError) for error in reasons):
        return failed
    detail = "; ".join(str(error) for error in reasons[:3]) or "nobody offers it"
    return NoWorkers(f"no worker for {model.manifest.name!r} fits: {detail}", retry_after=2.0, rule="MKT-1")
