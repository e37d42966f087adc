# SPDX-License-Identifier: Apache-2.0
"""Binary HTTP against RFC 9292's examples, whole and as it arrives, and its parsers against anybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage, StreamTruncated
from bombyx.protocol.seal import bhttp
from bombyx.protocol.seal.bhttp import Request, Response
from bombyx.protocol.seal.bhttp_reader import BhttpEvent, BhttpResponseReader, Body, Head, Trailers

Vector = Callable[[str], dict[str, Any]]

names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).map(str.encode)
values = st.binary(max_size=40).filter(lambda value: not set(value) & {0, 10, 13})
field_lists = st.lists(st.tuples(names, values), max_size=5).map(tuple)
requests = st.builds(
    Request,
    method=st.sampled_from([b"GET", b"POST"]),
    path=st.binary(max_size=30),
    scheme=st.just(b"https"),
    authority=st.binary(max_size=20),
    headers=field_lists,
    content=st.binary(max_size=300),
    trailers=field_lists,
)
responses = st.builds(
    Response,
    status=st.integers(200, 599),
    headers=field_lists,
    content=st.binary(max_size=300),
    trailers=field_lists,
    informational=st.lists(st.tuples(st.integers(100, 199), field_lists), max_size=2).map(tuple),
)


def _read(data: bytes, sizes: list[int]) -> tuple[list[BhttpEvent], BhttpResponseReader]:
    """Feed `data` in pieces of the given sizes, over and over."""
    reader, events, at, turn = BhttpResponseReader(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        events += list(reader.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    return events, reader


def test_rfc_9292_requests(vector: Vector) -> None:
    """SEAL-12: the RFC's request in both forms, one of them padded."""
    v = {name: bytes.fromhex(value) for name, value in vector("rfc9292_section_5").items() if name != "source"}
    known, indeterminate = v["known_length_request"], v["indeterminate_length_request"]
    request = bhttp.decode_request(known)
    assert (request.method, request.scheme, request.authority, request.path) == (b"GET", b"https", b"", b"/hello.txt")
    assert bhttp.header(request.headers, b"host") == b"www.example.com"
    assert bhttp.decode_request(indeterminate) == request
    assert bhttp.encode_request(request) == known
    assert bhttp.encode_request(request, indeterminate=True) + bytes(10) == indeterminate


def test_rfc_9292_responses(vector: Vector) -> None:
    """SEAL-12: the RFC's responses, one with two informational ones before it, one with a trailer."""
    v = {name: bytes.fromhex(value) for name, value in vector("rfc9292_section_5").items() if name != "source"}
    long = bhttp.decode_response(v["indeterminate_length_response"])
    assert [status for status, _ in long.informational] == [102, 103]
    assert long.status == 200
    assert long.content == b"Hello World! My content includes a trailing CRLF.\r\n"
    assert bhttp.encode_response(long, indeterminate=True) == v["indeterminate_length_response"]
    short = bhttp.decode_response(v["known_length_response"])
    assert short.trailers == ((b"trailer", b"text"),)
    assert bhttp.encode_response(short) == v["known_length_response"]
    events, reader = _read(v["indeterminate_length_response"], [7])
    assert events[0] == Head(status=200, headers=long.headers)
    assert events[-1] == Trailers(fields=())
    assert reader.finish() == ()


@given(requests, st.booleans(), st.integers(0, 50))
def test_a_request_comes_back_as_it_went(request_: Request, indeterminate: bool, padding: int) -> None:
    """SEAL-12: either form, padded or not."""
    encoded = bhttp.encode_request(request_, indeterminate=indeterminate)
    assert bhttp.decode_request(encoded + bytes(padding)) == request_


@given(responses, st.booleans(), st.integers(0, 50), st.lists(st.integers(1, 40), min_size=1))
def test_a_response_comes_back_as_it_went(
    response: Response, indeterminate: bool, padding: int, sizes: list[int]
) -> None:
    """SEAL-12: whole, and in any pieces."""
    encoded = bhttp.encode_response(response, indeterminate=indeterminate) + bytes(padding)
    assert bhttp.decode_response(encoded) == response
    events, reader = _read(encoded, sizes)
    assert reader.finish() == ()
    assert events[0] == Head(status=response.status, headers=response.headers)
    assert events[-1] == Trailers(fields=response.trailers)
    assert b"".join(event.data for event in events if isinstance(event, Body)) == response.content
    assert all(event.data for event in events if isinstance(event, Body))


