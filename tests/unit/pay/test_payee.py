# SPDX-License-Identifier: Apache-2.0
"""What a payee accepts, and what it can lose: nothing it checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bombyx.errors import LocalError, PaymentError
from bombyx.protocol.pay.channel import TRANSITIONS, ActionClose, Phase, ReceiveRequest, sign_voucher, step
from bombyx.protocol.pay.payee import MAX_KEYS, NO_SESSION, PayeeBook
from bombyx.protocol.primitives import Amount, Digest, RequestId, Secret, sha256
from bombyx.protocol.wire.channel import voucher_digest
from bombyx.protocol.wire.signing import recover

Town = Any


def rid(name: int) -> RequestId:
    return RequestId(name.to_bytes(16))


def refused(rule: str) -> Any:
    return pytest.raises(PaymentError, match=f"^{rule}:")


def test_a_channel_that_pays_somebody_else_is_not_opened(town: Town) -> None:
    """PAY-2: the config must name us, our token and a delay that leaves time to claim."""
    book = PayeeBook(town.terms, town.domain)
    for change in (
        {"receiver": town.stranger.address},
        {"receiver_authorizer": town.stranger.address},
        {"token": town.stranger.address},
        {"withdraw_delay": 899},
    ):
        view = dataclasses.replace(town.view, config=dataclasses.replace(town.config, **change))
        with refused("PAY-2"):
            book.open(view)
    assert not book.channels


def test_a_voucher_of_a_stranger_pays_nothing(town: Town) -> None:
    """PAY-3: the right signer is the payer's authorizer, not the payer, not anybody."""
    for key in (town.stranger, town.payer_key):
        voucher = sign_voucher(town.channel, 100, town.domain, key)
        with refused("PAY-3"):
            town.book.raise_ceiling(voucher, view=town.view, now=town.clock.now())
    assert town.book.account(town.channel).ceiling == 0


def test_a_voucher_for_another_channel_pays_nothing(town: Town) -> None:
    """PAY-3."""
    payment = town.pay_strict(1)
    other = sign_voucher(sha256(b"other"), 100, town.domain, town.session_key)
    with refused("PAY-3"):
        town.accept(dataclasses.replace(payment, voucher=other), 1)


def test_a_ceiling_above_the_deposit_is_air(town: Town) -> None:
    """PAY-4: ceiling <= balance - pending withdrawal."""
    voucher = sign_voucher(town.channel, 10_001, town.domain, town.session_key)
    with refused("PAY-4"):
        town.book.raise_ceiling(voucher, view=town.view, now=town.clock.now())
    town.chain.initiate_withdraw(town.payer_key.address, town.channel, 9_950)
    voucher = sign_voucher(town.channel, 51, town.domain, town.session_key)
    with refused("PAY-4"):
        town.book.raise_ceiling(voucher, view=town.view, now=town.clock.now())


def test_a_request_needs_room_beside_those_in_flight(town: Town) -> None:
    """PAY-5: ceiling >= charged + reserved in flight + this cap."""
    town.accept(town.pay(1, cap=600), 1)  # the voucher reaches 600 + a window of 1000
    town.accept(town.pay(2, cap=1_000), 2)
    third = dataclasses.replace(town.pay(3, cap=100), voucher=None)
    with refused("PAY-5"):
        town.accept(third, 3)


def test_less_authorised_than_needed_is_refused(town: Town) -> None:
    """PAY-5: the payer authorises at least what the request may cost."""
    with refused("PAY-5"):
        town.accept(town.pay(1, cap=100), 1, cap=101)


def test_a_withdrawal_that_runs_out_takes_no_new_work(town: Town) -> None:
    """PAY-6: what is accepted must end, and be claimed, before the delay does."""
    town.chain.initiate_withdraw(town.payer_key.address, town.channel, 5_000)
    town.accept(town.pay(1), 1)
    town.clock.pass_time(3_600 - town.terms.margin + 1)
    with refused("PAY-6"):
        town.accept(town.pay(2), 2)


def test_a_smaller_voucher_is_the_peers_fault(town: Town) -> None:
    """PAY-7: a voucher only ever grows."""
    now, view = town.clock.now(), town.view
    town.book.raise_ceiling(sign_voucher(town.channel, 57, town.domain, town.session_key), view=view, now=now)
    with pytest.raises(PaymentError, match="PAY-7: voucher 41 is below 57 already held"):
        town.book.raise_ceiling(sign_voucher(town.channel, 41, town.domain, town.session_key), view=view, now=now)
    assert town.book.account(town.channel).ceiling == 57


