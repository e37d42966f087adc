# SPDX-License-Identifier: Apache-2.0
"""Sealed answers: the framing, the chain of hashes, and what somebody between worker and client may try."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage, Peer, SealError, StreamTruncated
from bombyx.protocol.primitives import Digest
from bombyx.protocol.seal import (
    BhttpResponseReader,
    Body,
    ResponseChain,
    ResponseOpener,
    ResponseSealer,
    Shaper,
    Trailers,
    chain_next,
    chain_start,
)
from bombyx.protocol.seal.chunked import ChunkOpener, ChunkReader, ChunkSealer, open_whole, seal_whole
from bombyx.protocol.wire.request import Shape
from bombyx.protocol.wire.varint import write_varint

if TYPE_CHECKING:
    from tests.unit.seal.conftest import Scene

NONCE = bytes(range(16))
CHUNKS = (b"the capital" + bytes(20), b"of France" + bytes(22), b"is Paris." + bytes(22))
KEY, BASE = bytes(range(16)), bytes(range(12))


def answered(scene: Scene, worker: int = 0) -> tuple[ResponseOpener, list[bytes]]:
    """A client that waits, and the DATA payloads of a three-frame answer."""
    sealed = scene.seal()
    sealer = ResponseSealer(scene.open(sealed, worker), NONCE)
    payloads = [sealer.seal(chunk) for chunk in CHUNKS[:-1]] + [sealer.seal_final(CHUNKS[-1])]
    return ResponseOpener(sealed, scene.candidates[worker]), payloads


def _open_all(opener: ResponseOpener, payloads: list[bytes]) -> bytes:
    return b"".join(opener.feed(payload) for payload in payloads)


def _read_all(data: bytes) -> bytes:
    reader = ChunkReader(ChunkOpener(KEY, BASE))
    return b"".join(reader.feed(data)) + reader.finish()


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_an_answer_opens(scene: Scene, worker: int) -> None:
    """SEAL-7: every candidate's answer, hybrid or not."""
    opener, payloads = answered(scene, worker)
    assert tuple(opener.feed(payload) for payload in payloads) == CHUNKS
    assert opener.finished
    opener.finish()


def test_a_final_frame_is_not_told_apart_by_its_size(scene: Scene) -> None:
    """SEAL-8: its zero is written as wide as a length."""
    sealed = scene.seal()
    for size in (40, 200, 1008, 16_384):
        sealer = ResponseSealer(scene.open(sealed), NONCE)
        sealer.seal(b"x")
        assert len(sealer.seal(bytes(size))) == len(sealer.seal_final(bytes(size)))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_truncated_answer_is_an_error(scene: Scene, kept: int) -> None:
    """SEAL-7: cut at a frame boundary, where nothing else shows it."""
    opener, payloads = answered(scene)
    for payload in payloads[:kept]:
        opener.feed(payload)
    with pytest.raises(StreamTruncated, match="SEAL-7"):
        opener.finish()


def test_a_frame_cut_short_is_an_error(scene: Scene) -> None:
    """SEAL-7: cut inside a frame."""
    opener, payloads = answered(scene)
    with pytest.raises(MalformedMessage, match="SEAL-7") as caught:
        opener.feed(payloads[0][:-1])
    assert caught.value.peer is Peer.PROXY


def test_a_final_frame_cut_short_is_an_error(scene: Scene) -> None:
    """SEAL-7: the last frame carries no length; its tag does the work."""
    opener, payloads = answered(scene)
    for payload in payloads[:-1]:
        opener.feed(payload)
    with pytest.raises(SealError, match="SEAL-7"):
        opener.feed(payloads[-1][:-1])
    with pytest.raises(StreamTruncated):
        opener.finish()


def test_reordered_frames_are_an_error(scene: Scene) -> None:
    """SEAL-7: frames of one size, exchanged."""
    opener, payloads = answered(scene)
    opener.feed(payloads[0])
    with pytest.raises(SealError, match="SEAL-7"):
        opener.feed(payloads[2])


def test_a_dropped_frame_is_an_error(scene: Scene) -> None:
    """SEAL-7: the middle one missing."""
    opener, payloads = answered(scene)
    opener.feed(payloads[0])
    with pytest.raises(SealError):
        opener.feed(payloads[2])