@pytest.mark.parametrize(
    ("data", "trailers_follow"), [(b"\x01\x40\xc8", True), (b"\x01\x40\xc8\x00", True), (b"\x03\x40\xc8\x00", True)]
)
def test_empty_ends_may_be_left_out(data: bytes, trailers_follow: bool) -> None:
    """SEAL-12: RFC 9292 section 3.8: missing last sections count as empty."""
    assert bhttp.decode_response(data) == Response(status=200)
    events, reader = _read(data, [1])
    assert [*events, *reader.finish()] == [Head(status=200, headers=()), Trailers(fields=())]


def test_a_cut_response_is_truncated() -> None:
    """SEAL-12: cut anywhere but right before a section that may be absent, a response is an error, in whole and in
    pieces.
    """
    response = Response(status=200, headers=((b"a", b"b"),), content=b"c" * 40, trailers=((b"d", b"e"),))
    encoded = bhttp.encode_response(response, indeterminate=True)
    before_headers, before_content, before_trailers = 3, 8, len(encoded) - 5
    for cut in set(range(len(encoded))) - {before_headers, before_content, before_trailers}:
        with pytest.raises(MalformedMessage):
            bhttp.decode_response(encoded[:cut])
        _, reader = _read(encoded[:cut], [5])
        with pytest.raises(StreamTruncated):
            reader.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x04\x00\x00\x00\x00",
        b"\x01\x40\xc8",  # a response
        b"\x00\x03GET\x05https\x00\x01",
        b"\x00\x03GET\x05https\x00\x01/\x00\x00\x00\x01",  # padding that is not zero
        b"\x00\x03GET\x05https\x00\x01/\x04\x01A\x01b",  # upper case name
        b"\x00\x03GET\x05https\x00\x01/\x04\x01a\x01\n",  # line break in a value: header injection
        b"\x00\x03GET\x05https\x00\x01/\x00\xc0\xff\xff\xff\xff\xff\xff\xff",  # 2^62 bytes of content
    ],
)
def test_malformed_requests(data: bytes) -> None:
    """SEAL-12: each is MalformedMessage, and says so."""
    with pytest.raises(MalformedMessage, match="SEAL-12"):
        bhttp.decode_request(data)


def test_field_sections_are_bounded() -> None:
    """SEAL-12: 257 fields are refused, whole and streamed, also when they never end."""
    head = b"\x03\x40\xc8"
    with pytest.raises(MalformedMessage):
        bhttp.decode_response(head + b"\x01a\x01b" * 257 + b"\x00")
    with pytest.raises(MalformedMessage):
        list(BhttpResponseReader().feed(head + b"\x01a\x01b" * 257))
    endless = head + b"\x01a\x80\x0f\xff\xff" + bytes(3_000_000)
    with pytest.raises(MalformedMessage):
        _read(endless, [16_000])


def test_endless_informational_responses_are_refused() -> None:
    """SEAL-12: a worker cannot keep a client reading heads for ever."""
    data = b"\x03" + b"\x40\x66\x00" * 17
    with pytest.raises(MalformedMessage):
        bhttp.decode_response(data)
    with pytest.raises(MalformedMessage):
        list(BhttpResponseReader().feed(data))


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1))
def test_any_bytes_as_a_message(data: bytes, sizes: list[int]) -> None:
    """SEAL-12: no input does worse than MalformedMessage or StreamTruncated; both readers agree on what is legal."""
    try:
        bhttp.decode_request(data)
    except MalformedMessage:
        pass
    whole: Response | None = None
    try:
        whole = bhttp.decode_response(data)
    except MalformedMessage:
        pass
    try:
        events, reader = _read(data, sizes)
        events += reader.finish()
    except (MalformedMessage, StreamTruncated):
        assert whole is None
        return
    assert whole is not None
    assert events[0] == Head(status=whole.status, headers=whole.headers)


@given(responses, st.booleans(), st.data())
def test_a_changed_byte_in_a_message(response: Response, indeterminate: bool, data: st.DataObject) -> None:
    """SEAL-12: near misses of real messages are read or refused, never a crash, and the readers agree."""
    encoded = bytearray(bhttp.encode_response(response, indeterminate=indeterminate))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        whole = bhttp.decode_response(bytes(encoded))
    except MalformedMessage:
        whole = None
    try:
        events, reader = _read(bytes(encoded), [11])
        events += reader.finish()
    except (MalformedMessage, StreamTruncated):
        assert whole is None
    else:
        assert whole is not None
        assert events[-1] == Trailers(fields=whole.trailers)
