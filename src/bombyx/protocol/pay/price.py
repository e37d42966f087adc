# SPDX-License-Identifier: Apache-2.0
"""What a request costs, in integers: units, charge, commission, cap (spec PAY-12, PAY-13).

Always: no float, no rounding in two places; every party that holds the same receipt and price sheet computes the same
number. Units are tokens rounded up to the sheet's grain, so exact counts stay inside the seal.
"""

from __future__ import annotations

from typing import Final

from bombyx.errors import PaymentError, Peer
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.wire.market import ModelPrice, PriceSheet

UNITS_PER_PRICE: Final = 1_000_000  # prices are per million units
BASIS_POINTS: Final = 10_000
MAX_COMMISSION: Final = 5_000  # basis points; half the price is nobody's honest commission
MAX_UNITS: Final = 2**48  # far above any context, far below where a product of two leaves 128 bits
MAX_PRICE: Final = 2**72  # token base units per million units
MAX_GRAIN: Final = 4_096


def units(count: int, grain: int) -> int:
    """`count` tokens rounded up to a multiple of `grain`."""
    return -(-count // grain) * grain


def charge(price: ModelPrice, input_units: int, cached_units: int, output_units: int) -> Amount:
    """The worker's price. `input_units` counts all of the input, `cached_units` the part of it that was cached."""
    if not 0 <= cached_units <= input_units <= MAX_UNITS or not 0 <= output_units <= MAX_UNITS:
        raise PaymentError(
            f"cached {cached_units} of input {input_units} and output {output_units} are no units", rule="PAY-12"
        )
    fresh = input_units - cached_units
    total = fresh * price.input + cached_units * price.cached_input + output_units * price.output
    return Amount(-(-total // UNITS_PER_PRICE))


def with_commission(amount: int, bps: int) -> Amount:
    """What the client pays when the worker's charge is `amount`: ceil(amount x (10000 + bps) / 10000)."""
    if not 0 <= bps <= MAX_COMMISSION:
        raise PaymentError(f"a commission of {bps} bps, at most {MAX_COMMISSION}", rule="PAY-13")
    return Amount(-(-amount * (BASIS_POINTS + bps) // BASIS_POINTS))


def price_of(sheet: PriceSheet, model: Digest) -> ModelPrice:
    """The sheet's line for `model`."""
    check_sheet(sheet)
    for line in sheet.prices:
        if line.model == model:
            return line
    raise PaymentError(f"the price sheet has no price for model {model!r}", peer=Peer.WORKER, rule="PAY-12")


def check_sheet(sheet: PriceSheet) -> None:
    """Refuse a sheet whose numbers could overflow or whose lines contradict each other."""
    if sheet.v != 1 or not 1 <= sheet.grain <= MAX_GRAIN:
        raise PaymentError(f"a price sheet of version {sheet.v} and grain {sheet.grain}", rule="PAY-12")
    if len({line.model for line in sheet.prices}) != len(sheet.prices):
        raise PaymentError("a price sheet with two prices for one model", rule="PAY-12")
    if any(max(line.input, line.cached_input, line.output) > MAX_PRICE for line in sheet.prices):
        raise PaymentError(f"a price above {MAX_PRICE} per million units", rule="PAY-12")


def worker_cap(sheet: PriceSheet, model: Digest, max_input: int, max_output: int) -> Amount:
    """The most a worker may charge for `max_input` and `max_output` units, whatever is cached."""
    return line_cap(price_of(sheet, model), sheet.grain, max_input, max_output)


def line_cap(line: ModelPrice, grain: int, max_input: int, max_output: int) -> Amount:
    """`worker_cap` for one line of a sheet that was checked."""
    read, written = units(max_input, grain), units(max_output, grain)
    if line.cached_input > line.input:  # nothing forbids a sheet on which a cached unit costs more
        return charge(line, read, read, written)
    return charge(line, read, 0, written)


def cap_for(sheet: PriceSheet, model: Digest, max_input: int, max_output: int, bps: int) -> Amount:
    """The most a client may pay: the worker's cap and the proxy's commission on it."""
    return with_commission(worker_cap(sheet, model, max_input, max_output), bps)
