# SPDX-License-Identifier: Apache-2.0
"""Who may have a stream: the envelope's layout, Meta, limits and payment, cheap checks first (spec PROXY-1 .. PROXY-6).

Always: nothing is decoded before its size was checked; nothing is asked of the chain before every local check passed; a
request that is admitted is reserved durably, and whoever holds a `Job` holds that reservation.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import (
    BadRequest,
    DeadlineExceeded,
    KeyConfigError,
    NoWorkers,
    Overloaded,
    PaymentError,
    Peer,
    Unavailable,
)
from bombyx.ports import Clock, HttpExchange
from bombyx.protocol.pay.payee import Reservation
from bombyx.protocol.pay.price import line_cap, with_commission
from bombyx.protocol.primitives import Address, Amount, Digest, sha256
from bombyx.protocol.quick import quick
from bombyx.protocol.seal import Envelope, check_layout, parse_envelope, payload_hash
from bombyx.protocol.seal.envelope import request_hash_of
from bombyx.protocol.wire.market import ModelPrice
from bombyx.protocol.wire.request import MAX_FRAME, MIN_FRAME, Meta, Payment
from bombyx.roles.proxy.accounts import Accounts
from bombyx.roles.proxy.roster import Roster, Seat
from bombyx.roles.proxy.settings import ProxySettings

REQUEST_TYPE: Final = "application/vnd.bombyx.request"
MAX_UNITS: Final = 1 << 32
BURST_SECONDS: Final = 2.0
MOST_ASKED: Final = 1_024  # prices a seat remembers
SHOWN_CIPHERTEXT: Final = 32  # bytes of the sealed body that a view shows


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A candidate that may serve this request, and the most it may charge."""

    candidate: Digest
    seat: Seat
    price: ModelPrice
    worker_cap: Amount
    client_cap: Amount


@quick
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """An admitted request: read, priced, paid for."""

    exchange: HttpExchange = field(repr=False)
    envelope: Envelope = field(repr=False)
    meta: Meta
    hashes: Hashes
    contestants: tuple[Contestant, ...]
    reservation: Reservation
    arrived: float  # monotonic


class Hashes:
    """Of an envelope's parts: each is asked for by client's payment, worker's payment and receipt, and made once."""

    __slots__ = ("_all", "_wraps", "body", "meta")

    def __init__(self, envelope: Envelope) -> None:
        self.meta = sha256(envelope.meta_bytes)
        self.body = sha256(envelope.body)
        self._wraps = envelope.wraps
        self._all = envelope.payload_hash

    def payload(self, wrap: bytes, envelope: Envelope) -> Digest:
        """What the worker's payment covers. With one candidate it is what the client's covers."""
        return self._all if len(self._wraps) <= 1 else payload_hash((wrap,), envelope.body)

    @property
    def everything(self) -> Digest:
        """What the client's payment covers."""
        return self._all

    def request(self, wrap: bytes) -> Digest:
        """What the worker's receipts must name."""
        return request_hash_of(self.meta, wrap, self.body)


class Rates:
    """A token bucket per channel, the least recently used forgotten first."""

    def __init__(self, per_second: float, most: int) -> None:
        self._rate = per_second
        self._burst = max(1.0, per_second * BURST_SECONDS)
        self._most = most
        self._buckets: OrderedDict[Digest, tuple[float, float]] = OrderedDict()

    def wait(self, channel: Digest, now: float) -> float:
        """0.0 when one request may pass now; else how many seconds to wait. Changes nothing."""
        return max(0.0, 1.0 - self._tokens(channel, now)) / self._rate

    def take(self, channel: Digest, now: float) -> None:
        """A request of this channel passed. Count only what its payer authorised: anybody can name a channel."""
        self._buckets[channel] = (self._tokens(channel, now) - 1.0, now)
        self._buckets.move_to_end(channel)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)

    def _tokens(self, channel: Digest, now: float) -> float:
        tokens, at = self._buckets.get(channel, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._rate)


