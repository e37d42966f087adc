# SPDX-License-Identifier: Apache-2.0
"""The payer's side of one channel: ceilings within a budget, agreed charges, and the freeze (spec PAY-18 .. PAY-22).

A client keeps one for its proxy, a proxy one for each worker operator. Deterministic: no I/O, no clock. After every
call, `take_rows()` gives what must be durable before the caller acts on the call's answer (sends a payment).

Always: signed ceiling <= min(budget, deposit - withdrawal) when it was signed; agreed only grows by charges whose
receipt the caller checked, each at most its request's cap, one final per request; once frozen nothing is signed again.
The most that can be lost is `worst_loss`: what was signed and not agreed to.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bombyx.errors import BudgetExceeded, LocalError, Overloaded, PaymentError, Peer
from bombyx.protocol.pay import rows as r
from bombyx.protocol.pay.channel import sign_voucher
from bombyx.protocol.pay.grant import MAX_COUNTER, key_hash, mac, sign_grant
from bombyx.protocol.pay.view import ChannelView
from bombyx.protocol.primitives import Amount, Digest, Instant, RequestId, Secret
from bombyx.protocol.wire.channel import ChannelConfig
from bombyx.protocol.wire.request import Payment, SignedGrant, SignedVoucher
from bombyx.protocol.wire.signing import SigningKey

_STATE: Final = struct.Struct(">16s16s16s16s32s")
_OPEN: Final = struct.Struct(">16s16s")
_NO_EVIDENCE: Final = bytes(32)
RENEW_BEFORE: Final = 60  # seconds before a session's end at which a new one is due


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerPolicy:
    """How far a payer opens. All in token base units but `max_in_flight`."""

    budget: int  # the channel's ceiling never passes this
    window: int  # how much further than needed one voucher reaches: fewer signatures against more at risk
    max_in_flight: int = 64


@dataclass(slots=True, kw_only=True)
class _Open:
    """One request that is not final: what it may still cost is cap - agreed."""

    cap: int
    agreed: int = 0  # the charge of the last checkpoint we hold
    left: bool = False  # we stopped listening: a final may exist that we never saw
    ceiling: int = 0  # of the voucher that went with it
    grant: Digest | None = None  # key hash of the grant that went with it


@dataclass(slots=True, kw_only=True)
class _Session:
    key: Secret
    grant: SignedGrant
    counter: int = 0
    confirmed: bool = False  # the payee knows it: the grant need not be sent again


class PayerChannel:
    """One channel, from the payer's side."""

    def __init__(self, config: ChannelConfig, domain: Digest, policy: PayerPolicy, *, payee: Peer = Peer.PROXY) -> None:
        self.config = config
        self.domain = domain
        self.policy = policy
        self.id = config.channel_id(domain)
        self.agreed = Amount(0)
        self.disputed = 0  # booked by the payee for answers that were cut: within their caps, without a receipt
        self.lapsed = (
            0  # of the caps of cut answers whose time is over: free again, unless the payee says it is owed it
        )
        self._unwritten = 0  # of the ceiling, what requests may have cost that a crash made us forget
        self.frozen: str | None = None
        self.evidence: Digest | None = None
        self._payee = payee
        self._backed = 0  # deposit - withdrawal as last seen
        self.ceiling = Amount(0)  # the highest ever signed
        self._voucher: SignedVoucher | None = None
        self._confirmed = 0  # the highest ceiling the payee is known to hold
        self._session: _Session | None = None
        self._open: dict[RequestId, _Open] = {}
        self._unpaid = 0  # sum of cap - agreed over `_open`
        self._running = 0  # how many of `_open` are not left
        self._journal = r.Journal()
        self._finished = r.Finished(self.id, self._journal)
        self._journal.put(r.CONFIG, self.id, config.encode())
        self._save()

    # --- what stands ---

    @property
    def open_amount(self) -> int:
        """What requests that are not final may still cost, and what the payee booked without a receipt."""
        return self.disputed + self._unpaid

    @property
    def worst_loss(self) -> int:
        """What a dishonest payee could take beyond what was agreed: ceiling - agreed (PAY-22)."""
        return max(0, self.ceiling - self.agreed)

    @property
    def limit(self) -> int:
        """No ceiling above this is signed (PAY-18)."""
        return min(self.policy.budget, self._backed)

    @property
    def in_flight(self) -> tuple[RequestId, ...]:
        return tuple(name for name, entry in self._open.items() if not entry.left)

    @property
    def left(self) -> dict[RequestId, int]:
        """Requests we stopped listening to, and what of each is agreed: the rest of their caps is still reserved."""
        return {name: entry.agreed for name, entry in self._open.items() if entry.left}

    def observe(self, view: ChannelView) -> None:
        """Take note of the deposit, as the chain shows it."""
        if view.config != self.config:
            raise LocalError("the view is of another channel", rule="PAY-18")
        self._backed = view.spendable

    def observe_nothing(self) -> None:
        """The chain does not know the channel: not yet, or a reorg took the deposit back."""
        self._backed = 0

    # --- sessions ---

    def needs_session(self, now: Instant) -> bool:
        """Whether `open_session` is due before the next request in session mode."""
        return self._session is None or self._session.grant.not_after <= now.plus(seconds=RENEW_BEFORE)

    def open_session(self, key: Secret, *, sealed_key: bytes, not_after: Instant, signer: SigningKey) -> None:
        """Start a session under a fresh `key`, which the caller has sealed to the payee's registered key (PAY-9)."""
        self._check_not_frozen()
        if self._session is not None and self._session.grant.key_hash == key_hash(key):
            raise LocalError("a session key opens one session", rule="PAY-9")
        grant = sign_grant(
            self.config, self.domain, key, sealed_key=sealed_key, not_after=not_after, signer=self._authorizer(signer)
        )
        self._session = _Session(key=key, grant=grant)

    def drop_session(self) -> None:
        """The payee does not know our session (PAY-11): forget it, open a fresh one, send everything again."""
        self._session = None
        self._confirmed = 0

    # --- requests ---

    def authorize(
        self, request_id: RequestId, *, cap: int, meta_hash: Digest, body_hash: Digest, signer: SigningKey
    ) -> Payment:
        """Session mode: let the payee charge up to `cap`. The same request may be authorised again for a retry."""
        session = self._session
        if session is None:
            raise LocalError("open a session first", rule="PAY-9")
        self._reserve(request_id, cap)
        needed = self.agreed + self.open_amount
        if needed > self.ceiling:
            self._sign(min(self.limit, needed + self.policy.window), signer)
        session.counter += 1
        if session.counter > MAX_COUNTER:
            raise LocalError("the session has run out of counters", rule="PAY-10")
        grant = None if session.confirmed else session.grant
        reserved = self._open[request_id]
        reserved.ceiling, reserved.grant = self.ceiling, grant.key_hash if grant else None
        return Payment(
            v=1,
            channel=self.id,
            cap=cap,
            voucher=self._voucher if self.ceiling > self._confirmed else None,
            grant=grant,
            counter=session.counter,
            mac=mac(session.key, self.id, session.counter, meta_hash, body_hash, cap),
        )

    def authorize_strict(
        self, request_id: RequestId, *, cap: int, signer: SigningKey, charged_total: int | None = None
    ) -> Payment:
        """Strict mode: a voucher for exactly charged + cap, with nothing else in flight (PAY-14).

        `charged_total`: the payee's own account, when a cut answer left it above what we agreed to; checked first.
        """
        if any(name != request_id for name in self.in_flight):
            raise LocalError("in strict mode one request is in flight at a time", rule="PAY-14")
        charged = self.agreed if charged_total is None else charged_total
        self.check_account(charged)
        self._reserve(request_id, cap)
        voucher = sign_voucher(self.id, charged + cap, self.domain, self._authorizer(signer))
        if voucher.ceiling > self.ceiling:
            self._hold(voucher)
        return Payment(v=1, channel=self.id, cap=cap, voucher=voucher, grant=None, counter=0, mac=b"")

    def _reserve(self, request_id: RequestId, cap: int) -> None:
        self._check_not_frozen()
        if request_id in self._finished:
            raise LocalError("this request is already paid", rule="PAY-20")
        known = self._open.get(request_id)
        if known is None and self._running >= self.policy.max_in_flight:
            raise Overloaded(f"{self.policy.max_in_flight} requests are in flight on this channel", rule="PAY-18")
        already = known.cap - known.agreed if known else 0
        agreed = known.agreed if known else 0
        needed = self.agreed + self.open_amount - already + max(0, cap - agreed)
        if needed > self.limit:
            raise BudgetExceeded(
                f"agreed {self.agreed} + open {self.open_amount - already} + cap {cap} is above {self.limit}",
                rule="PAY-18",
            )
        if known is not None and cap < known.cap:
            cap = known.cap  # the payee may hold the first, larger authorisation
        self._put(request_id, _Open(cap=cap, agreed=agreed))

    def _sign(self, ceiling: int, signer: SigningKey) -> None:
        self._hold(sign_voucher(self.id, ceiling, self.domain, self._authorizer(signer)))

    def _hold(self, voucher: SignedVoucher) -> None:
        self._voucher, self.ceiling = voucher, Amount(voucher.ceiling)
        self._save()

    def _authorizer(self, signer: SigningKey) -> SigningKey:
        if signer.address != self.config.payer_authorizer:
            raise LocalError("this key is not the channel's payer authorizer", rule="PAY-3")
        return signer

    def voucher(self, *, signer: SigningKey) -> SignedVoucher | None:
        """Raise the ceiling by a window ahead of need, to send outside of a request; None when it is high enough."""
        self._check_not_frozen()
        wanted = min(self.limit, self.agreed + self.open_amount + self.policy.window)
        if wanted <= self.ceiling:
            return None
        self._sign(wanted, signer)
        return self._voucher

    def confirm(self, payment: Payment) -> None:
        """The payee answered under `payment`: it holds that voucher and grant. An agreed charge says the same."""
        grant = payment.grant.key_hash if payment.grant else None
        self._confirm(payment.voucher.ceiling if payment.voucher else 0, grant)

    def _confirm(self, ceiling: int, grant: Digest | None) -> None:
        self._confirmed = max(self._confirmed, ceiling)
        session = self._session
        if session is not None and not session.confirmed and grant == session.grant.key_hash:
            session.confirmed = True

    # --- ends ---

    def agree(self, request_id: RequestId, charge: int) -> Amount:
        """Agree to the charge of a final receipt the caller has checked. The same again changes nothing."""
        done = self._finished.get(request_id)
        if done is not None:
            if done != charge:
                raise PaymentError(f"a second final of {charge} after {done}", peer=self._payee, rule="PAY-20")
            return Amount(done)
        entry = self._entry(request_id, charge)
        self._drop(request_id)
        self.agreed = Amount(self.agreed + charge - entry.agreed)
        self._journal.put(r.RESERVED, self.id, None, request_id)
        self._finished.add(request_id, charge)
        self._save()
        return Amount(charge)

    def checkpoint(self, request_id: RequestId, charge: int) -> None:
        """Agree to what a checkpoint says so far; the rest of the cap stays open. Must be called in order."""
        if request_id in self._finished:
            return
        entry = self._entry(request_id, charge)
        self.agreed = Amount(self.agreed + charge - entry.agreed)
        self._put(request_id, dataclasses.replace(entry, agreed=charge))
        self._save()

    def leave(self, request_id: RequestId) -> None:
        """The answer was cut, or we cut it: agreed is the last checkpoint; a final up to the cap may still turn up."""
        entry = self._open.get(request_id)
        if entry is not None and not entry.left:
            self._put(request_id, dataclasses.replace(entry, left=True))

    def release(self, request_id: RequestId) -> None:
        """The payee refused before serving anything: it has no claim. If it charges all the same, we freeze.

        Where somebody on the way could replay the payment before the request's deadline, `leave` it until then.
        """
        entry = self._open.get(request_id)
        if entry is not None and entry.agreed == 0:
            self._drop(request_id)
            self._journal.put(r.RESERVED, self.id, None, request_id)

    def _entry(self, request_id: RequestId, charge: int) -> _Open:
        entry = self._open.get(request_id)
        if entry is None:
            raise PaymentError("a charge for a request that was never authorised", peer=self._payee, rule="PAY-20")
        if not entry.agreed <= charge <= entry.cap:
            raise PaymentError(
                f"charge {charge} is not between {entry.agreed} agreed and the cap {entry.cap}",
                peer=self._payee,
                rule="PAY-20",
            )
        self._confirm(entry.ceiling, entry.grant)
        return entry

    # --- trust ---

    def check_account(self, charged_total: int, *, evidence: Digest | None = None) -> None:
        """Compare the payee's total with ours. Above agreed + open: freeze, keep `evidence`, raise (PAY-21)."""
        most = self.agreed + self.open_amount
        if charged_total > most:
            self.freeze(f"the payee booked {charged_total}, at most {most} was agreed or open", evidence=evidence)
            raise PaymentError(str(self.frozen), peer=self._payee, rule="PAY-21", proof=evidence)

    def reconcile(self, charged_total: int, *, in_flight: int) -> None:
        """Close the books on cut answers: the payee's account shows `charged_total` and nothing in flight.

        Call it only when the deadlines of all cut requests have passed, so that none of them can still arrive.
        What it booked beyond agreed stays disputed: it was within the caps we signed, so it is counted as spent, and
        never agreed to. The rest of those caps is free again; charging it later freezes the channel.
        """
        self.check_account(charged_total)
        if in_flight or self.in_flight:
            return
        self.disputed = max(self.disputed, charged_total - self.agreed)
        for request_id, entry in self._open.items():
            self._journal.put(r.RESERVED, self.id, None, request_id)
            self._finished.add(request_id, entry.agreed)  # closed: never authorised, and never agreed to, again
        self._open.clear()
        self._unpaid = self._running = 0
        self._save()

    def lapse(self, request_id: RequestId) -> None:
        """A cut answer's time is over on both sides: what is agreed of it stands, the rest of its cap is free again.

        For a payer that is not shown its payee's account; nothing more is agreed to for this request.
        """
        entry = self._open.get(request_id)
        if entry is None or not entry.left:
            return
        self._drop(request_id)
        self.lapsed += entry.cap - entry.agreed
        self._journal.put(r.RESERVED, self.id, None, request_id)
        self._finished.add(request_id, entry.agreed)
        self._save()

    def expect_unwritten(self) -> None:
        """After a restart of a payer that does not wait for each reservation's row (PAY-17): what of the ceiling is
        neither agreed nor open may be booked for requests we forgot. It counts as lapsed, should the payee say so."""
        self._unwritten = max(0, self.ceiling - self.agreed - self.open_amount)

    def concede(self) -> bool:
        """The payee refuses for it has booked more than we agreed to. What lapsed was within caps we signed, so it is
        counted as spent, and never agreed to. False: nothing lapsed or was forgotten, so the payee is wrong."""
        conceded, self.lapsed = self.lapsed, 0
        if not conceded:
            conceded, self._unwritten = self._unwritten, 0
        self.disputed += conceded
        self._save()
        return conceded > 0

    def freeze(self, reason: str, *, evidence: Digest | None = None) -> None:
        """Sign nothing on this channel ever again. The first reason stays; withdraw what is left."""
        if self.frozen is None:
            self.frozen, self.evidence = reason[:200], evidence
            self._save()

    def _check_not_frozen(self) -> None:
        if self.frozen is not None:
            raise PaymentError(f"the channel is frozen: {self.frozen}", peer=self._payee, rule="PAY-21")

    # --- rows ---

    def take_rows(self) -> tuple[r.Row, ...]:
        """Rows changed since the last call; durable before the caller acts on what changed them (PAY-17)."""
        return self._journal.take()

    @classmethod
    def load(
        cls, domain: Digest, policy: PayerPolicy, rows: Iterable[tuple[bytes, bytes]], *, payee: Peer = Peer.PROXY
    ) -> tuple[PayerChannel, ...]:
        """The channels those rows were written by, without their sessions. What was in flight is `left`."""
        found = r.split(rows).values()
        return tuple(cls._load_channel(domain, policy, kinds, payee) for kinds in found)

    @classmethod
    def _load_channel(
        cls, domain: Digest, policy: PayerPolicy, kinds: dict[bytes, list[tuple[bytes, bytes]]], payee: Peer
    ) -> PayerChannel:
        channel = cls(ChannelConfig.decode(kinds[r.CONFIG][0][1]), domain, policy, payee=payee)
        state = kinds[r.STATE][0][1]
        agreed, disputed, lapsed, ceiling, evidence = _STATE.unpack_from(state)
        channel.agreed = Amount(int.from_bytes(agreed))
        channel.disputed = int.from_bytes(disputed)
        channel.lapsed = int.from_bytes(lapsed)
        channel.evidence = Digest(evidence) if any(evidence) else None
        size = state[_STATE.size]
        signature, reason = state[_STATE.size + 1 :][:size], state[_STATE.size + 1 + size :]
        channel.frozen = reason.decode() or None
        if size:
            channel.ceiling = Amount(int.from_bytes(ceiling))
            channel._voucher = SignedVoucher(channel=channel.id, ceiling=channel.ceiling, signature=signature)
        for name, value in kinds.get(r.RESERVED, ()):
            cap, part = (int.from_bytes(field) for field in _OPEN.unpack(value))
            channel._set(RequestId(name), _Open(cap=cap, agreed=part, left=True))
        channel._finished.load((RequestId(name), value) for name, value in kinds.get(r.SETTLED, ()))
        channel.take_rows()
        return channel

    def _set(self, request_id: RequestId, entry: _Open) -> None:
        if request_id in self._open:
            self._drop(request_id)
        self._open[request_id] = entry
        self._unpaid += entry.cap - entry.agreed
        self._running += not entry.left

    def _drop(self, request_id: RequestId) -> None:
        entry = self._open.pop(request_id)
        self._unpaid -= entry.cap - entry.agreed
        self._running -= not entry.left

    def _put(self, request_id: RequestId, entry: _Open) -> None:
        self._set(request_id, entry)
        value = _OPEN.pack(entry.cap.to_bytes(16), entry.agreed.to_bytes(16))
        self._journal.put(r.RESERVED, self.id, value, request_id)

    def _save(self) -> None:
        signature = self._voucher.signature if self._voucher else b""
        numbers = _STATE.pack(
            self.agreed.to_bytes(16),
            self.disputed.to_bytes(16),
            self.lapsed.to_bytes(16),
            self.ceiling.to_bytes(16),
            self.evidence or _NO_EVIDENCE,
        )
        reason = (self.frozen or "").encode()
        self._journal.put(r.STATE, self.id, numbers + bytes([len(signature)]) + signature + reason)
