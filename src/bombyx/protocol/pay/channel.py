# SPDX-License-Identifier: Apache-2.0
"""One channel at its payee, as a table of states and events. No I/O, no clock: `payee.py` keeps many of these.

Always: charged + reserved <= ceiling <= what the deposit backed when it was accepted; `ceiling` and `charged` only ever
grow; claimed <= charged; an event that the table does not allow in a phase is refused (spec PAY-3 .. PAY-8, PAY-16).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from bombyx.errors import LocalError, PaymentError, Peer
from bombyx.protocol.pay.grant import signed_by
from bombyx.protocol.primitives import Amount, Digest, Instant, RequestId
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.channel import ChannelConfig, voucher_digest
from bombyx.protocol.wire.request import SignedVoucher
from bombyx.protocol.wire.signing import SigningKey

NOTHING: Final = Amount(0)
NEVER: Final = Instant(0)


class Phase(IntEnum):
    OPEN = 0
    CLOSING = 1  # we promised a refund or the payer is leaving: finish what runs, take nothing new
    CLOSED = 2  # claimed and given back; nothing changes any more


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveVoucher:
    """A verified voucher raised the ceiling."""

    ceiling: Amount
    signature: bytes


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveRequest:
    """A request was authorised up to `cap`."""

    request_id: RequestId
    cap: Amount


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSettle:
    """A request ended and costs `charge`."""

    request_id: RequestId
    charge: Amount
    now: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRelease:
    """A request ended and costs nothing."""

    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveClaim:
    """The chain shows `total` (cumulative) as paid out: less than before where a reorg took a claim back."""

    total: Amount
    now: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionClose:
    """We stop taking requests on this channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveClosed:
    """The chain holds nothing on this channel any more."""


Event = ReceiveVoucher | ReceiveRequest | ActionSettle | ActionRelease | ObserveClaim | ActionClose | ObserveClosed

TRANSITIONS: Final[Mapping[Phase, Mapping[type, Phase]]] = {
    Phase.OPEN: {
        ReceiveVoucher: Phase.OPEN,
        ReceiveRequest: Phase.OPEN,
        ActionSettle: Phase.OPEN,
        ActionRelease: Phase.OPEN,
        ObserveClaim: Phase.OPEN,
        ActionClose: Phase.CLOSING,
        ObserveClosed: Phase.CLOSED,
    },
    Phase.CLOSING: {
        ReceiveVoucher: Phase.CLOSING,
        ActionSettle: Phase.CLOSING,
        ActionRelease: Phase.CLOSING,
        ObserveClaim: Phase.CLOSING,
        ActionClose: Phase.CLOSING,
        ObserveClosed: Phase.CLOSED,
    },
    Phase.CLOSED: {
        ActionSettle: Phase.CLOSED,  # what was still running; no longer claimable, yet counted
        ActionRelease: Phase.CLOSED,
        ObserveClaim: Phase.CLOSED,
        ActionClose: Phase.CLOSED,
        ObserveClosed: Phase.CLOSED,
    },
}


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class PayeeChannel:
    """What a payee knows of one channel. Change it by `step` alone."""

    config: ChannelConfig
    id: Digest
    phase: Phase = Phase.OPEN
    ceiling: Amount = NOTHING
    signature: bytes = b""  # of the voucher for `ceiling`
    charged: Amount = NOTHING
    claimed: Amount = NOTHING
    owed_since: Instant = NEVER  # when the oldest unclaimed charge was made; 0: nothing is owed
    reserved: Mapping[RequestId, Amount] = field(default_factory=lambda: MappingProxyType({}))
    held: int = 0  # sum of `reserved`

    @property
    def room(self) -> int:
        """How much more may be authorised under the ceiling at hand."""
        return self.ceiling - self.charged - self.held

    @property
    def owed(self) -> int:
        """Charged and not yet claimed."""
        return max(0, self.charged - self.claimed)


def step(channel: PayeeChannel, event: Event) -> PayeeChannel:
    """The channel after `event`. Raises `PaymentError` or `LocalError` and changes nothing if it is not allowed."""
    phase = TRANSITIONS[channel.phase].get(type(event))
    if phase is None:
        raise PaymentError(f"a channel that is {channel.phase.name} takes no {type(event).__name__}", rule="PAY-16")
    after = _EFFECTS[type(event)](channel, event)
    return after if after.phase is phase else dataclasses.replace(after, phase=phase)