class Admission:
    """Reads, checks, reserves."""

    def __init__(
        self, settings: ProxySettings, address: Address, roster: Roster, accounts: Accounts, clock: Clock
    ) -> None:
        self._settings = settings
        self._address = address
        self._roster = roster
        self._accounts = accounts
        self._clock = clock
        self._rates = Rates(settings.limits.rate_per_channel, settings.limits.channels)
        self.open = 0
        self.held_bytes = 0

    def check_room(self, exchange: HttpExchange) -> None:
        """Before anything is read: are we full, is it the right thing, is it too large?"""
        limits, retry = self._settings.limits, self._settings.timings.retry_after
        size = len(exchange.request.body)
        if exchange.request.headers.get("content-type", "").partition(";")[0].strip().lower() != REQUEST_TYPE:
            raise BadRequest(f"content-type must be {REQUEST_TYPE}", status=415, peer=Peer.CLIENT, rule="PROXY-1")
        if size > limits.max_body:
            raise BadRequest(
                f"a request of {size} bytes, at most {limits.max_body}", status=413, peer=Peer.CLIENT, rule="PROXY-1"
            )
        if self.open >= limits.open_total or self.held_bytes + size > limits.held_bytes:
            raise Unavailable("this proxy is full", retry_after=retry, rule="PROXY-4")

    async def admit(self, exchange: HttpExchange, arrived: float) -> Job:
        """Raises `MalformedMessage`, `BadRequest`, `PaymentError`, `KeyConfigError` or an `Unavailable`."""
        envelope = parse_envelope(exchange.request.body)
        payment, meta = Payment.decode(envelope.payment_bytes), Meta.decode(envelope.meta_bytes)
        check_layout(meta, envelope.wraps)
        self._check_meta(meta)
        self._check_rate(payment)
        contestants = self._affordable(self._contestants(meta), payment)
        hashes = Hashes(envelope)
        reservation = await self._accounts.reserve(
            payment,
            request_id=meta.request_id,
            cap=min(c.client_cap for c in contestants),
            meta_hash=hashes.meta,
            body_hash=hashes.everything,
        )
        self._rates.take(payment.channel, self._clock.monotonic())
        return Job(
            exchange=exchange,
            envelope=envelope,
            meta=meta,
            hashes=hashes,
            contestants=contestants,
            reservation=reservation,
            arrived=arrived,
        )

    def _check_meta(self, meta: Meta) -> None:
        now = self._clock.now()
        if meta.v != 1 or meta.proxy != self._address:
            raise BadRequest(
                f"sealed for proxy {meta.proxy}, this is {self._address}", peer=Peer.CLIENT, rule="PROXY-2"
            )
        if meta.commission_bps != self._settings.commission_bps:
            raise BadRequest(
                f"a commission of {meta.commission_bps} bps, this proxy takes {self._settings.commission_bps}",
                status=409,
                peer=Peer.CLIENT,
                rule="PAY-13",
                code="price_changed",
            )
        if meta.deadline <= now:
            raise DeadlineExceeded("the request's deadline has passed", rule="PROXY-2")
        if meta.deadline > now.plus(seconds=self._settings.timings.max_deadline + 5):
            most = self._settings.timings.max_deadline
            raise BadRequest(f"a deadline more than {most} s ahead", peer=Peer.CLIENT, rule="PROXY-2")
        if max(meta.max_input, meta.max_output) > MAX_UNITS or not MIN_FRAME <= meta.frame_size <= MAX_FRAME:
            raise BadRequest("caps or frame size out of bounds", peer=Peer.CLIENT, rule="PROXY-2")

    def _check_rate(self, payment: Payment) -> None:
        limits = self._settings.limits
        if self._accounts.open_of(payment.channel) >= limits.open_per_channel:
            raise Overloaded(
                f"{limits.open_per_channel} requests are open on this channel",
                retry_after=self._settings.timings.retry_after,
                rule="PROXY-4",
            )
        wait = self._rates.wait(payment.channel, self._clock.monotonic())
        if wait:
            raise Overloaded(
                f"more than {limits.rate_per_channel:g} requests per second on this channel",
                retry_after=wait,
                rule="PROXY-4",
            )

    def _contestants(self, meta: Meta) -> list[Contestant]:
        now = self._clock.now()
        known = changed = 0
        found: list[Contestant] = []
        for candidate, sheet_digest in zip(meta.candidates, meta.price_sheets, strict=True):
            seat = self._roster.find(candidate)
            if seat is None or seat.result.until <= now:
                continue
            known += 1
            if seat.sheet_digest != sheet_digest:
                changed += 1
            elif meta.model in seat.result.keyset.models and not seat.worker.draining:
                found.append(_contestant(candidate, seat, meta))
        if not known and not any(map(self._roster.departed, meta.candidates)):
            raise KeyConfigError("no candidate of this request is linked here", peer=Peer.CLIENT, rule="PROXY-3")
        if not found and changed:
            raise BadRequest(
                "the candidates' prices have changed",
                status=409,
                peer=Peer.CLIENT,
                rule="PAY-12",
                code="price_changed",
            )
        if not found:
            raise NoWorkers("no candidate takes requests for this model", retry_after=1.0, rule="PROXY-3")
        return found

    def _affordable(self, contestants: list[Contestant], payment: Payment) -> tuple[Contestant, ...]:
        fitting = tuple(c for c in contestants if c.client_cap <= payment.cap)
        if not fitting:
            needed = min(c.client_cap for c in contestants)
            raise PaymentError(
                f"a cap of {payment.cap} is authorised, {needed} is needed", peer=Peer.CLIENT, rule="PAY-5"
            )
        return fitting


def _contestant(candidate: Digest, seat: Seat, meta: Meta) -> Contestant:
    """What clients ask of a seat is mostly the same: the same model, the same limits."""
    asked = (candidate, meta.model, meta.max_input, meta.max_output, meta.commission_bps)
    known = seat.asked.get(asked)
    if known is None:
        if len(seat.asked) >= MOST_ASKED:
            seat.asked.clear()
        known = seat.asked[asked] = _priced(candidate, seat, meta)
    return known


def _priced(candidate: Digest, seat: Seat, meta: Meta) -> Contestant:
    price = seat.lines[meta.model]  # every model of a keyset has a line: `Desk` let it in
    cap = line_cap(price, seat.sheet.grain, meta.max_input, meta.max_output)
    return Contestant(
        candidate=candidate,
        seat=seat,
        price=price,
        worker_cap=cap,
        client_cap=with_commission(cap, meta.commission_bps),
    )
