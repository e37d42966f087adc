# SPDX-License-Identifier: Apache-2.0
"""Any order of requests, vouchers, sessions, settles, duplicates, replays, crashes, withdrawals and claims.

Payer, payee and chain run against each other; either side may crash at any step, and keeps only what it wrote before
it acted. The payee may be a thief that presents its voucher for all it can, the payer a cheat that signs beyond its
deposit. Invariants (PAY-22): money is conserved; an honest payee is paid all it charged; an honest payer loses at most
what it signed and did not agree to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from bombyx.errors import BudgetExceeded, LocalError, Overloaded, PaymentError
from bombyx.ports import Claim
from bombyx.protocol.pay.channel import Phase, sign_voucher
from bombyx.protocol.pay.grant import key_hash, mac
from bombyx.protocol.pay.payee import NO_SESSION
from bombyx.protocol.primitives import Amount, RequestId
from bombyx.protocol.wire.request import Payment

caps = st.integers(0, 400)
names = st.integers(1, 12)
picks = st.integers(0, 11)  # one of those there are
town_type: Any = None


@pytest.fixture(autouse=True, scope="module")
def _town(request: pytest.FixtureRequest) -> None:
    global town_type  # Hypothesis builds the machine itself: no fixture reaches it
    town_type = request.getfixturevalue("town_class")


class Channel(RuleBasedStateMachine):
    """The model keeps what truly happened: who was served for how much, who holds which receipt."""

    payments = Bundle("payments")

    @initialize(
        deposit=st.sampled_from([200, 1_000, 20_000]),
        budget=st.sampled_from([500, 5_000, 20_000]),
        window=st.sampled_from([0, 50, 3_000]),
    )
    def begin(self, deposit: int, budget: int, window: int) -> None:
        self.town = town_type(deposit=deposit, budget=budget, window=window)
        self.town.save()
        self.served: dict[int, int] = {}  # request -> charge the payee booked
        self.caps: dict[int, int] = {}  # request -> the largest cap the payer ever authorised for it
        self.serial = 0  # of payments, in the order they were made
        self.dead: dict[int, int] = {}  # request -> payments up to this serial are past the deadline in its Meta
        self.paid = self.town.chain.balance(self.town.payer_key.address)
        self.stolen = False
        self.cheated = False

    # --- payer ---

    def _sent(self, name: int, payment: Any) -> Any:
        self.serial += 1
        return (name, payment, self.serial)

    def _pass_deadline(self, name: int) -> None:
        """Payments made so far for this request come too late: payees refuse what is past its deadline."""
        self.dead[name] = self.serial

    @rule(target=payments, name=names, cap=caps)
    def authorize(self, name: int, cap: int) -> Any:
        try:
            payment = self.town.pay(name, cap)
        except (BudgetExceeded, Overloaded, LocalError, PaymentError):
            return multiple()
        self.town.save()
        self.caps[name] = max(cap, self.caps.get(name, 0))
        return self._sent(name, payment)

    @rule(target=payments, name=names, cap=caps)
    def authorize_strictly(self, name: int, cap: int) -> Any:
        try:
            payment = self.town.pay_strict(name, cap)
        except (BudgetExceeded, Overloaded, LocalError, PaymentError):
            return multiple()
        self.town.save()
        self.caps[name] = max(cap, self.caps.get(name, 0))
        return self._sent(name, payment)

    @rule(target=payments, name=names, cap=caps, strict=st.sampled_from([False, False, True]), served=st.booleans())
    def ask(self, name: int, cap: int, strict: bool, served: bool) -> Any:
        """The straight way: authorised, sent, received, perhaps served; the payment stays for somebody to replay."""
        sent = self.authorize_strictly(name, cap) if strict else self.authorize(name, cap)
        if isinstance(sent, tuple):
            self.receive(sent)
            if served:
                self._settle(_rid(name), 70)
        return sent

    @rule(name=names, cap=caps, more=st.integers(-50, 2_000), ahead=st.integers(-300, 3), strict=st.booleans())
    def the_payer_cheats(self, name: int, cap: int, more: int, ahead: int, strict: bool) -> None:
        """It signs what it likes: beyond its deposit, or too little. From here on only the payee is looked after."""
        self.cheated = True
        town = self.town
        channel = town.book.channel(town.channel)
        ceiling = channel.charged + cap if strict else max(0, channel.ceiling + more)
        voucher = sign_voucher(town.channel, ceiling, town.domain, town.session_key) if more else None
        if strict or town.payer.needs_session(town.clock.now()):
            payment = Payment(v=1, channel=town.channel, cap=cap, voucher=voucher, grant=None, counter=0, mac=b"")
        else:
            try:
                made = town.payer.authorize(
                    _rid(99), cap=0, meta_hash=town.META, body_hash=town.BODY, signer=town.session_key
                )
            except (BudgetExceeded, Overloaded, LocalError, PaymentError):
                return
            key = town.keys[town.payer._session.grant.key_hash]
            session = town.book._session_of(town.channel, key_hash(key))
            counter = max(1, (session.highest if session else 0) + ahead)
            tag = mac(key, town.channel, counter, town.META, town.BODY, cap)
            payment = dataclasses.replace(made, cap=cap, voucher=voucher, counter=counter, mac=tag)
        self.caps[name] = max(cap, self.caps.get(name, 0))
        self.receive((name, payment, self.serial + 1))
        self._settle(_rid(name), 100)  # it gets all it asked for, if it was let in

    @rule()
    def rotate_the_session(self) -> None:
        if self.town.payer.frozen is None:
            self.town.open_session()

    @rule(pick=picks)
    def hear_the_final(self, pick: int) -> None:
        """The receipt reaches the payer, perhaps again."""
        for name in _one(self.served, pick):
            try:
                self.town.payer.agree(_rid(name), self.served[name])
            except PaymentError as error:
                # Only for what was reconciled away or released after its receipt was lost.
                _expect(error.rule == "PAY-20")
            self.town.save()

    @rule(pick=picks, share=st.integers(0, 100))
    def hear_a_checkpoint(self, pick: int, share: int) -> None:
        for name in _one(self.served, pick):
            try:
                self.town.payer.checkpoint(_rid(name), self.served[name] * share // 100)
            except PaymentError as error:
                _expect(error.rule == "PAY-20")
            self.town.save()

    @rule(name=names)
    def stop_listening(self, name: int) -> None:
        self.town.payer.leave(_rid(name))
        self.town.save()

    @rule(name=names)
    def hear_a_refusal(self, name: int) -> None:
        """Honest refusals only: the payee has neither booked nor reserved it."""
        reserved = self.town.book.channel(self.town.channel).reserved
        if name not in self.served and _rid(name) not in reserved:
            self._pass_deadline(name)
            self.town.payer.release(_rid(name))
            self.town.save()

    @rule()
    def reconcile(self) -> None:
        account = self.town.book.account(self.town.channel)
        if self.cheated:
            return
        if self.town.payer.in_flight or account.in_flight:
            self.town.payer.check_account(account.charged)
        else:
            for name in range(1, 13):
                self._pass_deadline(name)
            self.town.payer.reconcile(account.charged, in_flight=account.in_flight)
        self.town.save()

    @rule()
    def payer_crashes(self) -> None:
        self.town.crash_payer()

    # --- payee ---

    @rule(sent=payments)
    def receive(self, sent: Any) -> None:
        """A payment arrives: for the first time, or replayed by somebody on the way."""
        name, payment, serial = sent
        if serial <= self.dead.get(name, 0):
            return
        before = self.town.book.account(self.town.channel)
        try:
            self.town.accept(payment, name)
        except PaymentError as error:
            _expect(error.rule is not None)
            after = self.town.book.account(self.town.channel)
            assert before == after, "refused means unchanged"
            if error.rule == NO_SESSION:
                self.town.payer.drop_session()
        else:
            assert name not in self.served, "a settled request is never paid for again"
            self.town.save()

    @rule(sent=consumes(payments), other=names)
    def receive_for_another_request(self, sent: Any, other: int) -> None:
        """A middleman moves a MAC to a request of its own: the request id is inside Meta, so its hash differs."""
        name, payment, _ = sent
        if payment.mac and other != name:
            with pytest.raises(PaymentError):
                self.town.accept(payment, other, meta=self.town.BODY)

    @rule(pick=picks, share=st.sampled_from([0, 1, 50, 99, 100]))
    def settle(self, pick: int, share: int) -> None:
        reserved = self.town.book.channel(self.town.channel).reserved
        for request_id in _one(reserved, pick):
            self._settle(request_id, share)

    def _settle(self, request_id: RequestId, share: int) -> None:
        reserved = self.town.book.channel(self.town.channel).reserved
        if request_id in reserved:
            name = int.from_bytes(request_id)
            self.served[name] = self.town.settle(name, reserved[request_id] * share // 100)
            self.town.save()

    @rule(pick=picks, charge=caps)
    def settle_again(self, pick: int, charge: int) -> None:
        for name in _one(self.served, pick):
            assert self.town.settle(name, charge) == self.served[name], "settled twice changes nothing"

    @rule(pick=picks)
    def give_up(self, pick: int) -> None:
        for request_id in _one(self.town.book.channel(self.town.channel).reserved, pick):
            self.town.book.release(self.town.channel, request_id)
        self.town.save()

    @rule()
    def payee_crashes(self) -> None:
        before = self.town.book.channel(self.town.channel)
        self.town.crash_payee()
        assert self.town.book.channel(self.town.channel) == before, "replaying the rows gives the same state"

    # --- chain ---

    @rule()
    def claim(self) -> None:
        self.town.claim()
        self.town.save()

    @rule(amount=st.integers(1, 20_000))
    def start_to_withdraw(self, amount: int) -> None:
        try:
            self.town.chain.initiate_withdraw(self.town.payer_key.address, self.town.channel, amount)
        except PaymentError:
            return
        self.town.payer.observe(self.town.view)

    @rule(seconds=st.integers(1, 3_000))
    def time_passes(self, seconds: int) -> None:
        """The payee looks at the chain once a claim interval, as it promises."""
        left = seconds
        while left > 0:
            self.town.clock.pass_time(min(left, self.town.terms.claim_interval))
            left -= self.town.terms.claim_interval
            if self.town.view.withdrawing:
                self.town.claim()
                self._end_what_runs_too_long()
        self.town.save()

    def _end_what_runs_too_long(self) -> None:
        """A request lasts at most `longest_request`; by then it is settled, in the worst case for its whole cap."""
        if self.town.view.seconds_left(self.town.clock.now()) < 2 * self.town.terms.claim_interval:
            for reservation in self.town.book.in_flight():
                name = int.from_bytes(reservation.request_id)
                self.served[name] = self.town.settle(name, reservation.cap)
            self.town.claim()

    @rule()
    def finish_withdrawing(self) -> None:
        try:
            self.town.chain.finalize_withdraw(self.town.payer_key.address, self.town.channel)
        except PaymentError:
            return
        self.town.payer.observe(self.town.view)

    @rule(amount=st.integers(1, 5_000))
    def top_up(self, amount: int) -> None:
        try:
            self.town.chain.deposit(self.town.payer_key.address, self.town.config, amount)
        except PaymentError:
            return
        self.town.payer.observe(self.town.view)

    @precondition(lambda self: not self.stolen)
    @rule(share=st.integers(0, 100))
    def the_payee_steals(self, share: int) -> None:
        """It presents its voucher for more than it charged, up to the whole ceiling."""
        channel = self.town.book.channel(self.town.channel)
        total = channel.charged + (channel.ceiling - channel.charged) * share // 100
        if total <= channel.charged or not channel.signature:
            return
        claim = Claim(
            config=channel.config, ceiling=channel.ceiling, signature=channel.signature, total_claimed=Amount(total)
        )
        try:
            self.town.chain.claim(self.town.payee_key.address, [claim])
        except PaymentError as error:
            _expect("above balance" in error.message)
            return
        self.stolen = True

    # --- what always holds ---

    @invariant()
    def money_is_conserved(self) -> None:
        assert self.town.chain.conserved()

    @invariant()
    def the_payee_is_covered(self) -> None:
        """PAY-22: every charge is under a voucher it holds, and the chain would pay it now."""
        channel = self.town.book.channel(self.town.channel)
        assert channel.charged + channel.held <= channel.ceiling
        assert channel.charged == sum(self.served.values())
        assert channel.phase is Phase.OPEN
        claim = self.town.book.claim_now(self.town.channel)
        if claim is not None:
            assert self.town.view.balance >= claim.total_claimed, "an honest payee can always claim what it charged"

    @invariant()
    def the_payer_is_bounded(self) -> None:
        """PAY-18, PAY-20, PAY-22."""
        payer = self.town.payer
        if self.cheated:
            return
        assert payer.ceiling <= self.town.policy.budget
        assert payer.agreed <= sum(self.served.values()), "agreed only to what was served"
        assert payer.frozen is None, "an honest payee never gets a channel frozen"
        taken = int(self.town.view.total_claimed)
        assert taken <= payer.ceiling
        assert taken - payer.agreed <= payer.worst_loss
        for name, charge in self.served.items():
            assert charge <= self.caps[name], "never above the cap"


def _rid(name: int) -> RequestId:
    return RequestId(name.to_bytes(16))


def _expect(condition: bool) -> None:
    assert condition


def _one(there: Mapping[Any, Any], pick: int) -> list[Any]:
    """One of those there are, or none."""
    return sorted(there)[pick % len(there) :][:1] if there else []


TestChannel = Channel.TestCase
TestChannel.settings = settings(max_examples=5 * settings().max_examples, stateful_step_count=60)
