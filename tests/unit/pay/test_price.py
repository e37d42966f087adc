# SPDX-License-Identifier: Apache-2.0
"""Prices: integers, one rounding, both parts visible."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import PaymentError
from bombyx.protocol.pay.price import cap_for, charge, check_sheet, price_of, units, with_commission, worker_cap
from bombyx.protocol.primitives import Address, sha256
from bombyx.protocol.wire.market import ModelPrice, PriceSheet

MODEL = sha256(b"model")
LINE = ModelPrice(model=MODEL, input=300, cached_input=30, output=900)
SHEET = PriceSheet(v=1, operator=Address.zero(), grain=16, prices=(LINE,))
counts = st.integers(0, 2**40)
prices = st.integers(0, 2**60)


def test_units_round_up_to_the_grain() -> None:
    """PAY-12."""
    assert [units(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_a_charge_by_hand() -> None:
    """PAY-12: 48 fresh + 16 cached input, 32 output: (48 x 300 + 16 x 30 + 32 x 900) / 1e6 rounds up to 1."""
    assert charge(LINE, 64, 16, 32) == 1
    dear = ModelPrice(model=MODEL, input=3_000_000, cached_input=300_000, output=9_000_000)
    assert charge(dear, 64, 16, 32) == 48 * 3 + 5 + 32 * 9  # 4.8 rounds up


def test_commission_by_hand() -> None:
    """PAY-13: the client pays the worker's charge and the proxy's part, rounded up once."""
    assert with_commission(1_000, 250) == 1_025
    assert with_commission(1, 1) == 2
    assert with_commission(0, 5_000) == 0
    for bps in (-1, 5_001):
        with pytest.raises(PaymentError, match="PAY-13"):
            with_commission(1, bps)


@given(counts, counts, counts, prices, prices, prices)
def test_a_charge_is_the_exact_price_rounded_up(a: int, b: int, output: int, x: int, y: int, z: int) -> None:
    """PAY-12: against exact fractions."""
    total, cached = max(a, b), min(a, b)
    line = ModelPrice(model=MODEL, input=x, cached_input=y, output=z)
    exact = Fraction((total - cached) * x + cached * y + output * z, 1_000_000)
    assert 0 <= charge(line, total, cached, output) - exact < 1


@given(st.integers(1, 2**20), st.integers(1, 2**20), prices, prices, prices, st.integers(0, 5_000), st.data())
def test_no_honest_charge_passes_the_cap(
    most_in: int, most_out: int, x: int, y: int, z: int, bps: int, data: st.DataObject
) -> None:
    """PAY-5, PAY-12: whatever is cached, even on a sheet where cached units cost more."""
    sheet = dataclasses.replace(SHEET, prices=(ModelPrice(model=MODEL, input=x, cached_input=y, output=z),))
    total = units(data.draw(st.integers(0, most_in)), sheet.grain)
    cached = units(data.draw(st.integers(0, total)), sheet.grain)
    output = units(data.draw(st.integers(0, most_out)), sheet.grain)
    cost = charge(sheet.prices[0], total, cached, output)
    assert cost <= worker_cap(sheet, MODEL, most_in, most_out)
    assert with_commission(cost, bps) <= cap_for(sheet, MODEL, most_in, most_out, bps)


def test_a_sheet_without_the_model_has_no_price() -> None:
    """PAY-12."""
    with pytest.raises(PaymentError, match="PAY-12"):
        price_of(SHEET, sha256(b"another"))


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"grain": 0},
        {"grain": 4_097},
        {"prices": (LINE, LINE)},
        {"prices": (dataclasses.replace(LINE, output=2**72 + 1),)},
    ],
)
def test_a_sheet_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    """PAY-12."""
    with pytest.raises(PaymentError, match="PAY-12"):
        check_sheet(dataclasses.replace(SHEET, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(16, 32, 0), (-16, 0, 0), (2**49, 0, 0), (0, 0, -1)])
def test_units_that_cannot_be_have_no_price(counts: tuple[int, int, int]) -> None:
    """PAY-12: more cached than there was, less than nothing, more than any context."""
    with pytest.raises(PaymentError, match="PAY-12"):
        charge(LINE, *counts)
