# SPDX-License-Identifier: Apache-2.0
"""Ids a stream withholds are found from counts and text, or admitted to be lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.token_gaps import GapFiller, TokenIndex
from bombyx.protocol.wire.tokens import TokenTable

PIECES = [b"<end>", *(bytes((byte,)) for byte in range(256)), b"\xf0\x9f", b"ab", b"abc", b"bc"]
INDEX = TokenIndex(TokenTable.build(PIECES, special=[0]), end_of_text=0)
FIRST_HALF = 257


def byte(value: int) -> int:
    return value + 1


def test_the_ids_of_half_a_character_are_found() -> None:
    filler = GapFiller(INDEX)
    assert filler.take("\U0001f41b".encode(), (byte(0x9B),), 3) == (FIRST_HALF, byte(0x90), byte(0x9B))
    assert not filler.ambiguous
    assert filler.lost == 0


def test_ids_are_found_where_no_id_was_given_at_all() -> None:
    """llama.cpp gives none in a stream with tools."""
    assert GapFiller(INDEX).take(b"ab", (), 1) == (258,)


def test_two_readings_are_called_ambiguous() -> None:
    filler = GapFiller(INDEX)
    assert len(filler.take(b"abc", (), 2)) == 2
    assert filler.ambiguous


def test_ids_given_before_their_text_are_not_counted_twice() -> None:
    """A piece that may begin a stop string is told with its id, and shown with the next."""
    filler = GapFiller(INDEX)
    assert filler.take(b"", (258,), 1) == (258,)
    assert filler.take(b"ab\xf0\x9f\x90\x9b", (byte(0x9B),), 4) == (FIRST_HALF, byte(0x90), byte(0x9B))


def test_what_cannot_be_found_is_lost_and_said_so() -> None:
    filler = GapFiller(INDEX)
    assert filler.take(b"", (), 5) == ()
    assert filler.lost == 5


def test_the_models_own_end_is_its_end_token() -> None:
    filler = GapFiller(INDEX)
    filler.take(b"a", (byte(97),), 1)
    assert filler.end(2, by_model=True) == (0,)


def test_the_tokens_of_a_stop_string_are_lost() -> None:
    filler = GapFiller(INDEX)
    filler.take(b"a", (byte(97),), 1)
    assert filler.end(2, by_model=False) == ()
    assert filler.lost == 1


@given(st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=30), st.data())
def test_ids_found_always_spell_the_text(ids: list[int], data: st.DataObject) -> None:
    """Whatever is withheld: nothing is invented that the text does not show, and every token is found or lost."""
    told: list[int] = []
    filler, shown, start = GapFiller(INDEX), b"", 0
    while start < len(ids):
        end = data.draw(st.integers(start + 1, len(ids)))
        text = INDEX.table.detokenise(ids[start:end])
        told += filler.take(text, (ids[end - 1],), end)
        shown += text
        start = end
    assert len(told) + filler.lost == len(ids)
    if not filler.lost:
        assert INDEX.table.detokenise(told) == shown
