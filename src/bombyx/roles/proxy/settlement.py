# SPDX-License-Identifier: Apache-2.0
"""One request's money, at its end: the worker is agreed what its last good receipt says, the client is charged that and
the commission (spec PAY-8, PAY-13, RCT-3). Also at a restart, for requests the crash cut.

Always: receipts are written before they are acted on; both channels change in one batch; settling again is harmless.
"""

from __future__ import annotations

import struct
from typing import Final

from bombyx.errors import MalformedMessage
from bombyx.ports import Store
from bombyx.protocol.pay.payee import Reservation
from bombyx.protocol.pay.payer import PayerChannel
from bombyx.protocol.pay.price import with_commission
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.wire.receipt import Kind, SignedReceipt
from bombyx.protocol.wire.records import Settlement
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.scribe import Scribe
from bombyx.roles.proxy.wallet import Wallet

TABLE: Final = "proxy_receipt"  # channel, request -> commission, worker's channel, the last good receipt
_HEAD: Final = struct.Struct(">H32s")


class Settler:
    """Books what receipts say."""

    def __init__(self, accounts: Accounts, wallet: Wallet, scribe: Scribe) -> None:
        self._accounts = accounts
        self._wallet = wallet
        self._scribe = scribe

    def keep(self, reservation: Reservation, bps: int, worker_channel: Digest, receipt: bytes) -> None:
        """A SignedReceipt was checked: it goes to the store before anything is booked on it."""
        key = reservation.channel + reservation.request_id
        self._scribe.put(TABLE, [(key, _HEAD.pack(bps, worker_channel) + receipt)])

    async def settle(
        self, reservation: Reservation, bps: int, channel: PayerChannel, trail: ReceiptTrail
    ) -> Settlement:
        """Book a request that delivered something; durable when this returns."""
        worker_charge = trail.charge
        charge = with_commission(worker_charge, bps)
        self._wallet.agree(channel, reservation.request_id, worker_charge, final=trail.final is not None)
        total = self._accounts.settle(reservation, charge)
        await self._scribe.write(TABLE)
        return Settlement(
            request_id=reservation.request_id,
            channel=reservation.channel,
            worker_charge=worker_charge,
            charge=charge,
            charged_total=total,
        )

    async def recover(self, store: Store) -> int:
        """After a restart: every request that was cut is settled at its last receipt, or released. How many."""
        cut = self._accounts.book.in_flight()
        for reservation in cut:
            row = await store.read(TABLE, reservation.channel + reservation.request_id)
            if row is None:
                self._accounts.release(reservation)
            else:
                self._recover(reservation, row)
        await self._scribe.write(TABLE)
        return len(cut)

    def _recover(self, reservation: Reservation, row: bytes) -> None:
        bps, worker_channel = _HEAD.unpack_from(row)
        try:
            receipt = SignedReceipt.decode(row[_HEAD.size :]).receipt
        except MalformedMessage:  # not a row of this version: nobody is charged on it
            self._accounts.release(reservation)
            return
        channel = self._wallet.channel(Digest(worker_channel))
        if channel is not None:
            final = receipt.kind is Kind.FINAL
            self._wallet.agree(channel, reservation.request_id, receipt.charge, final=final)
        self._accounts.settle(reservation, with_commission(Amount(receipt.charge), bps))