def test_a_doubled_frame_is_an_error(scene: Scene) -> None:
    """SEAL-7: no frame opens twice, and none after the final one."""
    opener, payloads = answered(scene)
    opener.feed(payloads[0])
    with pytest.raises(SealError):
        opener.feed(payloads[0][16:])
    opener, payloads = answered(scene)
    for payload in payloads:
        opener.feed(payload)
    with pytest.raises(SealError, match="after the final"):
        opener.feed(payloads[-1])


def test_an_early_end_cannot_be_forged(scene: Scene) -> None:
    """SEAL-7: a middle frame dressed up as the final one."""
    opener, payloads = answered(scene)
    opener.feed(payloads[0])
    with pytest.raises(SealError):
        opener.feed(b"\x00" + payloads[1][1:])


def test_a_final_frame_cannot_pass_for_a_middle_one(scene: Scene) -> None:
    """SEAL-7: the client cannot be kept waiting for more."""
    opener, payloads = answered(scene)
    for payload in payloads[:2]:
        opener.feed(payload)
    with pytest.raises(SealError):
        opener.feed(write_varint(len(payloads[2]) - 1) + payloads[2][1:])


@given(st.data())
def test_any_flipped_bit_is_an_error(scene: Scene, data: st.DataObject) -> None:
    """SEAL-7: in nonce, length or ciphertext."""
    opener, payloads = answered(scene)
    frame = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(payloads[frame]) - 1))
    payloads[frame] = (
        payloads[frame][:place]
        + bytes([payloads[frame][place] ^ 1 << data.draw(st.integers(0, 7))])
        + payloads[frame][place + 1 :]
    )
    with pytest.raises((SealError, MalformedMessage)):
        _open_all(opener, payloads)


def test_an_answer_of_another_candidate_does_not_open(scene: Scene) -> None:
    """SEAL-7: the proxy names worker 1 while worker 0 answers."""
    sealed = scene.seal()
    payload = ResponseSealer(scene.open(sealed, 0), NONCE).seal_final(b"hello")
    with pytest.raises(SealError):
        ResponseOpener(sealed, scene.candidates[1]).feed(payload)


def test_an_answer_to_another_request_does_not_open(scene: Scene) -> None:
    """SEAL-7: two requests to one worker, answers exchanged."""
    one, other = scene.seal(), scene.seal()
    payload = ResponseSealer(scene.open(one), NONCE).seal_final(b"hello")
    with pytest.raises(SealError):
        ResponseOpener(other, scene.candidates[0]).feed(payload)


def test_a_candidate_we_did_not_choose_is_the_proxys_fault(scene: Scene) -> None:
    """SEAL-3: named in the response's head, unknown to the request."""
    with pytest.raises(MalformedMessage, match="SEAL-3") as caught:
        ResponseOpener(scene.seal(), Digest(bytes(32)))
    assert caught.value.peer is Peer.PROXY


def test_the_chain_is_the_same_at_every_hop(scene: Scene) -> None:
    """SEAL-7, RCT-2: worker, proxy and client agree after every frame; the proxy needs no key for it."""
    sealed = scene.seal()
    sealer = ResponseSealer(scene.open(sealed), NONCE)
    opener, proxy = ResponseOpener(sealed, scene.candidates[0]), ResponseChain()
    assert proxy.digest == Digest.zero()
    expected = chain_start(NONCE)
    for place, chunk in enumerate(CHUNKS):
        payload = sealer.seal(chunk) if place < 2 else sealer.seal_final(chunk)
        expected = chain_next(expected, payload if place else payload[16:])
        proxy.update(payload)
        opener.feed(payload)
        assert sealer.chain.digest == proxy.digest == opener.chain.digest == expected
        assert sealer.chain.frames == proxy.frames == opener.chain.frames == place + 1


def test_what_did_not_open_is_not_in_the_chain(scene: Scene) -> None:
    """RCT-2: a client vouches only for frames it has opened."""
    opener, payloads = answered(scene)
    opener.feed(payloads[0])
    before = opener.chain.digest
    with pytest.raises(SealError):
        opener.feed(payloads[2])
    assert (opener.chain.digest, opener.chain.frames) == (before, 1)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_as_data_records(scene: Scene, payloads: list[bytes]) -> None:
    """SEAL-7: a typed error, never a plaintext."""
    opener, chain = ResponseOpener(scene.seal(), scene.candidates[0]), ResponseChain()
    for payload in payloads:
        with pytest.raises((SealError, MalformedMessage)):
            opener.feed(payload)
        try:
            chain.update(payload)
        except MalformedMessage:
            assert chain.frames == 0


