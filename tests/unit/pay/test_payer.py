# SPDX-License-Identifier: Apache-2.0
"""What a payer signs, agrees to and refuses: its loss is bounded by what it signed."""

from __future__ import annotations

from typing import Any

import pytest

from bombyx.errors import BudgetExceeded, LocalError, Overloaded, PaymentError
from bombyx.protocol.primitives import RequestId, Secret, sha256
from bombyx.protocol.wire.channel import voucher_digest
from bombyx.protocol.wire.signing import recover

Town = Any


def rid(name: int) -> RequestId:
    return RequestId(name.to_bytes(16))


def test_a_payer_never_signs_above_its_budget(new_town: type[Town]) -> None:
    """PAY-18."""
    town = new_town(deposit=10_000, budget=1_000, window=5_000)
    assert town.pay(1, cap=600).voucher.ceiling == 1_000, "the window is cut to the budget"
    with pytest.raises(BudgetExceeded, match="PAY-18"):
        town.pay(2, cap=401)
    assert town.pay(2, cap=400).voucher.ceiling == 1_000


def test_a_payer_never_signs_above_its_deposit(new_town: type[Town]) -> None:
    """PAY-18: deposit minus pending withdrawal."""
    town = new_town(deposit=500, budget=10_000, window=5_000)
    assert town.pay(1, cap=300).voucher.ceiling == 500
    town.chain.initiate_withdraw(town.payer_key.address, town.channel, 150)
    town.payer.observe(town.view)
    with pytest.raises(BudgetExceeded, match="PAY-18"):
        town.pay(2, cap=51)


def test_one_signature_serves_a_window_of_requests(town: Town) -> None:
    """PAY-19: vouchers are signed a window at a time, and sent until the payee is known to hold them."""
    first = town.pay(1, cap=100)
    assert first.voucher.ceiling == 1_100
    assert first.grant is not None
    assert town.pay(2, cap=100).voucher == first.voucher, "the payee may not have seen it yet"
    town.accept(first, 1)
    town.payer.agree(rid(1), 60)
    third = town.pay(3, cap=100)
    assert (third.voucher, third.grant) == (None, None)
    assert third.counter == 3


def test_the_payee_sees_only_vouchers_of_the_session_key(town: Town) -> None:
    """PAY-3: the owner key signs nothing per request."""
    voucher = town.pay(1).voucher
    assert recover(voucher_digest(town.domain, town.channel, voucher.ceiling), voucher.signature) == (
        town.session_key.address
    )
    with pytest.raises(LocalError, match="PAY-3"):
        town.payer.authorize_strict(rid(1), cap=100, signer=town.payer_key)


def test_a_retry_reserves_once(town: Town) -> None:
    """PAY-20: the same request may be authorised again; it can cost its cap only once."""
    town.pay(1, cap=100)
    town.pay(1, cap=100)
    assert town.payer.open_amount == 100


def test_requests_in_flight_are_bounded(town: Town) -> None:
    """PAY-18."""
    for name in range(8):
        town.pay(name, cap=1)
    with pytest.raises(Overloaded):
        town.pay(8, cap=1)
    town.payer.leave(rid(0))
    town.pay(8, cap=1)


def test_a_charge_above_the_cap_is_not_agreed(town: Town) -> None:
    """PAY-20."""
    town.pay(1, cap=100)
    with pytest.raises(PaymentError, match="PAY-20"):
        town.payer.agree(rid(1), 101)
    assert town.payer.agreed == 0


def test_at_most_one_final_for_a_request(town: Town) -> None:
    """PAY-20: the same final again changes nothing, another one is refused, and the id is used up."""
    town.pay(1)
    assert [town.payer.agree(rid(1), 60), town.payer.agree(rid(1), 60)] == [60, 60]
    with pytest.raises(PaymentError, match="PAY-20: a second final"):
        town.payer.agree(rid(1), 61)
    assert town.payer.agreed == 60
    with pytest.raises(LocalError, match="PAY-20"):
        town.pay(1)


def test_a_charge_nobody_authorised_is_refused(town: Town) -> None:
    """PAY-20."""
    with pytest.raises(PaymentError, match="PAY-20"):
        town.payer.agree(rid(1), 0)


def test_checkpoints_agree_step_by_step_and_never_back(town: Town) -> None:
    """PAY-20: a cut answer is paid up to the last checkpoint held; the final counts from there."""
    town.pay(1, cap=100)
    town.payer.checkpoint(rid(1), 20)
    town.payer.checkpoint(rid(1), 50)
    with pytest.raises(PaymentError, match="PAY-20"):
        town.payer.checkpoint(rid(1), 49)
    assert (town.payer.agreed, town.payer.open_amount) == (50, 50)
    town.payer.agree(rid(1), 70)
    assert (town.payer.agreed, town.payer.open_amount) == (70, 0)


def test_a_total_above_what_was_agreed_and_open_freezes(town: Town) -> None:
    """PAY-21: the evidence is kept, nothing is signed again, and a crash does not forget it."""
    town.serve(1, cap=100, charge=60)
    town.pay(2, cap=100)
    town.payer.check_account(160)
    evidence = sha256(b"the settlement record")
    with pytest.raises(PaymentError, match="PAY-21"):
        town.payer.check_account(161, evidence=evidence)
    town.save()
    town.crash_payer()
    assert town.payer.evidence == evidence
    for sign in (town.pay, town.pay_strict):
        with pytest.raises(PaymentError, match="PAY-21"):
            sign(3)
    with pytest.raises(PaymentError, match="PAY-21"):
        town.payer.voucher(signer=town.session_key)