def test_requests_may_overtake_each_other(town: Town) -> None:
    """PAY-7, PAY-10: a late, smaller voucher inside a session is no fault and changes nothing."""
    first, second = town.pay(1, cap=600), town.pay(2, cap=1_500)
    assert first.voucher.ceiling < second.voucher.ceiling
    town.accept(second, 2)
    town.accept(first, 1)
    assert town.book.account(town.channel).ceiling == second.voucher.ceiling


def test_a_charge_above_the_cap_is_never_booked(town: Town) -> None:
    """PAY-8: it is refused as our own fault: the payee must not even try."""
    town.accept(town.pay(1, cap=100), 1)
    with pytest.raises(LocalError, match="PAY-8"):
        town.settle(1, 101)
    assert town.book.account(town.channel).charged == 0


def test_settling_twice_changes_nothing(town: Town) -> None:
    """PAY-8: the first charge stands, whatever the second says."""
    town.accept(town.pay(1, cap=100), 1)
    assert [town.settle(1, 60), town.settle(1, 60), town.settle(1, 99)] == [60, 60, 60]
    assert town.book.account(town.channel).charged == 60
    town.book.release(town.channel, rid(1))
    assert town.book.account(town.channel).charged == 60


def test_releasing_frees_the_reservation_and_the_id(town: Town) -> None:
    """PAY-8, PAY-23: a request that came to nothing may be sent again with the same id."""
    town.accept(town.pay(1), 1)
    town.book.release(town.channel, rid(1))
    assert town.book.account(town.channel).reserved == 0
    town.accept(town.pay(1), 1)


def test_a_request_id_is_paid_once(town: Town) -> None:
    """PAY-23: neither in flight twice nor again once settled."""
    town.accept(town.pay(1), 1)
    again = town.pay(1)
    with refused("PAY-23"):
        town.accept(again, 1)
    town.settle(1, 10)
    with refused("PAY-23"):
        town.accept(again, 1)


@pytest.mark.parametrize("what", ["meta", "body", "cap", "counter", "mac"])
def test_a_mac_covers_everything_asked_for(town: Town, what: str) -> None:
    """PAY-10: nothing a middleman changes stays paid for."""
    payment, bad = town.pay(1), sha256(b"bad")
    changed: Any = {
        "cap": {"cap": 101},
        "counter": {"counter": 2},
        "mac": {"mac": bytes(32)},
    }.get(what, {})
    with refused("PAY-10"):
        town.accept(
            dataclasses.replace(payment, **changed),
            1,
            meta=bad if what == "meta" else town.META,
            body=bad if what == "body" else town.BODY,
        )
    town.accept(payment, 1)


def test_a_replayed_mac_is_refused_after_release_too(town: Town) -> None:
    """PAY-10: a counter is accepted once, even if the request it paid for came to nothing."""
    payment = town.pay(1)
    town.accept(payment, 1)
    town.book.release(town.channel, rid(1))
    with refused("PAY-10"):
        town.accept(payment, 1)


def test_a_refused_request_cannot_be_replayed_when_there_is_room_again(town: Town) -> None:
    """PAY-10: the counter is used up by the first genuine look at it."""
    payment = town.pay(1, cap=100)
    with refused("PAY-5"):
        town.accept(dataclasses.replace(payment, voucher=None), 1)
    with refused("PAY-10"):
        town.accept(payment, 1)


def test_a_session_key_opens_one_session_ever(town: Town) -> None:
    """PAY-9, PAY-11: after a restart a recorded grant and its MACs open nothing."""
    payment = town.pay(1)
    town.accept(payment, 1)
    town.book.release(town.channel, rid(1))
    town.save()
    town.crash_payee()
    with refused(NO_SESSION):
        town.accept(payment, 1)


def test_a_restart_voids_sessions_and_a_fresh_grant_mends_it(town: Town) -> None:
    """PAY-11: the refusal carries the rule by which the payer knows to present itself again."""
    town.serve(1)
    town.save()
    town.crash_payee()
    payment = town.pay(2)
    assert payment.grant is None
    with pytest.raises(PaymentError) as refusal:
        town.accept(payment, 2)
    assert refusal.value.rule == NO_SESSION
    town.payer.drop_session()
    town.accept(town.pay(2), 2)


