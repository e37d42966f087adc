# SPDX-License-Identifier: Apache-2.0
"""`bombyx proxy` that checks a request's session MAC and forwards it, and does nothing else: what the transports cost.

For `relay.py` alone; nobody may run it for money. It is the shipped process with its servers, links and streams. Left
out: prices, reservations, choice by load, receipts' signatures, both books and the commit to disk.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Any, cast

from bombyx.cli import main
from bombyx.compose import proxy as composition
from bombyx.errors import PaymentError, Peer
from bombyx.ports import HttpExchange
from bombyx.protocol.pay.grant import Session, mac
from bombyx.protocol.pay.trail import ReceiptTrail
from bombyx.protocol.primitives import Digest, Secret, sha256
from bombyx.protocol.seal import SESSION_LABEL, check_layout, decapsulate_request, parse_envelope
from bombyx.protocol.wire.records import LinkType, Record, WorkerRequest, write_record
from bombyx.protocol.wire.request import Meta, Payment
from bombyx.roles.proxy.front import BLIND
from bombyx.roles.proxy.relay import Stream
from bombyx.roles.proxy.runtime import Proxy

WINDOW = 262_144  # bytes of credit, as `ProxySettings`


class Uncounted:
    """A trail that counts frames and believes every receipt."""

    final = True
    frames = 0

    def delivered(self, _response_hash: Digest, _size: int) -> None:
        self.frames += 1


class Forwarded(Stream):
    """Receipts pass unread."""

    __slots__ = ()

    def on_receipt(self, payload: bytes) -> None:
        if self.trail.frames:
            self._out.append(write_record(Record.RECEIPT, payload))


def _kept(_receipt: bytes) -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


class Forwarder(Proxy):
    """Everything but sealed requests goes the shipped way."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._sessions: dict[Digest, Session] = {}

    def handle(self, exchange: HttpExchange) -> None:
        if exchange.request.path != BLIND:
            super().handle(exchange)
            return
        envelope = parse_envelope(exchange.request.body)
        payment, meta = Payment.decode(envelope.payment_bytes), Meta.decode(envelope.meta_bytes)
        check_layout(meta, envelope.wraps)
        self._authenticate(payment, sha256(envelope.meta_bytes), envelope.payload_hash)
        seat = self.roster.find(meta.candidates[0])
        assert seat is not None
        link, trail = seat.worker.link, cast(ReceiptTrail, Uncounted())
        stream = link.open(
            Forwarded(
                link, exchange, candidate=meta.candidates[0], trail=trail, window=WINDOW,
                on_receipt=_kept,
            )
        )  # fmt: skip
        exchange.on_disconnect, exchange.on_resume = stream.cancel, stream.grant
        stream.ended.add_done_callback(lambda _: stream.say_last(write_record(Record.END, b"")))
        wrap = envelope.wrap_of(meta, meta.candidates[0])
        request = WorkerRequest(payment=payment, meta=envelope.meta_bytes, wrap=wrap, body=envelope.body)
        link.send(LinkType.REQUEST_END, stream.number, request.encode())

    def _authenticate(self, payment: Payment, meta_hash: Digest, body_hash: Digest) -> None:
        session = self._sessions.get(payment.channel)
        if session is None:
            assert payment.grant is not None
            key, _, _ = decapsulate_request((self._pay_key,), payment.grant.sealed_key, label=SESSION_LABEL)
            session = Session(key=Secret(key), key_hash=payment.grant.key_hash, not_after=payment.grant.not_after)
        expected = mac(session.key, payment.channel, payment.counter, meta_hash, body_hash, payment.cap)
        if not hmac.compare_digest(expected, payment.mac or b""):
            raise PaymentError("the MAC does not fit the request", peer=Peer.CLIENT, rule="PAY-10")
        self._sessions[payment.channel] = session.admit(payment.counter, peer=Peer.CLIENT)


if __name__ == "__main__":
    vars(composition)["Proxy"] = Forwarder
    main()
