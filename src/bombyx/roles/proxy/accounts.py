# SPDX-License-Identifier: Apache-2.0
"""What clients pay this proxy: the payee's book, the chain's view of each channel, sessions, claims (PAY-2 .. PAY-17).

Always: a voucher is durable before its request is forwarded, a charge before the answer's end is sent; look-ups of
channels nobody knows are bounded; a restart rebuilds the same book from its rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from bombyx.errors import BombyxError, Overloaded, PaymentError, Peer, PeerError, Unavailable
from bombyx.ports import ChannelView, Clock, Ledger, LedgerInfo
from bombyx.protocol.pay.payee import Account, PayeeBook, PayeeTerms, Reservation
from bombyx.protocol.primitives import Amount, Digest, RequestId, Secret
from bombyx.protocol.seal import SESSION_LABEL, GatewayKey, decapsulate_request
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.proxy.claiming import Claims
from bombyx.roles.proxy.holdings import PAYEE
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.settings import ProxySettings

log = logging.getLogger("bombyx.proxy")

MAX_VIEWS = 100_000

Hold = Callable[[Digest], Awaitable[None]]
Rows = Callable[[Digest], Awaitable[list[tuple[bytes, bytes]]]]


@dataclass(frozen=True, slots=True)
class _Seen:
    view: ChannelView
    at: float


class Accounts:
    """Every client's channel."""

    def __init__(
        self,
        settings: ProxySettings,
        key: SigningKey,
        pay_key: GatewayKey,
        info: LedgerInfo,
        rows: list[tuple[bytes, bytes]],
        *,
        ledger: Ledger,
        clock: Clock,
        scribe: Scribe,
        hold: Hold | None = None,
        stored: Rows | None = None,
    ) -> None:
        """`hold`: asked before each reservation; returns once this process keeps the channel's book. `stored`: a
        channel's rows, whoever keeps it. Both None: this process keeps all there are."""
        self._settings = settings
        self._key = key
        self._pay_keys = (pay_key,)
        self._ledger = ledger
        self._clock = clock
        self._scribe = scribe
        self._hold = hold
        self._stored = stored
        terms = PayeeTerms(
            receiver=key.address,
            receiver_authorizer=key.address,
            token=info.token,
            longest_request=int(settings.timings.max_deadline),
            claim_threshold=settings.claim_threshold,
            claim_age=settings.claim_age,
        )
        domain = settlement_domain(info.chain_id, info.settlement)
        self.book = PayeeBook.load(terms, domain, rows, payer=Peer.CLIENT)
        self._views: dict[Digest, _Seen] = {}
        self._lookups = asyncio.Semaphore(settings.limits.lookups)
        self._refreshing: set[Digest] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims = Claims(self.book, ledger=ledger, clock=clock, signer=key, seen=self._saw)

    async def reserve(
        self, payment: Payment, *, request_id: RequestId, cap: int, meta_hash: Digest, body_hash: Digest
    ) -> Reservation:
        """Reserve what the request may cost. Raises `PaymentError`. What the payment promises anew is durable when this
        returns; below the ceiling nothing is, and the row only has to go before the charge's (PAY-17)."""
        view = await self._view(payment)
        if self._hold is not None:
            await self._hold(payment.channel)
        if payment.channel not in self.book:  # from here to the write nothing is awaited
            self.book.open(view)
        reservation = self.book.accept(
            payment,
            request_id=request_id,
            cap=cap,
            meta_hash=meta_hash,
            body_hash=body_hash,
            now=self._clock.now(),
            view=view,
            session_key=self._session_key(payment),
        )
        promises = payment.voucher is not None or payment.grant is not None
        if self._hold is None and not promises and not self._scribe.owes:
            self._scribe.put(PAYEE, self.book.take_rows())
            return reservation
        try:  # where a lease may be lost, or the store is away, the worker's payment must not go ahead alone
            await self._scribe.write(PAYEE, self.book.take_rows())
        except BombyxError:
            self.release(reservation)
            raise
        return reservation

    def _session_key(self, payment: Payment) -> Secret | None:
        if payment.grant is None or not self.book.wants_key(payment):
            return None
        try:
            key, _, _ = decapsulate_request(self._pay_keys, payment.grant.sealed_key, label=SESSION_LABEL)
        except PeerError:
            return None  # the book refuses with its own rule
        return Secret(key)

    def open_of(self, channel: Digest) -> int:
        """Requests under way on a channel."""
        return len(self.book.channel(channel).reserved) if channel in self.book else 0

    def settle(self, reservation: Reservation, charge: Amount) -> None:
        """Charge. Durable with the scribe's next `write`."""
        self.book.settle(reservation.channel, reservation.request_id, charge, now=self._clock.now())
        self._scribe.put(PAYEE, self.book.take_rows())

    async def settled(self, reservation: Reservation, charge: Amount, *, while_: Callable[[], bool]) -> Amount:
        """Charge, durably, and give the channel's new total. A store that does not answer is waited for `while_` that
        is true. `LeaseLost`: another replica keeps the channel now."""
        self.book.settle(reservation.channel, reservation.request_id, charge, now=self._clock.now())
        total = self.book.channel(reservation.channel).charged
        await self._scribe.insist(PAYEE, self.book.take_rows(), while_=while_)
        return total

    def release(self, reservation: Reservation) -> None:
        if reservation.channel in self.book:  # else another replica keeps it, and releases it when it takes it in
            self.book.release(reservation.channel, reservation.request_id)
            self._scribe.put(PAYEE, self.book.take_rows())

    def keeps(self, reservation: Reservation) -> bool:
        """Whether the reservation is still on this process' books."""
        channel = reservation.channel
        return channel in self.book and reservation.request_id in self.book.channel(channel).reserved

    def account(self, channel: Digest) -> Account:
        return self.book.account(channel)

    async def close_channel(self, channel: Digest, view: ChannelView) -> None:
        """Take no more requests on a channel; durable when this returns (PAY-16). Not while one is in flight."""
        if self._hold is not None:
            await self._hold(channel)
        if self.open_of(channel):
            raise Unavailable("requests are under way on this channel", retry_after=2.0, rule="PAY-25")
        if channel not in self.book:
            self.book.open(view)
        self.book.close(channel)
        await self._scribe.write(PAYEE, self.book.take_rows())

    async def stored(self, channel: Digest) -> Account | None:
        """A channel that another process keeps, as its last commit left it; None for one that nobody knows."""
        if self._stored is None:
            return None
        if self._lookups.locked():
            raise Overloaded("too many channels are being looked up", retry_after=1.0, rule="PROXY-4")
        async with self._lookups:
            rows = await self._stored(channel)
        return PayeeBook.load(self.book.terms, self.book.domain, rows).account(channel) if rows else None

    # --- the chain ---

    async def look_up(self, channel: Digest) -> ChannelView:
        """The channel as the chain shows it now. Raises `PaymentError` when there is none."""
        return await self._look_up(channel)

    async def _view(self, payment: Payment) -> ChannelView:
        """The channel on chain: a little old is good enough, unless the voucher shows that it was topped up."""
        seen = self._views.get(payment.channel)
        if seen is None:
            return await self._look_up(payment.channel)
        age, fresh = self._clock.monotonic() - seen.at, self._settings.timings.view_fresh
        if payment.voucher is not None and payment.voucher.ceiling > seen.view.spendable:
            return await self._look_up(payment.channel)
        if age > 4 * fresh:
            return await self._look_up(payment.channel)
        if age > fresh and payment.channel not in self._refreshing:
            self._refreshing.add(payment.channel)
            task = asyncio.get_running_loop().create_task(self._refresh(payment.channel))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return seen.view

    async def _refresh(self, channel: Digest) -> None:
        try:
            await self._look_up(channel)
        except BombyxError as error:
            log.warning("cannot refresh a channel's view: %s", error)
        finally:
            self._refreshing.discard(channel)

    async def _look_up(self, channel: Digest) -> ChannelView:
        if self._lookups.locked():
            raise Overloaded("too many channels are being looked up", retry_after=1.0, rule="PROXY-4")
        async with self._lookups:
            view = await self._ledger.channel(channel)
        if view is None:
            raise PaymentError("there is no such channel on this chain", peer=Peer.CLIENT, rule="PAY-2")
        if len(self._views) >= MAX_VIEWS:
            self._views.clear()
        self._views[channel] = _Seen(view, self._clock.monotonic())
        return view

    async def claim(self, *, everything: bool = False) -> int:
        """Present what is worth presenting; how many claims went through."""
        try:
            return await self._claims.collect(everything=everything)
        finally:
            await self._scribe.write(PAYEE, self.book.take_rows())

    @property
    def leaving_others(self) -> frozenset[Digest]:
        """Channels another process keeps, or none, whose payers were heard to withdraw in the last round of claims."""
        return self._claims.leaving_others

    def heard_leaving(self, channels: Iterable[Digest]) -> None:
        """Payers who were seen to withdraw: the next round of claims looks at their channels."""
        self._claims.leaving_others = self._claims.leaving_others.union(channels)

    def _saw(self, view: ChannelView) -> None:
        self._views[view.config.channel_id(self.book.domain)] = _Seen(view, self._clock.monotonic())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
