# SPDX-License-Identifier: Apache-2.0
"""The till of a paid endpoint: strangers' channels, each request paid by one voucher before it is served.

The rules stand in `protocol/pay` (the payee's book in strict mode, x402's words); this file brings it a ledger, a
carrier of deposits, a store and a clock. Not here: HTTP (`paid.py`), what an answer costs (`core.py`).

Always: what costs nothing to refuse is refused before the chain is asked, and the chain is asked before gas is spent; a
voucher is durable before its request is served, a charge before the answer's end; one request a channel (spec X402-4 ..
X402-6, X402-11).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bombyx.errors import BombyxError, Overloaded, PaymentError, Peer
from bombyx.ports import Carrier, ChannelView, Claim, Clock, Ledger, LedgerInfo, Store, Write
from bombyx.protocol.pay.channel import PayeeChannel, check_voucher
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms, Reservation
from bombyx.protocol.pay.price import with_commission
from bombyx.protocol.pay.x402 import Asking, Standing
from bombyx.protocol.pay.x402_payment import Presented, check_deposit
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId
from bombyx.protocol.wire.channel import settlement_domain
from bombyx.protocol.wire.request import Payment
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.settings import PaidSettings
from bombyx.roles.client.sight import Sight

log = logging.getLogger(__name__)
TABLE: Final = "client_till"
CLAIMS: Final = 50  # vouchers of one transaction: 18 000 gas each from here on

PaidFor = Callable[[RequestId], Awaitable[int]]  # what the answer to a request cost us, from its kept receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """A request that is paid for up to `reservation.cap`. `transaction`: of the deposit that came with it."""

    reservation: Reservation
    payer: Address
    transaction: Digest | None


async def asking_of(
    settings: PaidSettings, info: LedgerInfo, carrier: Carrier, *, receiver: Address, key: SigningKey, notice: str
) -> Asking:
    """What every 402 of this endpoint says."""
    terms = await carrier.terms()
    return Asking(
        chain_id=info.chain_id,
        token=info.token,
        token_name=terms.token_name,
        token_version=terms.token_version,
        collector=terms.collector,
        receiver=receiver,
        receiver_authorizer=key.address,
        withdraw_delay=settings.withdraw_delay,
        min_deposit=settings.min_deposit,
        notice=notice,
    )


class Till:
    """`await open()` before the first sale."""

    def __init__(
        self,
        settings: PaidSettings,
        asking: Asking,
        info: LedgerInfo,
        *,
        key: SigningKey,
        ledger: Ledger,
        carrier: Carrier,
        store: Store,
        clock: Clock,
        longest_request: float,
    ) -> None:
        self.settings = settings
        self.asking = asking
        self.url = ""  # where strangers reach us; stands in every 402
        self._key = key  # receiver authorizer: claims, carries deposits, and pays the gas of both
        self._ledger = ledger
        self._carrier = carrier
        self._store = store
        self._clock = clock
        self._domain = settlement_domain(info.chain_id, info.settlement)
        self._terms = PayeeTerms(
            receiver=asking.receiver,
            receiver_authorizer=key.address,
            token=info.token,
            claim_interval=max(1, int(settings.claim_seconds)),
            longest_request=int(longest_request),
            claim_threshold=settings.claim_threshold,
            claim_age=settings.claim_age,
        )
        self.book = PayeeBook(self._terms, self._domain, payer=Peer.CLIENT)
        self._busy: set[Digest] = set()
        self._sight = Sight(ledger, clock, seconds=settings.view_seconds, at_once=settings.lookups)
        self._writing = asyncio.Lock()
        self._unwritten: list[Write] = []  # rows of a failed write go first with the next one
        self._watch: asyncio.Task[None] | None = None

    async def open(self, paid_for: PaidFor) -> None:
        """Read the book back and end what an earlier process left open: by its receipt, or for nothing (X402-11)."""
        rows = await self._store.scan(TABLE)
        self.book = PayeeBook.load(self._terms, self._domain, rows, payer=Peer.CLIENT)
        for cut in self.book.in_flight():
            self.book.settle(
                cut.channel, cut.request_id, self._charge(cut, await paid_for(cut.request_id)), now=self._now
            )
        await self._write()
        self._watch = asyncio.get_running_loop().create_task(self._watching())

    async def close(self) -> None:
        """Claim what is owed: whoever withdraws while we are away must not take it along."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        try:
            await self.claim(everything=True)
        except BombyxError as error:
            log.warning("not claimed at the end: %s", error)

    @property
    def margin(self) -> int:
        """Seconds that a withdrawal must leave us, at the least."""
        return self._terms.margin

    # --- a sale ---

    async def take(self, presented: Presented, request_id: RequestId, *, price: int) -> Sale:
        """Reserve what the request may cost at most; durable when this returns. Raises `PaymentError`, `Overloaded`."""
        channel = self._channel_of(presented)
        if channel in self._busy:
            raise Overloaded("the channel has a request under way", retry_after=1.0, rule="X402-5")
        if len(self._busy) >= self.settings.max_open:
            raise Overloaded(f"{self.settings.max_open} answers are under way", retry_after=1.0, rule="X402-10")
        self._busy.add(channel)
        try:
            return await self._taken(presented, channel, request_id, price)
        except BaseException:
            self._busy.discard(channel)
            raise

    async def settle(self, sale: Sale, paid: int) -> int:
        """Charge for an answer that cost us `paid`: with our margin, never above the cap. Durable when this returns."""
        reservation = sale.reservation
        charge = self._charge(reservation, paid)
        try:
            self.book.settle(reservation.channel, reservation.request_id, charge, now=self._now)
            await self._write()
        finally:
            self._busy.discard(reservation.channel)
        return charge

    def price(self, cost: int) -> int:
        """What we ask for what may cost us `cost`."""
        return int(with_commission(cost, self.settings.margin_bps))

    async def standing(self, presented: Presented) -> Standing | None:
        """For a payer whose voucher is genuine and counts from another base: where we stand. Else None."""
        try:
            channel = self._channel_of(presented)
        except PaymentError:
            return None
        if channel in self.book:
            return self.stands(channel)
        view = await self._sight.view(channel)
        if view is None:
            return None
        return Standing(channel=channel, charged=int(view.total_claimed), ceiling=0, signature=b"", view=view)

    def stands(self, channel: Digest) -> Standing:
        """A channel of the book."""
        found = self.book.channel(channel)
        return Standing(
            channel=channel,
            charged=int(found.charged),
            ceiling=int(found.ceiling),
            signature=found.signature,
            view=self._sight.last(channel),
        )

    def _channel_of(self, presented: Presented) -> Digest:
        """Everything that can be known without the chain: the channel is one to us, and its payer signed."""
        channel = presented.config.channel_id(self._domain)
        self.book.check_config(presented.config)
        known = (
            self.book.channel(channel) if channel in self.book else PayeeChannel(config=presented.config, id=channel)
        )
        check_voucher(presented.voucher, known, self._domain, peer=Peer.CLIENT)
        return channel

    async def _taken(self, presented: Presented, channel: Digest, request_id: RequestId, price: int) -> Sale:
        if presented.amount < price:
            raise PaymentError(f"{int(presented.amount)} is offered, it may cost {price}", rule="PAY-5")
        view = await self._sight.view(channel, at_least=presented.voucher.ceiling)
        charged = self._charged(channel, view)
        if presented.voucher.ceiling != charged + presented.amount:
            raise PaymentError(
                f"voucher {presented.voucher.ceiling} is not charged {charged} + amount {int(presented.amount)}",
                peer=Peer.CLIENT,
                rule="PAY-14",
            )
        transaction = None
        if presented.deposit is not None:
            transaction = await self._carry(presented, channel, view)
            view = await self._sight.view(channel, at_least=2**128)
        if view is None:
            raise PaymentError("there is no such channel on this chain", peer=Peer.CLIENT, rule="PAY-2")
        self.book.open(view)
        payment = Payment(
            v=1, channel=channel, cap=presented.amount, voucher=presented.voucher, grant=None, counter=0, mac=b""
        )
        zero = Digest.zero()
        reservation = self.book.accept(
            payment, request_id=request_id, cap=price, meta_hash=zero, body_hash=zero, now=self._now, view=view
        )
        try:
            await self._write()
        except BombyxError:
            self.book.release(channel, request_id)
            raise
        return Sale(reservation=reservation, payer=presented.config.payer, transaction=transaction)

    def _charged(self, channel: Digest, view: ChannelView | None) -> int:
        if channel in self.book:
            return int(self.book.channel(channel).charged)
        return int(view.total_claimed) if view is not None else 0

    async def _carry(self, presented: Presented, channel: Digest, view: ChannelView | None) -> Digest:
        deposit = presented.deposit
        assert deposit is not None
        check_deposit(presented, channel, self.asking, now=self._now)
        backed = int(deposit.amount) + (int(view.spendable) if view else 0)
        if presented.voucher.ceiling > backed:
            raise PaymentError(f"voucher {presented.voucher.ceiling} is above {backed}", rule="PAY-4", peer=Peer.CLIENT)
        async with self._sight.turn():
            if await self._ledger.balance(presented.config.payer) < deposit.amount:
                raise PaymentError("the payer does not have what it deposits", peer=Peer.CLIENT, rule="X402-4")
            return await self._carrier.carry(presented.config, deposit, signer=self._key)

    def _charge(self, reservation: Reservation, paid: int) -> int:
        return min(int(reservation.cap), self.price(paid))

    @property
    def _now(self) -> Instant:
        return self._clock.now()

    # --- the chain ---

    async def claim(self, *, everything: bool = False) -> int:
        """Present what is worth presenting, in batches; how many vouchers the chain took."""
        due: list[Claim] = []
        for channel in self.book.channels:
            view = await self._sight.look(channel) if self.book.channel(channel).owed else None
            if view is None:
                continue
            self.book.observe(view, now=self._now)
            found = self.book.claim_now(channel) if everything else self.book.claim(channel, view=view, now=self._now)
            if found is not None:
                due.append(found)
        taken = 0
        for start in range(0, len(due), CLAIMS):
            taken += await self._present(due[start : start + CLAIMS])
        await self._write()
        return taken

    async def _present(self, claims: Sequence[Claim]) -> int:
        """A voucher the chain refuses must not keep the others from being paid."""
        taken = len(claims)
        try:
            await self._ledger.claim(claims, signer=self._key)
        except PaymentError as error:
            if len(claims) == 1:
                log.warning("a voucher is refused: %s", error)
                return 0
            taken = sum([await self._present([one]) for one in claims])
        else:
            for one in claims:
                view = await self._sight.look(one.config.channel_id(self._domain))
                if view is not None:
                    self.book.observe(view, now=self._now)
        return taken

    async def _watching(self) -> None:
        while True:
            await self._clock.sleep(self.settings.claim_seconds)
            try:
                await self.claim()
            except BombyxError as error:
                log.warning("cannot claim now: %s", error)

    async def _write(self) -> None:
        async with self._writing:
            self._unwritten += [Write(table=TABLE, key=key, value=value) for key, value in self.book.take_rows()]
            if self._unwritten:
                await self._store.write(self._unwritten)
                self._unwritten = []