def test_a_released_request_that_is_charged_all_the_same_freezes(town: Town) -> None:
    """PAY-21: an unsealed refusal is only a hint; if it was a lie it is found with the next account."""
    town.pay(1)
    town.payer.release(rid(1))
    assert town.payer.open_amount == 0
    with pytest.raises(PaymentError, match="PAY-21"):
        town.payer.check_account(1)


def test_a_cut_answer_stays_open_until_it_is_reconciled(town: Town) -> None:
    """PAY-21: what the payee books within the cap is disputed, not agreed; booking more later freezes."""
    town.serve(1, cap=100, charge=60)
    town.accept(town.pay(2, cap=100), 2)
    town.payer.checkpoint(rid(2), 20)
    town.payer.leave(rid(2))
    town.payer.reconcile(60 + 20, in_flight=1)
    assert town.payer.open_amount == 80, "the payee says it still runs"
    town.settle(2, 45)
    account = town.book.account(town.channel)
    town.payer.reconcile(account.charged, in_flight=account.in_flight)
    assert (town.payer.agreed, town.payer.disputed, town.payer.open_amount) == (80, 25, 25)
    town.save()
    town.crash_payer()
    assert (town.payer.agreed, town.payer.disputed) == (80, 25)
    town.payer.check_account(105)
    with pytest.raises(PaymentError, match="PAY-21"):
        town.payer.check_account(106)


def test_a_receipt_found_later_settles_a_cut_answer(town: Town) -> None:
    """PAY-20: after a crash what was in flight is left open; its stored final closes it."""
    town.accept(town.pay(1, cap=100), 1)
    town.save()
    town.crash_payer()
    assert town.payer.in_flight == ()
    assert town.payer.open_amount == 100
    town.payer.agree(rid(1), 60)
    assert (town.payer.agreed, town.payer.open_amount) == (60, 0)


def test_the_rows_alone_give_the_same_channel(town: Town) -> None:
    """PAY-17: ceiling, agreed and settled ids survive; the session does not."""
    town.serve(1)
    town.pay(2, cap=300)
    town.save()
    before = (town.payer.ceiling, town.payer.agreed, town.payer.open_amount, town.payer.worst_loss)
    town.crash_payer()
    assert (town.payer.ceiling, town.payer.agreed, town.payer.open_amount, town.payer.worst_loss) == before
    assert town.payer.needs_session(town.clock.now())
    assert town.payer.agree(rid(1), 60) == 60
    town.accept(town.pay(3), 3)


def test_a_crash_before_the_rows_were_written_sent_nothing(town: Town) -> None:
    """PAY-17: rows first, bytes second: what is not in the rows was never signed away."""
    town.serve(1)
    town.save()
    town.pay(2, cap=2_000)
    town.crash_payer()
    assert town.payer.ceiling == 1_100


def test_a_session_is_renewed_before_it_ends(town: Town) -> None:
    """PAY-9."""
    town.open_session(hours=1)
    assert not town.payer.needs_session(town.clock.now())
    town.clock.pass_time(3_600 - 59)
    assert town.payer.needs_session(town.clock.now())


def test_a_session_key_is_not_used_twice(town: Town) -> None:
    """PAY-9."""
    key = town.open_session()
    with pytest.raises(LocalError, match="PAY-9"):
        town.payer.open_session(key, sealed_key=b"", not_after=town.clock.now(), signer=town.session_key)


def test_strict_mode_after_a_cut_answer_uses_the_payees_account(town: Town) -> None:
    """PAY-14: charged may lie between agreed and agreed + open; beyond that we freeze instead of signing."""
    town.accept(town.pay_strict(1, cap=100), 1)
    town.payer.leave(rid(1))
    town.settle(1, 40)
    town.payer.reconcile(40, in_flight=0)
    payment = town.payer.authorize_strict(rid(2), cap=10, signer=town.session_key, charged_total=40)
    assert payment.voucher.ceiling == 50
    town.accept(payment, 2)
    town.payer.agree(rid(2), 10)
    with pytest.raises(PaymentError, match="PAY-21"):
        town.payer.authorize_strict(rid(3), cap=10, signer=town.session_key, charged_total=51)


def test_the_worst_loss_is_what_was_signed_and_not_agreed(town: Town) -> None:
    """PAY-22: a payee that claims its whole ceiling gets that and no more."""
    town.serve(1, cap=100, charge=60)
    before = town.payer.worst_loss
    assert before == 1_100 - 60
    claim = town.book.claim_now(town.channel)
    stolen = type(claim)(
        config=claim.config, ceiling=claim.ceiling, signature=claim.signature, total_claimed=claim.ceiling
    )
    town.chain.claim(town.payee_key.address, [stolen])
    assert town.view.total_claimed - town.payer.agreed == before


def test_a_payer_shows_no_key(town: Town) -> None:
    """PAY-9: whatever is printed of a session, the key is not."""
    assert "0909" not in repr(Secret(b"\x09" * 32))
