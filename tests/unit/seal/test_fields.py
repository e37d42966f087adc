# SPDX-License-Identifier: Apache-2.0
"""The closing block of an answer, and what an ill-made one is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.seal.fields import USAGE_FIELD, read_usage, usage_trailers
from bombyx.protocol.wire.receipt import ChoiceIds, UsageOpening


def _opening(count: int) -> UsageOpening:
    ids = tuple(range(100_000, 100_000 + count))
    choice = ChoiceIds(ids=ids, finish="stop")
    return UsageOpening(v=1, input=9, cached_input=0, output=count, choices=(choice,), verified=True, note="")


@pytest.mark.parametrize("count", [0, 8, 100_000])
def test_the_closing_block_comes_back_as_it_went(count: int) -> None:
    """RCT-6: also for an answer of a hundred thousand tokens."""
    opening = _opening(count)
    trailers = usage_trailers(opening)
    assert read_usage((*trailers, (b"other", b"field"))) == opening
    assert len(trailers[0][1]) < 1 << 20


def test_an_answer_without_a_closing_block() -> None:
    """RCT-6: none is None; what that means is for receipts to say."""
    assert read_usage(()) is None


@given(st.binary(max_size=60))
def test_any_bytes_as_a_closing_block(value: bytes) -> None:
    """RCT-6: MalformedMessage, blaming the worker."""
    with pytest.raises(MalformedMessage):
        read_usage(((USAGE_FIELD, value),))
