# SPDX-License-Identifier: Apache-2.0
"""Parts of the paid endpoint by themselves: the last event held back, and the pace of one address."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import Overloaded
from bombyx.roles.client.lastly import Lastly
from bombyx.roles.client.pace import Pace, network_of

STREAM = b'data: {"a": "data: [DONE]"}\n\n: idle\n\ndata: {"b": 1}\n\ndata: [DONE]\n\n: after\n\n'


@given(
    st.lists(st.integers(0, len(STREAM)), max_size=12),
    st.sampled_from([STREAM, STREAM.replace(b": [DONE]\n", b":[DONE]\n")]),
)
def test_done_is_held_back_however_the_stream_is_cut(cuts: list[int], stream: bytes) -> None:
    """X402-7: nothing is lost or moved; what is held back begins with `[DONE]`'s event."""
    lastly, edges = Lastly(), [0, *sorted(cuts), len(stream)]
    given_away = b"".join(lastly.feed(stream[a:b]) for a, b in itertools.pairwise(edges))
    assert given_away + lastly.rest == stream
    assert given_away.endswith(b'{"b": 1}\n\n')


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_stream_passes_whole(pieces: list[bytes]) -> None:
    """X402-7: bytes that are no event stream at all lose nothing either."""
    lastly = Lastly()
    assert b"".join(lastly.feed(piece) for piece in pieces) + lastly.rest == b"".join(pieces)


def test_an_event_without_an_end_is_not_held_for_ever() -> None:
    """X402-7: only what may still become `data: [DONE]` waits."""
    lastly = Lastly()
    assert lastly.feed(b"data: {") == b"data: {"
    assert lastly.feed(b"}\n\ndata: [D") == b"}\n\n"
    assert lastly.feed(b"UST]") == b"data: [DUST]"


def test_one_address_gets_its_share_and_others_theirs() -> None:
    """X402-10: two seconds' worth at once, then the rate."""
    pace = Pace(2.0)
    for _ in range(4):
        pace.ask("192.0.2.1", 0.0)
    with pytest.raises(Overloaded, match="X402-10"):
        pace.ask("192.0.2.1", 0.0)
    pace.ask("192.0.2.2", 0.0)
    pace.ask("192.0.2.1", 0.6)


def test_memory_for_addresses_is_bounded() -> None:
    """X402-10: the address that was quiet longest is forgotten first."""
    pace = Pace(1.0, most=3)
    for n in range(10):
        pace.ask(f"192.0.2.{n}", float(n))
    assert len(pace._left) == 3


def test_an_ipv6_customer_is_his_whole_network() -> None:
    """X402-10: a /64 is one customer's; a mapped IPv4 address is that address."""
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1" and network_of("unix") == "unix"
