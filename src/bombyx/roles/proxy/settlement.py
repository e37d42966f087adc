# SPDX-License-Identifier: Apache-2.0
"""One request's money, at its end: the worker is agreed what its last good receipt says, the client is charged that and
the commission (spec PAY-8, PAY-13, RCT-3). Also at a restart, for requests the crash cut.

Always: receipts are written before they are acted on; both channels change in one batch; settling again is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Final

from bombyx.errors import MalformedMessage, PaymentError
from bombyx.ports import Store
from bombyx.protocol.pay.payee import Reservation
from bombyx.protocol.pay.payer import PayerChannel
from bombyx.protocol.pay.price import with_commission
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Amount, Digest, RequestId
from bombyx.protocol.wire.receipt import Kind, SignedReceipt
from bombyx.protocol.wire.records import Settlement
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.holdings import DEBT, RECEIPT
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.wallet import Wallet

log = logging.getLogger("bombyx.proxy")

# Rows of RECEIPT: channel, request -> commission, worker's channel, the last good receipt.
_HEAD: Final = struct.Struct(">H32s")
# Rows of DEBT: worker's channel, request -> what is owed, whether that is final. Notes from the replica that settled a
# request with its client to the one that keeps the channel to its worker.
_DEBT: Final = struct.Struct(">16s?")


class Settler:
    """Books what receipts say."""

    def __init__(self, accounts: Accounts, wallet: Wallet, scribe: Scribe) -> None:
        self._accounts = accounts
        self._wallet = wallet
        self._scribe = scribe

    def keep(self, reservation: Reservation, bps: int, worker_channel: Digest, receipt: bytes) -> asyncio.Future[None]:
        """A SignedReceipt was checked: it goes to the store before the client sees it. Done once it is durable."""
        key = reservation.channel + reservation.request_id
        return self._scribe.keep(RECEIPT, [(key, _HEAD.pack(bps, worker_channel) + receipt)])

    def release(self, reservation: Reservation) -> None:
        """It came to nothing. A receipt for nothing delivered, which a worker may have signed, goes with it."""
        self._accounts.release(reservation)
        self._scribe.put(RECEIPT, [(reservation.channel + reservation.request_id, None)])

    async def settle(
        self,
        reservation: Reservation,
        bps: int,
        channel: PayerChannel,
        trail: ReceiptTrail,
        *,
        kept: bool,
        while_: Callable[[], bool],
    ) -> Settlement:
        """Book a request that delivered something; durable when this returns. `kept`: a receipt of it was kept.
        `while_`: how long a store that does not answer is waited for."""
        worker_charge = trail.charge
        charge = with_commission(worker_charge, bps)
        self._wallet.agree(channel, reservation.request_id, worker_charge, final=trail.final is not None)
        if kept:  # it is needed no longer
            self._scribe.put(RECEIPT, [(reservation.channel + reservation.request_id, None)])
        total = await self._accounts.settled(reservation, charge, while_=while_)
        return Settlement(
            request_id=reservation.request_id,
            channel=reservation.channel,
            worker_charge=worker_charge,
            charge=charge,
            charged_total=total,
        )

    async def recover(self, store: Store, channel: Digest | None = None) -> int:
        """After a restart, or of `channel` after a take-over: every request that was cut is settled at its last
        receipt, or released. How many."""
        cut = [one for one in self._accounts.book.in_flight() if channel in (None, one.channel)]
        for reservation in cut:
            row = await store.read(RECEIPT, reservation.channel + reservation.request_id)
            if row is None:
                self._accounts.release(reservation)
            else:
                self._recover(reservation, row)
        await self._scribe.write(RECEIPT, [(one.channel + one.request_id, None) for one in cut])
        return len(cut)

    def _recover(self, reservation: Reservation, row: bytes) -> None:
        bps, worker_channel = _HEAD.unpack_from(row)
        try:
            receipt = SignedReceipt.decode(row[_HEAD.size :]).receipt
        except MalformedMessage:  # not a row of this version: nobody is charged on it
            self._accounts.release(reservation)
            return
        channel = self._wallet.channel(Digest(worker_channel))
        final = receipt.kind is Kind.FINAL
        if channel is not None:
            self._wallet.agree(channel, reservation.request_id, receipt.charge, final=final)
        else:
            note = _DEBT.pack(receipt.charge.to_bytes(16), final)
            self._scribe.put(DEBT, [(worker_channel + reservation.request_id, note)])
        self._accounts.settle(reservation, with_commission(Amount(receipt.charge), bps))

    async def pay_debts(self, store: Store) -> None:
        """Agree to what other replicas settled of requests that went through our channels to workers."""
        paid = []
        for key, note in await store.scan(DEBT):
            channel = self._wallet.channel(Digest(key[:32]))
            if channel is None:
                continue
            charge, final = _DEBT.unpack(note)
            try:
                self._wallet.agree(channel, RequestId(key[32:]), int.from_bytes(charge), final=final)
            except PaymentError as error:  # we settled it otherwise meanwhile, on a later receipt
                log.warning("a noted debt does not fit: %s", error)
            paid.append((key, None))
        if paid:
            await self._scribe.write(DEBT, paid)
