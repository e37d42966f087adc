# SPDX-License-Identifier: Apache-2.0
"""Token tables: which texts are the text of which ids, and which are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.wire.tokens import Relation, TokenTable

END, SEA, THE, CUT, EURO_A, EURO_B = 0, 1, 2, 3, 4, 5
TABLE = TokenTable.build([b"<end>", b" sea", b" the", b"s.\n", b"\xe2\x82", b"\xac"], special=[END])


def test_a_table_survives_its_encoding() -> None:
    assert TokenTable.decode(TABLE.encode()) == TABLE
    assert TokenTable.decode(TABLE.encode()).detokenise([THE, SEA, END]) == b" the sea"


@pytest.mark.parametrize(
    ("text", "ids", "finish", "relation"),
    [
        (" the sea", [THE, SEA], "length", Relation.EQUAL),
        (" the sea", [THE, SEA, END], "stop", Relation.EQUAL),
        ("", [END], "stop", Relation.EQUAL),
        ("\u20ac", [EURO_A, EURO_B], "length", Relation.EQUAL),
        (" sea", [SEA, EURO_A], "length", Relation.TAIL_DROPPED),
        (" sea\ufffd", [SEA, EURO_A], "length", Relation.REPLACED),
        (" seas", [SEA, CUT], "stop", Relation.CUT_AT_STOP),
    ],
)
def test_an_honest_text(text: str, ids: list[int], finish: str, relation: Relation) -> None:
    """RCT-6"""
    assert TABLE.relation(text, ids, finish, stop=["."]) is relation


@pytest.mark.parametrize(
    ("text", "ids", "finish", "stop"),
    [
        (" the", [THE, SEA], "length", []),  # an id was added
        (" the sea", [THE], "length", []),  # an id was taken away
        (" the", [THE, SEA], "stop", []),  # no stop string was asked for
        (" the", [THE, SEA], "stop", ["!"]),  # another was
        (" seas", [SEA, CUT, THE], "stop", ["."]),  # an id hides behind the stop string
        (" seas", [SEA, CUT], "length", ["."]),  # it says that it was not cut
        (" sea", [SEA, EURO_B], "length", []),  # no character begins like that
        (" sea", [SEA, EURO_A, EURO_B], "length", []),  # a whole character is missing
    ],
)
def test_a_text_that_is_not_that_of_its_ids(text: str, ids: list[int], finish: str, stop: list[str]) -> None:
    """RCT-6: who bills ids the text does not show is found out."""
    assert not TABLE.matches(text, ids, finish, stop)


def test_sentencepiece_may_drop_the_first_space() -> None:
    table = TokenTable.build([b" sea"], special=[], strip_leading_space=True)
    assert table.matches("sea", [0], "length")
    assert not TABLE.matches("sea", [SEA], "length")


@pytest.mark.parametrize("token", [-1, 6, 2**40])
def test_an_unknown_id_is_refused(token: int) -> None:
    """RCT-6"""
    with pytest.raises(MalformedMessage):
        TABLE.detokenise([token])


@pytest.mark.parametrize(
    ("joined", "lengths", "special"),
    [
        (b"ab", b"\0\1", b"\0"),
        (b"", b"\0\1", b"\0"),
        (b"a", b"\0", b"\0"),
        (b"a", b"\0\1", b""),
        (b"a", b"\0\1", b"\0\0"),
    ],
)
def test_a_table_whose_parts_do_not_fit_is_refused(joined: bytes, lengths: bytes, special: bytes) -> None:
    """WIRE-3"""
    with pytest.raises(MalformedMessage):
        TokenTable(v=1, joined=joined, lengths=lengths, special=special, strip_leading_space=False)


@given(st.binary(max_size=200))
def test_bytes_of_strangers_are_a_table_or_malformed(data: bytes) -> None:
    """WIRE-1"""
    try:
        TokenTable.decode(data)
    except MalformedMessage:
        return


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=40), st.data())
def test_any_ids_of_any_table_match_their_own_text(tokens: list[bytes], data: st.DataObject) -> None:
    """RCT-6"""
    table = TokenTable.build(tokens, special=[])
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=20))
    raw = table.detokenise(ids)
    assert TokenTable.decode(table.encode()) == table
    assert table.matches(raw.decode("utf-8", "replace"), ids, "stop")
