# SPDX-License-Identifier: Apache-2.0
"""What a cut answer reserves is free again once it can end no more; what the payee is owed of it, it still gets."""

from __future__ import annotations

from typing import Any

import pytest

from bombyx.errors import PaymentError
from bombyx.protocol.primitives import RequestId

Town = Any


def rid(name: int) -> RequestId:
    return RequestId(name.to_bytes(16))


def test_what_a_cut_answer_reserved_is_free_again(town: Town) -> None:
    """PAY-27: the checkpoint stays agreed, the rest of the cap comes back, and nothing more is agreed to."""
    town.pay(1, cap=100)
    town.payer.checkpoint(rid(1), 30)
    town.payer.lapse(rid(1))
    assert town.payer.open_amount == 70, "it still runs: only what was left lapses"
    town.payer.leave(rid(1))
    town.payer.lapse(rid(1))
    town.payer.lapse(rid(1))
    assert (town.payer.agreed, town.payer.open_amount, town.payer.lapsed) == (30, 0, 70)
    with pytest.raises(PaymentError, match="PAY-20"):
        town.payer.agree(rid(1), 90)
    town.save()
    town.crash_payer()
    assert (town.payer.agreed, town.payer.open_amount, town.payer.lapsed) == (30, 0, 70)


def test_a_payee_that_was_owed_more_of_cut_answers_goes_on_and_is_paid(new_town: type[Town]) -> None:
    """PAY-27, PAY-5: its account is above ours by finals we never saw. Its refusal brings back what lapsed, once."""
    town = new_town(deposit=10_000, budget=10_000, window=1)
    for name in (1, 2):
        town.accept(town.pay(name), name)
    for name in (1, 2):
        town.settle(name, 90)
        town.payer.leave(rid(name))
        town.payer.lapse(rid(name))
    refused = town.pay(3)
    with pytest.raises(PaymentError, match=r"^PAY-5: ceiling"):
        town.accept(refused, 3)
    assert town.payer.concede()
    assert town.payer.disputed == 200
    again = town.pay(3)
    assert again.voucher is not None
    assert again.voucher.ceiling == 301
    town.accept(again, 3)
    town.settle(3, 60)
    town.payer.agree(rid(3), 60)
    town.claim()
    assert town.view.total_claimed == 240
    assert not town.payer.concede(), "nothing lapsed since: a payee that asks for more is wrong"
