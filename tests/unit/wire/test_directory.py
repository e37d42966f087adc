# SPDX-License-Identifier: Apache-2.0
"""Directories in parts: joined by proxies, read piece by piece by clients, never another message than the whole."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.market import Directory, DirectoryReader, Offer, write_directory

NOW = Instant.from_seconds(1_790_000_000)


def digest(name: str) -> Digest:
    return Digest(hashlib.sha256(name.encode()).digest())


def offer(number: int, hardware: str = "cpu") -> Offer:
    return Offer(
        v=1,
        operator=Address(digest(f"operator {number}")[:20]),
        bundle=digest(f"bundle {number}"),
        candidates=(digest(f"key {number}"),),
        models=(digest("model"),),
        price_sheet=digest("prices"),
        hardware=hardware,
        not_after=NOW,
    )


def directory(*offers: Offer, at: Instant = NOW, bps: int = 500) -> Directory:
    return Directory(v=1, proxy=Address(b"P" * 20), commission_bps=bps, at=at, offers=offers)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 300])
def test_offers_encoded_once_make_the_same_directory(count: int) -> None:
    """WIRE-1: joined from encoded offers, a directory is the canonical encoding of the whole."""
    offers = tuple(offer(n) for n in range(count))
    assert write_directory(directory(), [one.encode() for one in offers]) == directory(*offers).encode()


def test_a_directory_that_grows_shrinks_and_changes_is_read_as_it_is() -> None:
    """WIRE-1: what the reader kept of the last directory never stands in for what this one says."""
    reader, a, b, c = DirectoryReader(), offer(1), offer(2), offer(3)
    told = (directory(a, b), directory(a, b, c), directory(c), directory(), directory(offer(1, "h100"), b))
    for said in (*told, directory(a, bps=501), directory(a, at=NOW.plus(seconds=1))):
        assert reader.read(said.encode()) == said


def test_an_offer_that_contains_another_offers_beginning_is_read_whole() -> None:
    """WIRE-1: bytes that look like a beginning, inside a digest or a text, do not split an offer."""
    front = offer(1).encode()[:6]
    inside = Digest(front + bytes(26))
    said = directory(Offer(
        v=1, operator=Address(front + bytes(14)), bundle=inside, candidates=(inside,), models=(inside,),
        price_sheet=inside, hardware="commission_bps", not_after=NOW,
    ), offer(2))  # fmt: skip
    assert DirectoryReader().read(said.encode()) == said


@given(st.data())
def test_a_spoilt_directory_is_refused_as_the_whole_would_be(data: st.DataObject) -> None:
    """WIRE-1: one byte changed, dropped or added: the reader takes exactly what `Directory.decode` takes."""
    reader = DirectoryReader()
    sound = directory(offer(1), offer(2)).encode()
    reader.read(sound)
    at = data.draw(st.integers(0, len(sound)))
    spoilt = sound[:at] + data.draw(st.binary(max_size=2)) + sound[at + data.draw(st.integers(0, 2)) :]
    try:
        expected = Directory.decode(spoilt)
    except MalformedMessage:
        with pytest.raises(MalformedMessage):
            reader.read(spoilt)
    else:
        assert reader.read(spoilt) == expected