def test_a_whole_answer_from_engine_to_application(scene: Scene) -> None:
    """SEAL-7, SEAL-8: shaped, sealed, carried, opened, read; on the wire every record but the first has one size."""
    sealed = scene.seal()
    sealer = ResponseSealer(scene.open(sealed), NONCE)
    opener, reader = ResponseOpener(sealed, scene.candidates[0]), BhttpResponseReader()
    shaper = Shaper(Shape.CONSTANT, 1024)
    shaper.begin(200, ((b"content-type", b"text/event-stream"),), streamed=True)
    wire, events = [], []
    for tick in range(400):
        if tick < 90:
            shaper.put(b'data: {"n":%d}\n\n' % tick)
        elif tick == 90:
            shaper.end(((b"bombyx-usage", b"closing"),))
        for frame in shaper.ready() + shaper.tick():
            wire.append(sealer.seal_final(frame.plaintext) if frame.final else sealer.seal(frame.plaintext))
            events += list(reader.feed(opener.feed(wire[-1])))
    opener.finish()
    reader.finish()
    assert shaper.finished and opener.chain.digest == sealer.chain.digest
    assert {len(payload) for payload in wire[1:]} == {len(wire[0]) - 16} == {1026}
    content = b"".join(item.data for item in events if isinstance(item, Body))
    assert [line for line in content.split(b"\n") if line.startswith(b"data")] == [
        b'data: {"n":%d}' % number for number in range(90)
    ]
    assert events[-1] == Trailers(fields=((b"bombyx-usage", b"closing"),))


# --- the framing by itself -------------------------------------------------------------------------------------------


@given(st.binary(max_size=40_000), st.lists(st.integers(1, 20_000), min_size=1))
def test_a_stream_comes_back_as_it_went(plaintext: bytes, sizes: list[int]) -> None:
    """SEAL-7: whole, and fed in any pieces."""
    sealed = seal_whole(ChunkSealer(KEY, BASE), plaintext)
    assert open_whole(ChunkOpener(KEY, BASE), sealed) == plaintext
    reader, out, at, turn = ChunkReader(ChunkOpener(KEY, BASE)), [], 0, 0
    while at < len(sealed):
        size = sizes[turn % len(sizes)]
        out += list(reader.feed(sealed[at : at + size]))
        at, turn = at + size, turn + 1
    assert b"".join(out) + reader.finish() == plaintext


@given(st.integers(0, 40_000))
def test_a_stream_cut_anywhere_gives_nothing(cut: int) -> None:
    """SEAL-7: `open_whole` never gives a part; the reader's `finish` tells."""
    sealed = seal_whole(ChunkSealer(KEY, BASE), bytes(36_000))
    cut = min(cut, len(sealed) - 1)
    with pytest.raises((StreamTruncated, SealError)):
        open_whole(ChunkOpener(KEY, BASE), sealed[:cut])
    reader = ChunkReader(ChunkOpener(KEY, BASE))
    list(reader.feed(sealed[:cut]))
    with pytest.raises((StreamTruncated, SealError)):
        reader.finish()


@given(st.binary(max_size=300))
def test_any_bytes_as_a_stream(data: bytes) -> None:
    """SEAL-7: typed errors alone, whole and fed."""
    with pytest.raises((StreamTruncated, SealError, MalformedMessage)):
        open_whole(ChunkOpener(KEY, BASE), data)
    with pytest.raises((StreamTruncated, SealError, MalformedMessage)):
        _read_all(data)


def test_a_frame_beyond_the_limit_is_refused_before_it_arrives() -> None:
    """SEAL-7: its length alone is enough."""
    with pytest.raises(MalformedMessage):
        list(ChunkReader(ChunkOpener(KEY, BASE)).feed(write_varint((1 << 20) + 1)))
    with pytest.raises(MalformedMessage):
        list(ChunkReader(ChunkOpener(KEY, BASE)).feed(b"\x00" + bytes((1 << 20) + 1)))


def test_an_empty_frame_that_is_not_final_cannot_be_sealed() -> None:
    """SEAL-7: the draft forbids it on either side."""
    with pytest.raises(ValueError, match="not empty"):
        ChunkSealer(KEY, BASE).seal(b"")
    empty = ChunkSealer(KEY, BASE)._aead.encrypt(BASE, b"", b"")
    with pytest.raises(SealError):
        ChunkOpener(KEY, BASE).open(empty, final=False)
