# SPDX-License-Identifier: Apache-2.0
"""One machine drives the payee's book, the memory chain and the contract together: same state, or all refuse.

Spec PAY-2 .. PAY-8, PAY-15, PAY-16. Invariants: claimed <= deposited; tokens are conserved over all accounts; a claim
never goes back; after the end nothing moves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.onchain.conftest import (
    AUTHORIZER,
    FUNDS,
    PAYER,
    RECEIVER,
    SESSION,
    STRANGER,
    Bench,
    address,
    row,
)

from bombyx.adapters.memory_chain import MemoryChain
from bombyx.errors import PaymentError
from bombyx.protocol.pay.payee import PayeeBook, PayeeTerms
from bombyx.protocol.pay.view import ChannelView, Claim
from bombyx.protocol.primitives import Amount, Digest, Instant, RequestId
from bombyx.protocol.wire.channel import refund_digest, settlement_domain
from bombyx.protocol.wire.request import Payment, SignedVoucher

amounts = st.integers(0, 2_000)
which = st.integers(0, 1)
ZERO = Digest.zero()


class _Clock:
    """The EVM's own time, for the memory chain and the book."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def now(self) -> Instant:
        return Instant(self._bench.boa.env.timestamp * 1_000)


class Channels(RuleBasedStateMachine):
    """Two channels of one payer, held by three books."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.anchor = self.bench.boa.env.anchor()
        self.anchor.__enter__()
        bench = self.bench
        self.clock = _Clock(bench)
        self.memory = MemoryChain(self.clock, chain_id=bench.chain_id)  # type: ignore[arg-type]  # `now` is all it asks
        info = dataclasses.replace(self.memory.info, settlement=address(bench.settlement), token=address(bench.token))
        self.memory.info, self.memory.domain = info, settlement_domain(bench.chain_id, info.settlement)
        self.memory.mint(PAYER.address, FUNDS)
        terms = PayeeTerms(
            receiver=RECEIVER.address,
            receiver_authorizer=AUTHORIZER.address,
            token=address(bench.token),
            claim_interval=60,
            longest_request=60,
        )
        self.book = PayeeBook(terms, bench.domain)
        self.configs = [bench.config(salt=Digest(n.to_bytes(32)), withdraw_delay=1_000) for n in range(2)]
        self.ids = [config.channel_id(bench.domain) for config in self.configs]
        self.highest = [0, 0]
        self.requests = 0

    def teardown(self) -> None:
        self.anchor.__exit__(None, None, None)

    def both(self, on_chain: Any, in_memory: Any) -> bool:
        """The same step on both; whether it was done. One doing what the other refuses is the bug we look for."""
        try:
            in_memory()
        except PaymentError:
            refused = True
        else:
            refused = False
        try:
            on_chain()
        except self.bench.boa.BoaError as error:
            assert refused, f"only the contract refuses: {bytes(error.call_trace.output).hex()}"  # noqa: PT017  what else may come is the subject
            return False
        assert not refused, "only the memory chain refuses"
        return True

    def view(self, i: int) -> ChannelView | None:
        return self.memory.channel(self.ids[i])

    @rule(i=which, amount=amounts)
    def deposit(self, i: int, amount: int) -> None:
        self.both(
            lambda: self.bench.deposit(self.configs[i], amount),
            lambda: self.memory.deposit(PAYER.address, self.configs[i], amount),
        )

    @rule(i=which, ceiling=amounts, total=amounts, stranger=st.booleans())
    def claim_anything(self, i: int, ceiling: int, total: int, stranger: bool) -> None:
        """Vouchers of any size by either signer: what is not good is refused by both."""
        if self.view(i) is None:
            return
        signer = STRANGER if stranger else SESSION
        self._claim(self.bench.voucher(self.configs[i], ceiling, total, signer=signer))

    def _claim(self, claim: Claim) -> bool:
        return self.both(lambda: self.bench.claim(claim), lambda: self.memory.claim(RECEIVER.address, [claim]) and None)

    @rule(i=which, cap=st.integers(1, 500), spent=st.integers(0, 500))
    def a_paid_request(self, i: int, cap: int, spent: int) -> None:
        """What the payee's book accepts, the contract pays: a strict voucher, a charge, and its claim at once."""
        view = self.view(i)
        if view is None:
            return
        self.book.open(view)
        self.book.observe(view, now=self.clock.now())
        state = self.book.channel(self.ids[i])
        if view.total_claimed > state.charged:  # claimed by another rule, past this book: it knows no such charge
            return
        self.requests += 1
        request = RequestId(self.requests.to_bytes(16))
        voucher = self.bench.voucher(self.configs[i], state.charged + cap)
        signed = SignedVoucher(channel=self.ids[i], ceiling=voucher.ceiling, signature=voucher.signature)
        payment = Payment(v=1, channel=self.ids[i], cap=cap, voucher=signed, grant=None, counter=0, mac=b"")
        now = self.clock.now()
        try:
            self.book.accept(payment, request_id=request, cap=cap, meta_hash=ZERO, body_hash=ZERO, now=now, view=view)
        except PaymentError as error:
            assert error.rule in {"PAY-4", "PAY-6", "PAY-16"}, error  # noqa: PT017  refusing is allowed
            return
        self.book.settle(self.ids[i], request, min(cap, spent), now=now)
        claim = self.book.claim_now(self.ids[i])
        if claim is not None:
            assert self._claim(claim), "the book accepted what the contract does not pay"

    @rule(i=which, amount=amounts, late=st.booleans())
    def withdraw(self, i: int, amount: int, late: bool) -> None:
        channel, config = self.ids[i], self.configs[i]
        if self.view(i) is None:
            return
        sender = SESSION if late else PAYER
        self.both(
            lambda: self.bench.settlement.initiateWithdraw(row(config), amount, sender=str(sender.address)),
            lambda: self.memory.initiate_withdraw(sender.address, channel, amount),
        )

    @rule(i=which, seconds=st.integers(1, 900))
    def finalize(self, i: int, seconds: int) -> None:
        self.bench.pass_time(seconds)
        if self.view(i) is None:
            return
        self.both(
            lambda: self.bench.settlement.finalizeWithdraw(row(self.configs[i]), sender=str(PAYER.address)),
            lambda: self.memory.finalize_withdraw(PAYER.address, self.ids[i]),
        )

    @rule(i=which, amount=amounts, ahead=st.integers(0, 1))
    def refund(self, i: int, amount: int, ahead: int) -> None:
        view = self.view(i)
        if view is None:
            return
        nonce = view.refund_nonce + ahead
        signature = AUTHORIZER.sign(refund_digest(self.bench.domain, self.ids[i], nonce, amount))
        self.both(
            lambda: self.bench.settlement.refundWithSignature(row(self.configs[i]), amount, nonce, signature),
            lambda: self.memory.refund(STRANGER.address, self.ids[i], amount, nonce, signature),
        )

    @rule()
    def settle(self) -> None:
        self.bench.settlement.settle(str(RECEIVER.address), self.bench.token.address)

    @invariant()
    def both_hold_the_same(self) -> None:
        for i, config in enumerate(self.configs):
            view = self.view(i)
            balance, claimed = self.bench.state(config)
            amount, since = self.bench.settlement.pendingWithdrawals(bytes(self.ids[i]))
            if view is None:
                assert (balance, claimed, amount, since) == (0, 0, 0, 0)
                continue
            assert (balance, claimed) == (view.balance, view.total_claimed)
            assert (amount, since != 0) == (view.withdraw_amount, view.withdrawing)
            assert self.bench.settlement.refundNonce(bytes(self.ids[i])) == view.refund_nonce
            assert claimed <= balance
            assert claimed >= self.highest[i], "a claim went back"
            self.highest[i] = claimed

    @invariant()
    def tokens_are_conserved(self) -> None:
        bench = self.bench
        locked = sum(Amount(balance - claimed) for balance, claimed in map(bench.state, self.configs))
        claimed, settled = bench.settlement.receivers(str(RECEIVER.address), bench.token.address)
        assert bench.token.balanceOf(bench.settlement.address) == locked + claimed - settled
        assert bench.paid(PAYER) + bench.paid(RECEIVER) + locked + claimed - settled == FUNDS
        assert self.memory.conserved()
        assert self.memory.balance(PAYER.address) == bench.paid(PAYER)


def test_the_book_the_memory_chain_and_the_contract_agree(deployed: Bench) -> None:
    """PAY-4, PAY-7, PAY-8, PAY-16: whatever is done in whatever order."""

    class Machine(Channels):
        bench = deployed

    run_state_machine_as_test(Machine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None))
