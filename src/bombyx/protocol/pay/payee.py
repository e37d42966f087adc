# SPDX-License-Identifier: Apache-2.0
"""The payee's book: channels, sessions, and the rows to write before acting (spec PAY-2 .. PAY-11, PAY-14 .. PAY-17).

A proxy keeps one for its clients, a worker's enclave one for its proxies. Deterministic: no I/O, no clock. After every
call, `take_rows()` gives what must be durable before the caller acts on the call's answer (forwards a request, ends an
answer); rows must reach the store in the order they were taken.

Always: what was accepted is backed by a voucher we hold and a deposit we saw; a call that raises changes nothing but
the session counter it used up; settling twice changes nothing; reading the rows back gives the same book without its
sessions.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from bombyx.errors import LocalError, PaymentError, Peer
from bombyx.protocol.pay import grant as grants
from bombyx.protocol.pay import rows as r
from bombyx.protocol.pay.channel import (
    ActionClose,
    ActionRelease,
    ActionSettle,
    ObserveClaim,
    ObserveClosed,
    PayeeChannel,
    Phase,
    ReceiveRequest,
    check_voucher,
    step,
)
from bombyx.protocol.pay.view import ChannelView, Claim
from bombyx.protocol.primitives import Address, Amount, Digest, Instant, RequestId, Secret
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.channel import ChannelConfig, refund_digest
from bombyx.protocol.wire.request import Payment, SignedGrant, SignedVoucher
from bombyx.protocol.wire.signing import SigningKey

NO_SESSION: Final = "PAY-11"  # the rule of the refusal that asks a payer to present a fresh grant
MAX_SESSIONS: Final = 2  # the newest, and the one before it whose requests may still be under way
MAX_KEYS: Final = 256  # session keys one channel may use within their lives
_STATE: Final = struct.Struct(">B16s16s16sQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class PayeeTerms:
    """What a payee asks of a channel. Times in seconds."""

    receiver: Address
    receiver_authorizer: Address
    token: Address
    min_withdraw_delay: int = 900  # x402's own lower bound
    claim_interval: int = 300  # how often we are sure to look at the chain
    longest_request: int = 300
    claim_threshold: int = 10**6  # token base units
    claim_age: int = 86_400
    max_in_flight: int = 256  # requests one channel may have open

    @property
    def margin(self) -> int:
        """Time that must be left of a running withdrawal for a new request: it ends, and is claimed, twice over."""
        return self.longest_request + 2 * self.claim_interval


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A request that is paid for, up to `cap`."""

    channel: Digest
    request_id: RequestId
    cap: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the payee has booked on a channel; a payer may ask for it."""

    ceiling: Amount
    charged: Amount
    claimed: Amount
    reserved: Amount
    in_flight: int
    phase: Phase


class PayeeBook:
    """All channels to one payee."""

    def __init__(self, terms: PayeeTerms, domain: Digest, *, payer: Peer = Peer.CLIENT) -> None:
        self.terms = terms
        self.domain = domain
        self._payer = payer
        self._journal = r.Journal()
        self._channels: dict[Digest, PayeeChannel] = {}
        self._sessions: dict[Digest, tuple[grants.Session, ...]] = {}  # newest first
        self._finished: dict[Digest, r.Finished] = {}
        self._keys: dict[Digest, dict[Digest, Instant]] = {}

    # --- channels ---

    @property
    def channels(self) -> tuple[Digest, ...]:
        return tuple(self._channels)

    def __contains__(self, channel: Digest) -> bool:
        return channel in self._channels

    def channel(self, channel: Digest) -> PayeeChannel:
        """The state of one channel. Raises `PaymentError` for one that was never opened here."""
        found = self._channels.get(channel)
        if found is None:
            raise PaymentError("this channel is not open here", peer=self._payer, rule="PAY-2")
        return found

    def open(self, view: ChannelView) -> Digest:
        """Take a channel into the book once the chain shows it and it suits our terms. Idempotent (PAY-2)."""
        config = view.config
        channel = config.channel_id(self.domain)
        if channel in self._channels:
            return channel
        self.check_config(config)
        self._channels[channel] = PayeeChannel(config=config, id=channel, claimed=view.total_claimed)
        if view.total_claimed:  # claimed before this book began: those charges are ours and done
            self._channels[channel] = PayeeChannel(
                config=config, id=channel, claimed=view.total_claimed, charged=view.total_claimed
            )
        self._finished[channel] = r.Finished(channel, self._journal)
        self._keys[channel] = {}
        self._journal.put(r.CONFIG, channel, config.encode())
        self._save(self._channels[channel])
        return channel

    def check_config(self, config: ChannelConfig) -> None:
        """Whether channels of this config suit our terms (PAY-2). Needs no chain."""
        terms = self.terms
        if (config.receiver, config.receiver_authorizer) != (terms.receiver, terms.receiver_authorizer):
            raise PaymentError("the channel pays somebody else", peer=self._payer, rule="PAY-2")
        if config.token != terms.token:
            raise PaymentError(f"the channel is in token {config.token}, we take {terms.token}", rule="PAY-2")
        if config.withdraw_delay < max(terms.min_withdraw_delay, terms.margin):
            raise PaymentError(f"a withdrawal delay of {config.withdraw_delay} s leaves no time to claim", rule="PAY-2")

    def take_in(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Add the channels those rows were written by, without their sessions."""
        for channel, kinds in r.split(rows).items():
            self._load_channel(channel, kinds)

    def forget(self, channel: Digest) -> None:
        """Another book keeps this channel from now on. Its rows stay as they are."""
        self._channels.pop(channel, None)
        self._sessions.pop(channel, None)
        self._finished.pop(channel, None)
        self._keys.pop(channel, None)

    # --- requests ---

    def wants_key(self, payment: Payment) -> bool:
        """Whether `payment` brings a grant whose sealed key the caller must open and pass to `accept`."""
        return payment.grant is not None and self._session_of(payment.channel, payment.grant.key_hash) is None

    def accept(
        self,
        payment: Payment,
        *,
        request_id: RequestId,
        cap: int,
        meta_hash: Digest,
        body_hash: Digest,
        now: Instant,
        view: ChannelView,
        session_key: Secret | None = None,
    ) -> Reservation:
        """Reserve what `request_id` may cost. `cap`: the least this payee must be authorised for; `view`: the channel
        as last seen on chain; `session_key`: what the grant seals, when `wants_key`. Raises `PaymentError`."""
        channel = self.channel(payment.channel)
        self._check_fresh(channel, request_id)
        if payment.v != 1 or not cap <= payment.cap < 2**128:
            raise PaymentError(f"a cap of {payment.cap} is authorised, {cap} is needed", peer=self._payer, rule="PAY-5")
        if payment.mac:
            self._authenticate(channel, payment, meta_hash, body_hash, now, session_key)
        raised = channel if payment.voucher is None else self._with_voucher(channel, payment.voucher)
        if not payment.mac:
            self._check_strict(raised, payment)
        self._check_deposit(raised, view, now)
        amount = Amount(payment.cap)
        after = step(raised, ReceiveRequest(request_id=request_id, cap=amount))
        self._journal.put(r.RESERVED, channel.id, amount.to_bytes(16), request_id)
        self._replace(channel, after)
        return Reservation(channel=channel.id, request_id=request_id, cap=amount)

    def raise_ceiling(self, voucher: SignedVoucher, *, view: ChannelView, now: Instant) -> Amount:
        """Take a voucher outside of a request. A smaller one than held is the payer's fault (PAY-7)."""
        channel = self.channel(voucher.channel)
        after = step(channel, check_voucher(voucher, channel, self.domain, peer=self._payer))
        self._check_deposit(after, view, now)
        self._replace(channel, after)
        return after.ceiling

    def _check_fresh(self, channel: PayeeChannel, request_id: RequestId) -> None:
        if request_id in self._finished[channel.id]:
            raise PaymentError("this request is already settled", peer=self._payer, rule="PAY-23")
        if request_id in channel.reserved:
            raise PaymentError("this request is already in flight", peer=self._payer, rule="PAY-23")
        if len(channel.reserved) >= self.terms.max_in_flight:
            most = self.terms.max_in_flight
            raise PaymentError(f"{most} requests are in flight", peer=self._payer, rule="PAY-10")

    def _authenticate(
        self,
        channel: PayeeChannel,
        payment: Payment,
        meta_hash: Digest,
        body_hash: Digest,
        now: Instant,
        key: Secret | None,
    ) -> None:
        """Check the MAC, then use up the counter: a request refused further down cannot be replayed later (PAY-10)."""
        for session in self._candidates(channel, payment, now, key):
            counter = payment.counter & (2**64 - 1)
            expected = grants.mac(session.key, channel.id, counter, meta_hash, body_hash, payment.cap)
            if hmac.compare_digest(expected, payment.mac):
                self._keep(channel.id, session.admit(payment.counter, peer=self._payer), now)
                return
        raise PaymentError("the MAC does not fit the request", peer=self._payer, rule="PAY-10")

    def _candidates(
        self, channel: PayeeChannel, payment: Payment, now: Instant, key: Secret | None
    ) -> tuple[grants.Session, ...]:
        if payment.grant is not None:
            known = self._session_of(channel.id, payment.grant.key_hash)
            return (known or self._new_session(channel, payment.grant, now, key),)
        held = self._sessions.get(channel.id, ())
        alive = held if all(now < session.not_after for session in held) else _alive(held, now)
        if not alive:
            raise PaymentError("no session is open on this channel: present a grant", peer=self._payer, rule=NO_SESSION)
        return alive

    def _session_of(self, channel: Digest, name: Digest) -> grants.Session | None:
        return next((one for one in self._sessions.get(channel, ()) if one.key_hash == name), None)

    def _new_session(
        self, channel: PayeeChannel, grant: SignedGrant, now: Instant, key: Secret | None
    ) -> grants.Session:
        if key is None:
            raise PaymentError("the grant's sealed key cannot be opened", peer=self._payer, rule=NO_SESSION)
        if grant.key_hash in self._keys[channel.id]:
            raise PaymentError(
                "a session key opens one session: present a fresh grant", peer=self._payer, rule=NO_SESSION
            )
        grants.check_grant(grant, channel.config, self.domain, key, now=now, peer=self._payer)
        return grants.Session(key=key, key_hash=grant.key_hash, not_after=grant.not_after)

    def _keep(self, channel: Digest, session: grants.Session, now: Instant) -> None:
        if session.key_hash not in self._keys[channel]:
            self._remember_key(channel, session, now)
        held = self._sessions.get(channel, ())
        if len(held) == 1 and held[0].key_hash == session.key_hash:
            self._sessions[channel] = (session,)
        elif any(one.key_hash == session.key_hash for one in held):
            self._sessions[channel] = tuple(session if one.key_hash == session.key_hash else one for one in held)
        else:
            self._sessions[channel] = (session, *held[: MAX_SESSIONS - 1])

    def _remember_key(self, channel: Digest, session: grants.Session, now: Instant) -> None:
        keys = self._keys[channel]
        for old in [name for name, until in keys.items() if until <= now]:
            del keys[old]
            self._journal.put(r.KEY, channel, None, old)
        if len(keys) >= MAX_KEYS:
            raise PaymentError(f"{MAX_KEYS} session keys within their lives", peer=self._payer, rule="PAY-9")
        keys[session.key_hash] = session.not_after
        self._journal.put(r.KEY, channel, int(session.not_after).to_bytes(8), session.key_hash)

    def _with_voucher(self, channel: PayeeChannel, voucher: SignedVoucher) -> PayeeChannel:
        event = check_voucher(voucher, channel, self.domain, peer=self._payer)
        if event.ceiling <= channel.ceiling:
            return channel  # requests overtake each other: a smaller voucher is late, and gives nothing
        return step(channel, event)

    def _check_strict(self, channel: PayeeChannel, payment: Payment) -> None:
        """Stock x402: a voucher for exactly charged + cap with every request, one in flight (PAY-14)."""
        if payment.voucher is None:
            raise PaymentError("neither a voucher nor a session pays for this", peer=self._payer, rule="PAY-14")
        if channel.reserved:
            raise PaymentError("in strict mode one request is in flight at a time", peer=self._payer, rule="PAY-14")
        if payment.voucher.ceiling != channel.charged + payment.cap:
            raise PaymentError(
                f"voucher {payment.voucher.ceiling} is not charged {channel.charged} + cap {payment.cap}",
                peer=self._payer,
                rule="PAY-14",
            )

    def _check_deposit(self, channel: PayeeChannel, view: ChannelView, now: Instant) -> None:
        if view.config != channel.config:
            raise LocalError("the view is of another channel", rule="PAY-4")
        if channel.ceiling > view.spendable:
            raise PaymentError(
                f"ceiling {channel.ceiling} is above balance {view.balance} - withdrawal {view.withdraw_amount}",
                peer=self._payer,
                rule="PAY-4",
            )
        if view.withdrawing and view.seconds_left(now) < self.terms.margin:
            raise PaymentError("a withdrawal is running out", peer=self._payer, rule="PAY-6")

    # --- ends ---

    def settle(self, channel: Digest, request_id: RequestId, charge: int, *, now: Instant) -> Amount:
        """Charge what the receipt says; the charge that stands is returned. Again: nothing changes (PAY-8)."""
        before = self.channel(channel)
        done = self._finished[channel].get(request_id)
        if done is not None:
            return Amount(done)
        after = step(before, ActionSettle(request_id=request_id, charge=Amount(charge), now=now))
        self._finished[channel].add(request_id, charge)
        self._journal.put(r.RESERVED, channel, None, request_id)
        self._replace(before, after)
        return Amount(charge)

    def release(self, channel: Digest, request_id: RequestId) -> None:
        """The request came to nothing and costs nothing; its id may be tried again. Idempotent."""
        before = self.channel(channel)
        if request_id in before.reserved:
            self._journal.put(r.RESERVED, channel, None, request_id)
            self._replace(before, step(before, ActionRelease(request_id=request_id)))

    def in_flight(self) -> tuple[Reservation, ...]:
        """Every open reservation. After a restart: what was cut, to settle by its last receipt, or to release."""
        return tuple(
            Reservation(channel=channel.id, request_id=request_id, cap=cap)
            for channel in self._channels.values()
            for request_id, cap in channel.reserved.items()
        )

    def account(self, channel: Digest) -> Account:
        found = self.channel(channel)
        return Account(
            ceiling=found.ceiling,
            charged=found.charged,
            claimed=found.claimed,
            reserved=Amount(found.held),
            in_flight=len(found.reserved),
            phase=found.phase,
        )

    # --- the chain ---

    def claim(self, channel: Digest, *, view: ChannelView, now: Instant) -> Claim | None:
        """What to present to the chain now: enough is owed, or for long enough, or the payer is leaving (PAY-15)."""
        found = self.channel(channel)
        owed = found.charged - max(found.claimed, view.total_claimed)
        if owed <= 0 or not (view.withdrawing or self._worth_claiming(found, owed, now)):
            return None
        return self.claim_now(channel, view=view)

    def due(self, channel: Digest, now: Instant) -> bool:
        """Whether a claim is due whatever the payer does, by our own books."""
        found = self.channel(channel)
        return found.owed > 0 and self._worth_claiming(found, found.owed, now)

    def _worth_claiming(self, channel: PayeeChannel, owed: int, now: Instant) -> bool:
        old = now >= channel.owed_since.plus(seconds=self.terms.claim_age)
        return owed >= self.terms.claim_threshold or old or channel.phase is not Phase.OPEN

    def claim_now(self, channel: Digest, *, view: ChannelView | None = None) -> Claim | None:
        """Everything charged so far, whatever the thresholds say; None when nothing is owed. With `view`, no more than
        the deposit holds: a claim above it would be refused whole, and its batch with it."""
        found = self.channel(channel)
        total = min(found.charged, view.balance) if view is not None else found.charged
        if total <= max(found.claimed, view.total_claimed if view is not None else 0):
            return None
        return Claim(config=found.config, ceiling=found.ceiling, signature=found.signature, total_claimed=total)

    def observe(self, view: ChannelView, *, now: Instant) -> None:
        """Book what the chain shows of a channel: claims that went through, or that a reorg took back, and its end."""
        before = self._channels.get(view.config.channel_id(self.domain))
        if before is None:
            return
        after = before
        if view.total_claimed != before.claimed:
            after = step(after, ObserveClaim(total=view.total_claimed, now=now))
        if after.phase is Phase.CLOSING and not after.reserved and view.balance == view.total_claimed:
            after = step(after, ObserveClosed())
        if after is not before:
            self._replace(before, after)

    def close(self, channel: Digest) -> None:
        """Take no more requests on this channel (PAY-16)."""
        before = self.channel(channel)
        self._sessions.pop(channel, None)
        self._replace(before, step(before, ActionClose()))

    def sign_refund(self, channel: Digest, *, view: ChannelView, signer: SigningKey) -> tuple[Amount, int, bytes]:
        """(amount, nonce, signature) of a cooperative refund: all that is neither charged nor reserved (PAY-16)."""
        found = self.channel(channel)
        if found.phase is Phase.OPEN:
            raise LocalError("close the channel before refunding it", rule="PAY-16")
        kept = max(found.charged, view.total_claimed) + found.held
        amount = Amount(max(0, view.balance - kept))
        return amount, view.refund_nonce, signer.sign(refund_digest(self.domain, channel, view.refund_nonce, amount))

    # --- rows ---

    def take_rows(self) -> tuple[r.Row, ...]:
        """Rows changed since the last call; durable before the caller acts on what changed them (PAY-17)."""
        return self._journal.take()

    @classmethod
    def load(
        cls, terms: PayeeTerms, domain: Digest, rows: Iterable[tuple[bytes, bytes]], *, payer: Peer = Peer.CLIENT
    ) -> PayeeBook:
        """The book those rows were written by, without its sessions."""
        book = cls(terms, domain, payer=payer)
        book.take_in(rows)
        return book

    def _load_channel(self, channel: Digest, kinds: dict[bytes, list[tuple[bytes, bytes]]]) -> None:
        config = ChannelConfig.decode(kinds[r.CONFIG][0][1])
        state = kinds[r.STATE][0][1]
        phase, ceiling, charged, claimed, since = _STATE.unpack_from(state)
        reserved = {RequestId(name): Amount(int.from_bytes(cap)) for name, cap in kinds.get(r.RESERVED, ())}
        self._channels[channel] = PayeeChannel(
            config=config,
            id=channel,
            phase=Phase(phase),
            ceiling=Amount(int.from_bytes(ceiling)),
            signature=state[_STATE.size :],
            charged=Amount(int.from_bytes(charged)),
            claimed=Amount(int.from_bytes(claimed)),
            owed_since=Instant(since),
            reserved=MappingProxyType(reserved),
            held=sum(reserved.values()),
        )
        self._finished[channel] = r.Finished(channel, self._journal)
        self._finished[channel].load((RequestId(name), value) for name, value in kinds.get(r.SETTLED, ()))
        self._keys[channel] = {Digest(name): Instant(int.from_bytes(v)) for name, v in kinds.get(r.KEY, ())}

    def _replace(self, before: PayeeChannel, after: PayeeChannel) -> None:
        self._channels[after.id] = after
        if (
            before.charged != after.charged
            or before.ceiling != after.ceiling
            or before.phase is not after.phase
            or before.claimed != after.claimed
            or before.owed_since != after.owed_since
        ):
            self._save(after)

    def _save(self, channel: PayeeChannel) -> None:
        state = _STATE.pack(
            channel.phase,
            channel.ceiling.to_bytes(16),
            channel.charged.to_bytes(16),
            channel.claimed.to_bytes(16),
            channel.owed_since,
        )
        self._journal.put(r.STATE, channel.id, state + channel.signature)


def owing(rows: Iterable[tuple[bytes, bytes]], terms: PayeeTerms, now: Instant) -> dict[Digest, bool]:
    """Of STATE rows, whoever keeps their channels: those with unclaimed charges, and whether to claim now (PAY-15)."""
    found: dict[Digest, bool] = {}
    for key, state in rows:
        _, _, charged, claimed, since = _STATE.unpack_from(state)
        owed = int.from_bytes(charged) - int.from_bytes(claimed)
        if owed > 0:
            old = now >= Instant(since).plus(seconds=terms.claim_age)
            found[Digest(key[1:33])] = owed >= terms.claim_threshold or old
    return found


def _alive(held: tuple[grants.Session, ...], now: Instant) -> tuple[grants.Session, ...]:
    return tuple(session for session in held if now < session.not_after)
