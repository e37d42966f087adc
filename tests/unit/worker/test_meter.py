# SPDX-License-Identifier: Apache-2.0
"""The meter alone: what is billed never falls, never passes its caps, and always fits what is opened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bombyx.ports import EngineChunk, EngineUsage
from bombyx.protocol.pay.price import charge, units
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.market import ModelPrice
from bombyx.roles.worker.meter import Bill, Meter

PRICE = ModelPrice(model=Digest(bytes(32)), input=300_000, cached_input=30_000, output=900_000)
chunks = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 5), st.one_of(st.none(), st.integers(0, 200)), st.integers(0, 300)),
    max_size=30,
)


def _check(bill: Bill, grain: int, max_input: int, max_output: int) -> None:
    opening = bill.opening
    exact = (opening.input, opening.cached_input, opening.output)
    assert tuple(units(n, grain) for n in exact) == (bill.input_units, bill.cached_units, bill.output_units)
    assert bill.cached_units <= bill.input_units <= max_input and bill.output_units <= max_output
    assert bill.charge == charge(PRICE, bill.input_units, bill.cached_units, bill.output_units)


@given(chunks, st.sampled_from([1, 16, 64]), st.integers(0, 400), st.integers(0, 100), st.data())
def test_a_bill_only_grows_and_is_always_what_its_opening_says(
    given_chunks: list[tuple[int, int, int | None, int]],
    grain: int,
    max_input: int,
    max_output: int,
    data: st.DataObject,
) -> None:
    """RCT-4, RCT-6, RCT-7: for any engine, any order of chunks and frames, up to its last word."""
    meter = Meter(price=PRICE, grain=grain, max_input=max_input, max_output=max_output)
    put = delivered = 0
    last = meter.partial(0)
    assert last.charge == 0
    for size, ids, read, cached in given_chunks:
        meter.chunk(EngineChunk(data=b"x" * size, ids=((0, tuple(range(ids))),), input=read, cached_input=cached))
        put += size
        delivered = data.draw(st.integers(delivered, put))
        bill = meter.partial(delivered)
        _check(bill, grain, max_input, max_output)
        assert bill.input_units >= last.input_units and bill.output_units >= last.output_units
        last = bill
    spoken = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 99), max_size=40).map(tuple)))
    usage = EngineUsage(
        input=data.draw(st.integers(0, 500)),
        cached_input=data.draw(st.integers(0, 500)),
        output=data.draw(st.integers(0, 200)),
        ids=None if spoken is None else (spoken,),
        finish=("stop",),
        verified=True,
        note="",
    )
    meter.end(usage)
    whole = meter.whole()
    _check(whole, grain, max_input, max_output)
    assert whole.input_units >= last.input_units and whole.output_units >= last.output_units
    if whole.opening.verified:
        assert sum(len(choice.ids) for choice in whole.opening.choices) == usage.output