def test_session_keys_are_in_no_row(town: Town) -> None:
    """PAY-9: MAC keys never reach a disk, on either side."""
    key = town.open_session()
    town.serve(1)
    town.save()
    for rows in (town.payee_rows, town.payer_rows):
        assert not any(key.reveal() in row + value for row, value in rows.items())


def test_sessions_overlap_when_they_rotate(town: Town) -> None:
    """PAY-9: a request under way under the old key is still paid for when a new session has begun."""
    old = town.pay(1)
    town.accept(town.pay(2), 2)
    town.open_session()
    town.accept(town.pay(3), 3)
    town.accept(old, 1)


def test_a_grant_is_for_one_payee_one_channel_one_time(town: Town) -> None:
    """PAY-9."""
    town.open_session()
    payment = town.pay(1)
    grant = payment.grant
    for change in (
        {"payee": town.stranger.address},
        {"not_after": town.clock.now().plus(seconds=200_000)},
        {"not_after": town.clock.now()},
        {"signature": bytes(65)},
        {"signature": town.stranger.sign(sha256(b"x"))},
        {"channel": sha256(b"another")},
    ):
        bad = dataclasses.replace(payment, grant=dataclasses.replace(grant, **change))
        with refused("PAY-9"):
            town.accept(bad, 1)
    with pytest.raises(PaymentError, match="PAY-9"):
        town.book.accept(
            payment,
            request_id=rid(1),
            cap=1,
            meta_hash=town.META,
            body_hash=town.BODY,
            now=town.clock.now(),
            view=town.view,
            session_key=Secret(b"\x09" * 32),
        )
    town.accept(payment, 1)


def test_an_ended_session_pays_nothing(town: Town) -> None:
    """PAY-11."""
    town.open_session(hours=1)
    town.serve(1)
    payment = town.pay(2)
    town.clock.pass_time(3_601)
    with refused(NO_SESSION):
        town.accept(payment, 2)


def test_session_keys_are_bounded(town: Town) -> None:
    """PAY-9: a payer that rotates without end fills its own channel, not our memory; time frees it."""
    for _ in range(MAX_KEYS):
        town.open_session(hours=1)
        town.accept(town.pay(1), 1)
        town.book.release(town.channel, rid(1))
    town.open_session(hours=1)
    with refused("PAY-9"):
        town.accept(town.pay(1), 1)
    town.clock.pass_time(3_601)
    town.open_session()
    town.accept(town.pay(1), 1)


def test_strict_mode_wants_exactly_charged_plus_cap(town: Town) -> None:
    """PAY-14: stock x402."""
    town.accept(town.pay_strict(1, cap=100), 1)
    town.settle(1, 30)
    town.payer.agree(rid(1), 30)
    payment = town.pay_strict(2, cap=50)
    assert payment.voucher.ceiling == 80
    for ceiling in (79, 81, 100):
        voucher = sign_voucher(town.channel, ceiling, town.domain, town.session_key)
        with refused("PAY-14"):
            town.accept(dataclasses.replace(payment, voucher=voucher), 2)
    town.accept(payment, 2)
    assert town.book.account(town.channel).ceiling == 100


def test_strict_mode_has_one_request_in_flight(town: Town) -> None:
    """PAY-14."""
    town.accept(town.pay_strict(1), 1)
    voucher = sign_voucher(town.channel, 100, town.domain, town.session_key)
    second = dataclasses.replace(town.payer.authorize_strict(rid(1), cap=100, signer=town.session_key), voucher=voucher)
    with refused("PAY-14"):
        town.accept(second, 2)


def test_nothing_at_all_pays_nothing(town: Town) -> None:
    """PAY-14: no voucher, no session."""
    payment = dataclasses.replace(town.pay_strict(1), voucher=None)
    with refused("PAY-14"):
        town.accept(payment, 1)


def test_an_unknown_channel_is_refused(town: Town) -> None:
    """PAY-2."""
    with refused("PAY-2"):
        town.accept(dataclasses.replace(town.pay(1), channel=sha256(b"nowhere")), 1)


def test_claims_wait_for_threshold_age_or_withdrawal(town: Town) -> None:
    """PAY-15."""
    town.serve(1, cap=400, charge=400)
    assert town.book.claim(town.channel, view=town.view, now=town.clock.now()) is None
    later = town.clock.now().plus(seconds=town.terms.claim_age)
    assert town.book.claim(town.channel, view=town.view, now=later) is not None
    town.serve(2, cap=100, charge=100)
    assert town.book.claim(town.channel, view=town.view, now=town.clock.now()).total_claimed == 500
    town.claim()
    town.serve(3, cap=10, charge=10)
    assert town.book.claim(town.channel, view=town.view, now=town.clock.now()) is None
    town.chain.initiate_withdraw(town.payer_key.address, town.channel, 100)
    assert town.book.claim(town.channel, view=town.view, now=town.clock.now()).total_claimed == 510


