# SPDX-License-Identifier: Apache-2.0
"""Foreign bytes: no message from a proxy and no request from a client crashes a worker."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.worker.rig import CHAT, chat, inner, running

from bombyx.errors import BadRequest, MalformedMessage, Overloaded
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal import encode_request
from bombyx.protocol.wire.records import LinkChallenge, LinkType, LinkWelcome, write_link_frame
from bombyx.roles.worker.asked import read_asked
from bombyx.roles.worker.greeting import Greeting
from bombyx.roles.worker.uploads import Uploads

frames = st.builds(
    write_link_frame, st.sampled_from(LinkType), st.integers(0, 2**32 - 1), st.binary(max_size=64)
)  # fmt: skip
messages = st.one_of(st.binary(max_size=200), st.lists(frames, max_size=4).map(b"".join))


def _status(data: bytes) -> int:
    try:
        read_asked(data, "scripted")
    except BadRequest as error:
        return error.status
    return 200


@given(st.binary(max_size=400))
def test_any_sealed_bytes_are_a_request_or_the_applications_fault(data: bytes) -> None:
    """WRK-2: what opens is still foreign."""
    assert _status(data) in {200, 400, 404, 405}


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=3)))
def test_any_json_is_a_request_or_the_applications_fault(value: object) -> None:
    """WRK-2."""
    for body in (value, {"model": "scripted", "stream": value}, {"model": value}):
        assert _status(encode_request(inner(CHAT, body))) in {200, 400}


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_greeting_is_believed_by_accident(challenge: bytes, welcome: bytes) -> None:
    """LINK-2."""
    greeting = Greeting(chain_id=1, expected=None)
    for read, data in ((greeting.on_challenge, challenge), (greeting.on_welcome, welcome)):
        with pytest.raises(MalformedMessage):
            read(data)


@given(st.binary(min_size=65, max_size=65), st.integers(0, 2**20))
def test_no_signature_but_the_proxys_opens_a_link(signature: bytes, window: int) -> None:
    """LINK-2."""
    proxy = Address(bytes(20))
    greeting = Greeting(chain_id=1, expected=proxy)
    greeting.on_challenge(LinkChallenge(v=1, proxy=proxy, chain_id=1, nonce=Digest(bytes(32)), at=0).encode())
    greeting.keys = frozenset({proxy})
    welcome = LinkWelcome(
        v=1, proxy=proxy, commission_bps=0, channel_config=b"", window=window, signature=signature
    )  # fmt: skip
    with pytest.raises(MalformedMessage):
        greeting.on_welcome(welcome.encode())


@given(st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=40), st.booleans()), max_size=30))
def test_uploads_never_hold_more_than_their_bound(steps: list[tuple[int, bytes, bool]]) -> None:
    """LINK-3: whatever the order of parts, ends and cancels."""
    uploads = Uploads(64)
    for stream, part, drop in steps:
        try:
            uploads.add((0, stream), part, 48, 0.0)
        except (BadRequest, Overloaded):
            uploads.drop((0, stream))
        if drop and uploads.holds((0, stream)):
            uploads.take((0, stream))
        assert 0 <= uploads.held <= 64
    for stream in (1, 2, 3):
        uploads.drop((0, stream))
    assert uploads.held == 0 and not uploads.stalled(1.0)


async def _survives(thrown: list[bytes]) -> None:
    async with running() as rig:
        link = rig.proxy.link
        assert link is not None
        for message in thrown:
            link.send(message)
        await asyncio.sleep(0.02)
        link.cut()
        async with asyncio.timeout(5):
            while rig.proxy.link is link or not rig.worker.links:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await rig.proxy.ask(chat()).done()).complete


@settings(max_examples=15)
@given(st.lists(messages, min_size=1, max_size=5))
def test_no_message_kills_a_worker(thrown: list[bytes]) -> None:
    """LINK-6: the worst that a proxy's bytes can do is to end that proxy's link."""
    asyncio.run(_survives(thrown))
