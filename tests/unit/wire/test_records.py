# SPDX-License-Identifier: Apache-2.0
"""Varints, response records and link frames: read whole, read in pieces, and read when they are garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.wire.records import (
    MAX_RECORD,
    LinkType,
    Record,
    RecordReader,
    read_link_frames,
    write_link_frame,
    write_record,
)
from bombyx.protocol.wire.varint import MAX_VARINT, read_varint, write_varint

records = st.lists(st.tuples(st.sampled_from(list(Record)), st.binary(max_size=300)), max_size=6)
frames = st.lists(
    st.tuples(st.sampled_from(list(LinkType)), st.integers(0, 2**32 - 1), st.binary(max_size=100)), max_size=6
)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_the_varints_of_rfc_9000(raw: str, value: int) -> None:
    """LINK-2: RFC 9000 appendix A.1; the long form of 37 is read too."""
    data = bytes.fromhex(raw)
    assert read_varint(data) == (value, len(data))
    assert write_varint(value, len(data)) == data


@given(st.integers(0, MAX_VARINT), st.binary(max_size=3), st.binary(max_size=3))
def test_a_varint_is_read_where_it_stands(value: int, before: bytes, after: bytes) -> None:
    """LINK-2."""
    raw = write_varint(value)
    assert read_varint(before + raw + after, len(before)) == (value, len(before) + len(raw))
    for cut in range(len(raw)):
        assert read_varint(raw[:cut]) is None


@pytest.mark.parametrize(("value", "size"), [(-1, None), (MAX_VARINT + 1, None), (64, 1), (16_384, 2), (2**30, 4)])
def test_a_number_that_does_not_fit_is_our_fault(value: int, size: int | None) -> None:
    """LINK-2."""
    with pytest.raises(ValueError):
        write_varint(value, size)


@given(records, st.data())
def test_records_come_out_as_they_went_in_however_they_are_cut(
    written: list[tuple[Record, bytes]], data: st.DataObject
) -> None:
    """LINK-2: TCP cuts where it likes."""
    raw = b"".join(write_record(kind, payload) for kind, payload in written)
    reader, found, position = RecordReader(), [], 0
    while position < len(raw):
        step = data.draw(st.integers(1, len(raw)))
        found += list(reader.feed(raw[position : position + step]))
        position += step
    assert found == written
    assert reader.pending == 0


def test_a_cut_record_shows() -> None:
    """LINK-2: what is left over at the end is not nothing."""
    reader = RecordReader()
    assert list(reader.feed(write_record(Record.DATA, b"abc")[:-1])) == []
    assert reader.pending == 4


def test_a_record_that_promises_too_much_is_refused_at_once() -> None:
    """LINK-2: before any of it has arrived."""
    reader = RecordReader()
    with pytest.raises(MalformedMessage, match="LINK-2"):
        list(reader.feed(bytes([Record.DATA]) + write_varint(MAX_RECORD + 1)))


def test_an_unknown_record_is_refused_at_once() -> None:
    """LINK-2: not only when its payload is whole: it never might be."""
    with pytest.raises(MalformedMessage, match="LINK-2"):
        list(RecordReader().feed(b"\x63" + write_varint(1_000)))


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_on_the_response_is_malformed_or_waits(pieces: list[bytes]) -> None:
    """LINK-2."""
    reader = RecordReader()
    try:
        for piece in pieces:
            for kind, payload in reader.feed(piece):
                assert kind in Record and len(payload) <= MAX_RECORD
    except MalformedMessage:
        pass


@given(frames)
def test_link_frames_come_out_as_they_went_in(written: list[tuple[LinkType, int, bytes]]) -> None:
    """LINK-1: any number in one message."""
    assert (
        list(read_link_frames(b"".join(write_link_frame(kind, stream, body) for kind, stream, body in written)))
        == written
    )


@given(frames, st.integers(1, 20))
def test_a_link_frame_never_spans_messages(written: list[tuple[LinkType, int, bytes]], cut: int) -> None:
    """LINK-1."""
    raw = b"".join(write_link_frame(kind, stream, body) for kind, stream, body in written)
    if len(raw) >= cut:
        starts, position = {0}, 0
        for kind, stream, payload in written:
            position += len(write_link_frame(kind, stream, payload))
            starts.add(position)
        if len(raw) - cut not in starts:
            with pytest.raises(MalformedMessage, match="LINK-1"):
                list(read_link_frames(raw[:-cut]))


@given(st.binary(max_size=80))
def test_garbage_on_the_link_is_malformed(garbage: bytes) -> None:
    """LINK-1."""
    try:
        list(read_link_frames(garbage))
    except MalformedMessage:
        pass