def test_a_claim_always_carries_a_voucher_that_covers_it(town: Town) -> None:
    """PAY-3, PAY-15: what the chain will be shown is signed by the payer's authorizer."""
    town.serve(1)
    claim = town.book.claim_now(town.channel)
    digest = voucher_digest(town.domain, town.channel, claim.ceiling)
    assert recover(digest, claim.signature) == town.session_key.address
    assert claim.total_claimed <= claim.ceiling


def test_closing_gives_back_what_is_neither_charged_nor_reserved(town: Town) -> None:
    """PAY-16: a cooperative refund, at once; requests under way keep their reservation."""
    town.serve(1, cap=100, charge=60)
    town.accept(town.pay(2, cap=200), 2)
    with pytest.raises(LocalError, match="PAY-16"):
        town.book.sign_refund(town.channel, view=town.view, signer=town.payee_key)
    town.book.close(town.channel)
    with pytest.raises(PaymentError):
        town.accept(town.pay(3), 3)
    amount, nonce, signature = town.book.sign_refund(town.channel, view=town.view, signer=town.payee_key)
    assert amount == 10_000 - 60 - 200
    town.chain.refund(town.stranger.address, town.channel, amount, nonce, signature)
    town.settle(2, 200)
    town.claim()
    assert town.chain.balance(town.payee_key.address) == 260
    town.book.observe(town.view, now=town.clock.now())
    assert town.book.account(town.channel).phase is Phase.CLOSED


def test_the_table_refuses_what_it_does_not_list(town: Town) -> None:
    """PAY-16: a closing channel takes no requests; every phase and event of the table is walked."""
    closing = step(town.book.channel(town.channel), ActionClose())
    with refused("PAY-16"):
        step(closing, ReceiveRequest(request_id=rid(1), cap=Amount(1)))
    assert set(TRANSITIONS) == set(Phase)
    for phase, moves in TRANSITIONS.items():
        assert all(target >= phase for target in moves.values()), "no phase is ever left backwards"


def test_the_rows_alone_give_the_same_book(town: Town) -> None:
    """PAY-17: crash after any step; charges, reservations, ceilings and settled ids are as before."""
    town.serve(1)
    town.accept(town.pay(2, cap=200), 2)
    town.claim()
    town.save()
    before = town.book.channel(town.channel), town.book.in_flight()
    town.crash_payee()
    assert (town.book.channel(town.channel), town.book.in_flight()) == before
    assert town.settle(1, 1) == 60, "settled before the crash, and still"
    assert town.settle(2, 150) == 150


def test_a_call_that_is_refused_writes_no_money(town: Town) -> None:
    """PAY-17: refused means unchanged."""
    town.save()
    before = dict(town.payee_rows)
    with refused("PAY-5"):
        town.accept(dataclasses.replace(town.pay(1), voucher=None), 1)
    town.save()
    changed = {key for key in town.payee_rows if town.payee_rows[key] != before.get(key)}
    assert {key[:1] for key in changed} <= {b"g"}, "only the session key's hash was noted"


def test_old_settled_ids_are_forgotten_oldest_first(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """PAY-17: rows stay bounded; the order survives a crash."""
    monkeypatch.setattr("bombyx.protocol.pay.rows.FINISHED_KEPT", 3)
    for name in (9, 5, 7, 1):
        town.accept(town.pay(name, cap=1), name)
        town.settle(name, 1)
        town.payer.agree(rid(name), 1)
        town.save()
    town.crash_payee()
    settled = [key[33:] for key in town.payee_rows if key[:1] == b"s"]
    assert sorted(settled) == sorted([rid(5), rid(7), rid(1)])
    town.payer.drop_session()
    town.accept(town.pay(2, cap=1), 2)
    town.settle(2, 1)
    town.save()
    assert rid(5) not in [key[33:] for key in town.payee_rows if key[:1] == b"s"]


def test_channels_of_digest_type(town: Town) -> None:
    """PAY-1: the channel's id is its config's EIP-712 digest."""
    assert isinstance(town.channel, Digest)
    assert town.channel in town.book
