# SPDX-License-Identifier: Apache-2.0
"""Getting paid: a proxy's payment is checked and written before its request is worked on (spec PAY-2 .. PAY-17).

Not here: the rules, which stand in `protocol/pay/payee.py`; this file fetches what they look at
and writes what they change.

Always: rows reach the store in the order they were made, what a proxy promised before it is acted on; after a crash,
what ran is charged by its last written receipt or released; the operator's key is used for claims alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from bombyx.errors import PaymentError, Peer, PeerError, Unavailable
from bombyx.ports import ChannelView, Clock, Ledger, Store, Write
from bombyx.protocol.pay.batches import Batches
from bombyx.protocol.pay.payee import NO_SESSION, PayeeBook, PayeeTerms, Reservation
from bombyx.protocol.pay.view import Claim
from bombyx.protocol.primitives import Amount, Digest, RequestId, Secret
from bombyx.protocol.seal.ohttp import SESSION_LABEL, GatewayKey, decapsulate_request
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.notary import RUNNING, ended_rows

log = logging.getLogger("bombyx.worker")

BOOK: Final = "worker_book"
MAX_VIEW_AGE: Final = 300.0  # seconds; PayeeTerms.claim_interval: how often we are sure to look at the chain


class Till:
    """The worker's book, its store and its chain."""

    def __init__(
        self, terms: PayeeTerms, domain: Digest, *, store: Store, ledger: Ledger, gateway: GatewayKey, clock: Clock
    ) -> None:
        self._terms = terms
        self._domain = domain
        self._book = PayeeBook(terms, domain, payer=Peer.PROXY)
        self._store = store
        self._ledger = ledger
        self._gateway = gateway
        self._clock = clock
        self._views: dict[Digest, tuple[ChannelView, float]] = {}
        self._beside: set[asyncio.Task[None]] = set()

    @property
    def book(self) -> PayeeBook:
        return self._book

    async def load(self) -> None:
        """Read the book back and end what a crash left open (PAY-17)."""
        rows = await self._store.scan(BOOK)
        self._book = PayeeBook.load(self._terms, self._domain, rows, payer=Peer.PROXY)
        now = self._clock.now()
        cut = {key: SignedReceipt.decode(value).receipt for key, value in await self._store.scan(RUNNING)}
        for open_ in self._book.in_flight():
            receipt = cut.get(bytes(open_.request_id))
            if receipt is None:
                await self.release(open_)
            else:
                await self._store.write(self.settle(open_, min(receipt.charge, open_.cap)))
        for receipt in cut.values():
            await self._store.write(ended_rows(receipt.request_id, now))

    # --- one request ---

    async def reserve(
        self, payment: Payment, *, request_id: RequestId, cap: int, meta_hash: Digest, body_hash: Digest
    ) -> Reservation:
        """Accept `payment` for a request that may cost `cap`. Its voucher is durable when this returns, the reservation
        no later than the charge. Raises `PaymentError`."""
        view = await self._view(payment)
        now = self._clock.now()
        key = self._session_key(payment) if self._book.wants_key(payment) else None
        try:
            reservation = self._book.accept(
                payment,
                request_id=request_id,
                cap=cap,
                meta_hash=meta_hash,
                body_hash=body_hash,
                now=now,
                view=view,
                session_key=key,
            )
        finally:
            if payment.voucher is None and payment.grant is None:
                self._write_beside()
            else:
                await self._write()
        return reservation

    def _write_beside(self) -> None:
        """Below the ceiling nothing new was promised to us: the row need only go before the charge's, in one store."""
        task = asyncio.ensure_future(self._write())
        self._beside.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a reservation was not written; its charge will be, or the answer does not end")

    def settle(self, reservation: Reservation, charge: int) -> list[Write]:
        """Charge it. The rows go into the same batch as the final receipt."""
        now = self._clock.now()
        self._book.settle(reservation.channel, reservation.request_id, charge, now=now)
        return self._rows()

    async def release(self, reservation: Reservation) -> None:
        """The request came to nothing."""
        self._book.release(reservation.channel, reservation.request_id)
        await self._write()

    async def voucher(self, payment: Payment) -> None:
        """A voucher outside a request: it raises the ceiling, or is refused as a smaller one is."""
        if payment.voucher is None or payment.voucher.channel != payment.channel:
            raise PaymentError("a VOUCHER without a voucher for its channel", peer=Peer.PROXY, rule="PAY-3")
        view = await self._view(payment)
        try:
            self._book.raise_ceiling(payment.voucher, view=view, now=self._clock.now())
        finally:
            await self._write()

    async def _write(self) -> None:
        if rows := self._rows():
            await self._store.write(rows)

    def _rows(self) -> list[Write]:
        return [Write(table=BOOK, key=key, value=value) for key, value in self._book.take_rows()]

    def _session_key(self, payment: Payment) -> Secret | None:
        if payment.grant is None:
            return None
        try:
            plaintext, _, _ = decapsulate_request((self._gateway,), payment.grant.sealed_key, label=SESSION_LABEL)
        except PeerError as error:
            raise PaymentError(
                f"the grant's key does not open: {error.code}", peer=Peer.PROXY, rule=NO_SESSION
            ) from None
        return Secret(plaintext)

    # --- the chain ---

    async def _view(self, payment: Payment) -> ChannelView:
        """The channel as the chain showed it lately; looked up again when the voucher at hand asks for more."""
        known = self._views.get(payment.channel)
        wanted = payment.voucher.ceiling if payment.voucher is not None else 0
        if known is not None:
            view, seen = known
            if self._clock.monotonic() - seen < MAX_VIEW_AGE and wanted <= view.spendable:
                return view
        return await self._look(payment.channel)

    async def _look(self, channel: Digest) -> ChannelView:
        view = await self._ledger.channel(channel)
        if view is None:
            raise PaymentError("the chain knows no such channel", peer=Peer.PROXY, rule="PAY-2")
        self._book.open(view)
        self._views[channel] = (view, self._clock.monotonic())
        return view

    async def claim(self, signer: SigningKey, *, everything: bool = False) -> Amount:
        """Look at every channel and claim what is due (PAY-15); how much the chain paid out."""
        claims: list[Claim] = []
        for channel in self._book.channels:
            view = await self._refresh(channel)
            if view is None:
                continue
            due = self._book.claim_now(channel, view=view) if everything else None
            due = due or self._book.claim(channel, view=view, now=self._clock.now())
            if due is not None:
                claims.append(due)
        return Amount(await self._present(claims, signer))

    async def _present(self, claims: list[Claim], signer: SigningKey) -> int:
        """In batches; one the chain refuses does not keep the others from being paid."""
        batches, paid = Batches(claims), 0
        while (batch := batches.take()) is not None:
            before = {claim: self._claimed(claim) for claim in batch}
            try:
                await self._ledger.claim(batch, signer=signer)
            except PaymentError as error:
                if (alone := batches.refused(batch)) is not None:
                    log.error("the chain refuses a claim of %d: %s", alone.total_claimed, error.message)
                continue
            for claim in batch:
                await self._refresh(claim.config.channel_id(self._domain))
                paid += claim.total_claimed - before[claim]
        return paid

    def _claimed(self, claim: Claim) -> int:
        return self._book.channel(claim.config.channel_id(self._domain)).claimed

    async def _refresh(self, channel: Digest) -> ChannelView | None:
        try:
            view = await self._look(channel)
        except (PaymentError, Unavailable) as error:
            log.warning("channel %s: %s", channel.hex()[:12], error.code)
            return None
        self._book.observe(view, now=self._clock.now())
        await self._write()
        return view