def _voucher(channel: PayeeChannel, event: ReceiveVoucher) -> PayeeChannel:
    if event.ceiling < channel.ceiling:
        raise PaymentError(f"voucher {event.ceiling} is below {channel.ceiling} already held", rule="PAY-7")
    return dataclasses.replace(channel, ceiling=event.ceiling, signature=event.signature)


def _request(channel: PayeeChannel, event: ReceiveRequest) -> PayeeChannel:
    if event.request_id in channel.reserved:
        raise PaymentError("this request is already in flight", rule="PAY-23")
    if event.cap > channel.room:
        raise PaymentError(
            f"ceiling {channel.ceiling} is below charged {channel.charged} + reserved {channel.held} + cap {event.cap}",
            rule="PAY-5",
        )
    reserved = {**channel.reserved, event.request_id: event.cap}
    return _booked(channel, reserved, channel.held + event.cap, channel.charged, channel.owed_since)


def _settle(channel: PayeeChannel, event: ActionSettle) -> PayeeChannel:
    cap = channel.reserved.get(event.request_id)
    if cap is None:
        raise LocalError("this request was never reserved", rule="PAY-8")
    if event.charge > cap:
        raise LocalError(f"charge {event.charge} is above the cap {cap}", rule="PAY-8")
    since = channel.owed_since if channel.owed or not event.charge else event.now
    return _booked(*_without(channel, event.request_id), Amount(channel.charged + event.charge), since)


def _release(channel: PayeeChannel, event: ActionRelease) -> PayeeChannel:
    if event.request_id not in channel.reserved:
        return channel
    return _booked(*_without(channel, event.request_id), channel.charged, channel.owed_since)


def _without(channel: PayeeChannel, request_id: RequestId) -> tuple[PayeeChannel, dict[RequestId, Amount], int]:
    reserved = dict(channel.reserved)
    cap = reserved.pop(request_id)
    return channel, reserved, channel.held - cap


def _booked(
    channel: PayeeChannel, reserved: dict[RequestId, Amount], held: int, charged: Amount, since: Instant
) -> PayeeChannel:
    """The channel with other bookings. Spelt out: twice a request, and half of what `dataclasses.replace` takes."""
    return PayeeChannel(
        config=channel.config,
        id=channel.id,
        phase=channel.phase,
        ceiling=channel.ceiling,
        signature=channel.signature,
        charged=charged,
        claimed=channel.claimed,
        owed_since=since,
        reserved=MappingProxyType(reserved),
        held=held,
    )


def _claim(channel: PayeeChannel, event: ObserveClaim) -> PayeeChannel:
    since = event.now if channel.charged > event.total else NEVER
    return dataclasses.replace(channel, claimed=event.total, owed_since=since)


def _same(channel: PayeeChannel, event: object) -> PayeeChannel:
    return channel


_EFFECTS: Final[Mapping[type, Callable[[PayeeChannel, Any], PayeeChannel]]] = {
    ReceiveVoucher: _voucher,
    ReceiveRequest: _request,
    ActionSettle: _settle,
    ActionRelease: _release,
    ObserveClaim: _claim,
    ActionClose: _same,
    ObserveClosed: _same,
}


def check_voucher(voucher: SignedVoucher, channel: PayeeChannel, domain: Digest, *, peer: Peer) -> ReceiveVoucher:
    """The event a genuine voucher makes, or `PaymentError` (PAY-3). One that is held already costs no check."""
    if voucher.channel != channel.id:
        raise PaymentError("the voucher is for another channel", peer=peer, rule="PAY-3")
    try:
        ceiling = Amount(voucher.ceiling)
    except ValueError:
        raise PaymentError("a voucher's ceiling is a uint128", peer=peer, rule="PAY-3") from None
    known = ceiling == channel.ceiling and voucher.signature == channel.signature
    digest = voucher_digest(domain, channel.id, ceiling)
    if not known and not signed_by(channel.config.payer_authorizer, digest, voucher.signature):
        raise PaymentError("the voucher is not signed by the channel's payer authorizer", peer=peer, rule="PAY-3")
    return ReceiveVoucher(ceiling=ceiling, signature=voucher.signature)


def sign_voucher(channel: Digest, ceiling: int, domain: Digest, signer: SigningKey) -> SignedVoucher:
    """A voucher of the payer authorizer's key."""
    return SignedVoucher(
        channel=channel, ceiling=ceiling, signature=signer.sign(voucher_digest(domain, channel, ceiling))
    )
