# SPDX-License-Identifier: Apache-2.0
"""What somebody on the way, or another candidate, may try with a sealed request. Each attack raises its own error."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import KeyConfigError, MalformedMessage, Overloaded, Peer, ReplayError, SealError, StreamTruncated
from bombyx.protocol.primitives import Address, RequestId, sha256
from bombyx.protocol.seal import (
    ReplayGuard,
    Request,
    check_layout,
    decode_request,
    encode_request,
    parse_envelope,
    request_hash,
    seal_request,
)
from bombyx.protocol.seal.chunked import REQUEST_LABEL, ChunkSealer, seal_whole
from bombyx.protocol.seal.envelope import WRAP_LABEL, SealedRequest
from bombyx.protocol.seal.hpke import setup_sender
from bombyx.protocol.seal.ohttp import decapsulate_request, encapsulate_request

if TYPE_CHECKING:
    from tests.unit.seal.conftest import Scene

PAYMENT = b"a payment, not looked at here"


def flipped(data: bytes, place: int) -> bytes:
    """One bit of `data` changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# --- the honest path -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_every_candidate_can_open_it(scene: Scene, worker: int) -> None:
    """SEAL-1: through the envelope's bytes, each of k opens the same request and names the same request hash."""
    sealed = scene.seal()
    envelope = parse_envelope(sealed.envelope(PAYMENT))
    assert envelope.payment_bytes == PAYMENT
    assert envelope.payload_hash == sealed.payload_hash
    candidate = scene.candidates[worker]
    opened = scene.open(
        sealed,
        worker,
        meta_bytes=envelope.meta_bytes,
        wrap=envelope.wrap_of(sealed.meta, candidate),
        body=envelope.body,
    )
    assert decode_request(opened.bhttp) == scene.request
    assert (opened.meta, opened.candidate, opened.not_after) == (sealed.meta, candidate, scene.not_after)
    assert opened.request_hash == sealed.request_hash(candidate)
    assert opened.salt == sealed.keys_of(candidate).salt


def test_a_large_prompt_goes_through(scene: Scene) -> None:
    """SEAL-4: images make bodies of many chunks."""
    content = bytes(range(256)) * 2000
    assert decode_request(scene.open(scene.seal(content=content)).bhttp).content == content


def test_no_two_envelopes_share_a_key(scene: Scene) -> None:
    """SEAL-4: the same request sealed twice has nothing in common but its Meta."""
    meta = scene.meta()
    one, other = scene.seal(meta), scene.seal(meta)
    assert one.body != other.body
    assert not set(one.wraps) & set(other.wraps)
    assert {keys.secret for keys in one.keys}.isdisjoint(keys.secret for keys in other.keys)
    assert len({keys.salt for keys in one.keys}) == 3


def test_what_is_sealed_does_not_print(scene: Scene) -> None:
    """SEAL-1: no repr holds content or keys."""
    sealed = scene.seal()
    opened = scene.open(sealed)
    for shown in (repr(sealed), repr(opened), repr(opened.keys), repr(decode_request(opened.bhttp))):
        assert "France" not in shown
        assert opened.keys.secret.hex() not in shown and repr(opened.keys.secret) not in shown


# --- the proxy changes something -------------------------------------------------------------------------------------


def test_a_changed_model_cap_or_price_is_seen(scene: Scene) -> None:
    """SEAL-2: whatever the proxy changes in Meta, its hash is inside the wrap."""
    sealed = scene.seal()
    for changes in (
        {"model": sha256(b"cheaper model")},
        {"max_output": 16},
        {"commission_bps": 9000},
        {"request_id": RequestId(bytes(16))},
        {"frame_size": 4096},
    ):
        forged = dataclasses.replace(sealed.meta, **changes)
        with pytest.raises(SealError, match="SEAL-2") as caught:
            scene.open(sealed, meta_bytes=forged.encode())
        assert caught.value.peer is Peer.PROXY


def test_meta_of_another_request_is_seen(scene: Scene) -> None:
    """SEAL-2: Meta swapped between two honest requests."""
    with pytest.raises(SealError, match="SEAL-2"):
        scene.open(scene.seal(), meta_bytes=scene.seal().meta_bytes)


def test_a_swapped_path_is_seen(scene: Scene) -> None:
    """SEAL-4: the path is inside the body; a body with another path, even of the same client, does not fit the wrap."""
    sealed = scene.seal()
    elsewhere = dataclasses.replace(scene.request, path=b"/v1/embeddings")
    other = dataclasses.replace(scene, request=elsewhere).seal(sealed.meta)
    with pytest.raises(SealError, match="SEAL-4"):
        scene.open(sealed, body=other.body)


def test_a_swapped_candidate_is_seen(scene: Scene) -> None:
    """SEAL-3: the wrap of one worker handed to another opens nothing there."""
    sealed = scene.seal()
    with pytest.raises(KeyConfigError, match="SEAL-10"):
        scene.open(sealed, 0, wrap=sealed.wraps[1])
    with pytest.raises(KeyConfigError, match="SEAL-10"):
        scene.open(sealed, 0, wrap=sealed.wraps[2])


def test_a_key_that_meta_does_not_name_is_refused(scene: Scene) -> None:
    """SEAL-3: sealed to worker 0 while Meta speaks of workers 1 and 2."""
    meta = scene.meta(scene.candidates[1:])
    sealed = seal_request(
        meta=meta,
        bhttp=b"x",
        recipients=[key.config for key in scene.keys[1:]],
        randomness=scene.randomness,
        not_after=scene.not_after,
    )
    wrapped, _, _ = decapsulate_request(scene.keys, sealed.wraps[0], label=WRAP_LABEL)
    stray, _ = encapsulate_request(scene.keys[0].config, wrapped, scene.randomness, label=WRAP_LABEL)
    with pytest.raises(SealError, match="SEAL-3"):
        scene.open(sealed, 0, wrap=stray)


@given(st.data())
def test_any_flipped_bit_is_seen(scene: Scene, data: st.DataObject) -> None:
    """SEAL-2 .. SEAL-4: one bit anywhere in wrap, Meta or body, and nothing opens."""
    sealed = scene.seal()
    part = data.draw(st.sampled_from(["wrap", "meta_bytes", "body"]))
    original = {"wrap": sealed.wraps[0], "meta_bytes": sealed.meta_bytes, "body": sealed.body}[part]
    place = data.draw(st.integers(0, len(original) - 1))
    with pytest.raises((SealError, MalformedMessage)):
        scene.open(sealed, 0, **{part: flipped(original, place)})


def test_a_truncated_body_is_seen(scene: Scene) -> None:
    """SEAL-4: the body's hash comes before its frames."""
    sealed = scene.seal()
    for cut in (1, 16, len(sealed.body) - 12):
        with pytest.raises(SealError, match="SEAL-4"):
            scene.open(sealed, body=sealed.body[:-cut])


def test_another_proxy_cannot_use_it(scene: Scene) -> None:
    """SEAL-5: an envelope stolen from one proxy is worth nothing to another."""
    with pytest.raises(SealError, match="SEAL-5"):
        scene.open(scene.seal(), proxy=Address(b"Q" * 20))


def test_an_expired_envelope_is_refused(scene: Scene) -> None:
    """SEAL-5: not_after is inclusive, and inside the wrap."""
    sealed = scene.seal()
    scene.open(sealed, now=scene.not_after)
    with pytest.raises(SealError, match="SEAL-5"):
        scene.open(sealed, now=scene.not_after.plus(seconds=0.001))


# --- played again ----------------------------------------------------------------------------------------------------


def test_a_replayed_envelope_is_refused(scene: Scene) -> None:
    """SEAL-6: the same wrap opens once, whatever the proxy puts around it."""
    sealed, replays = scene.seal(), ReplayGuard()
    scene.open(sealed, replays=replays)
    with pytest.raises(ReplayError, match="SEAL-6"):
        scene.open(sealed, replays=replays)


def test_a_failed_try_uses_the_wrap_up(scene: Scene) -> None:
    """SEAL-6: a proxy cannot probe one wrap with several Metas and bodies."""
    sealed, replays = scene.seal(), ReplayGuard()
    with pytest.raises(SealError, match="SEAL-4"):
        scene.open(sealed, replays=replays, body=flipped(sealed.body, 40))
    with pytest.raises(ReplayError):
        scene.open(sealed, replays=replays)


def test_bytes_that_open_nothing_leave_no_trace(scene: Scene) -> None:
    """SEAL-6: garbage cannot fill the replay memory."""
    sealed, replays = scene.seal(), ReplayGuard()
    with pytest.raises(KeyConfigError):
        scene.open(sealed, replays=replays, wrap=flipped(sealed.wraps[0], 100))
    assert len(replays) == 0


def test_a_finished_request_is_not_answered_again(scene: Scene) -> None:
    """SEAL-6: a retry sealed afresh keeps its request_id, and a worker that has finished it says no."""
    meta = scene.meta()
    with pytest.raises(ReplayError, match="SEAL-6"):
        scene.open(scene.seal(meta), finished={meta.request_id}.__contains__)


def test_a_full_replay_memory_refuses_and_forgets_with_the_key(scene: Scene) -> None:
    """SEAL-6: full means refuse, never forget; erasing the key frees it."""
    replays = ReplayGuard(limit=1)
    scene.open(scene.seal(), replays=replays)
    with pytest.raises(Overloaded):
        scene.open(scene.seal(), replays=replays)
    scene.open(scene.seal(), 1, replays=replays)  # each key has its own memory
    replays.forget(scene.candidates[0])
    scene.open(scene.seal(), replays=replays)


# --- another candidate is the enemy ----------------------------------------------------------------------------------


def test_a_body_re_authored_by_another_candidate_is_seen(scene: Scene) -> None:
    """SEAL-4: worker 1 knows the body's key; what it writes under that key does not fit worker 0's wrap."""
    sealed = scene.seal()
    wrapped, _, _ = decapsulate_request(scene.keys, sealed.wraps[1], label=WRAP_LABEL)
    nonce = sealed.body[:12]
    forged = nonce + seal_whole(ChunkSealer(wrapped[:16], nonce), b"a request the client never made")
    with pytest.raises(SealError, match="SEAL-4"):
        scene.open(sealed, 0, body=forged)


def test_a_candidate_cannot_read_what_another_answers(scene: Scene) -> None:
    """SEAL-7: response keys come from each one's own wrap."""
    sealed = scene.seal()
    assert len({keys.secret for keys in sealed.keys}) == len(scene.keys)


# --- the client is the enemy -----------------------------------------------------------------------------------------


def test_a_body_that_stops_before_its_final_frame(scene: Scene) -> None:
    """SEAL-7: the client itself sealed half a request, hash and all."""
    sealed = _sealed_body(scene, seal_whole(ChunkSealer(bytes(16), bytes(12)), bytes(40_000))[:20_000])
    with pytest.raises(StreamTruncated, match="SEAL-7"):
        scene.open(sealed)


def test_a_body_with_an_empty_frame(scene: Scene) -> None:
    """SEAL-7: an empty frame that is not final is an error (draft section 6)."""
    empty = b"\x10" + ChunkSealer(bytes(16), bytes(12))._aead.encrypt(bytes(12), b"", b"")
    with pytest.raises(SealError, match="SEAL-7"):
        scene.open(_sealed_body(scene, empty + b"\x00" + bytes(16)))


def _sealed_body(scene: Scene, frames: bytes) -> SealedRequest:
    """A request whose wrap fits a body that no honest client makes: key and nonce are zero."""
    meta = scene.meta()
    body = bytes(12) + frames
    wrapped = bytes(16) + sha256(meta.encode()) + sha256(body) + int(scene.not_after).to_bytes(8)
    wraps = [encapsulate_request(key.config, wrapped, scene.randomness, label=WRAP_LABEL)[0] for key in scene.keys]
    return dataclasses.replace(scene.seal(meta), wraps=tuple(wraps), body=body)


def test_a_wrap_of_another_size_is_malformed(scene: Scene) -> None:
    """SEAL-3: exactly key, two hashes and an instant."""
    sealed = scene.seal()
    short, _ = encapsulate_request(scene.keys[0].config, bytes(87), scene.randomness, label=WRAP_LABEL)
    with pytest.raises(MalformedMessage, match="SEAL-3"):
        scene.open(sealed, wrap=short)


def test_meta_and_wraps_must_agree(scene: Scene) -> None:
    """SEAL-1: as many wraps as candidates, no candidate twice, a price sheet each."""
    sealed = scene.seal()
    check_layout(sealed.meta, sealed.wraps)
    twice = scene.candidates[:1] * 2
    for meta, wraps in (
        (sealed.meta, sealed.wraps[:2]),
        (sealed.meta, ()),
        (scene.meta(()), ()),
        (scene.meta(twice), sealed.wraps[:2]),
        (scene.meta(price_sheets=()), sealed.wraps),
    ):
        with pytest.raises(MalformedMessage, match="SEAL-1"):
            check_layout(meta, wraps)


def test_sealing_to_others_than_meta_names_is_our_own_mistake(scene: Scene) -> None:
    """SEAL-3: a programming error, not a peer's."""
    with pytest.raises(ValueError, match="candidates"):
        scene.seal(scene.meta(scene.candidates[:2]))


# --- parsers ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_any_bytes_as_an_envelope(data: bytes) -> None:
    """SEAL-1: an Envelope or MalformedMessage."""
    try:
        envelope = parse_envelope(data)
    except MalformedMessage:
        return
    assert len(envelope.wraps) <= 8


@given(st.data())
def test_a_cut_or_changed_envelope(scene: Scene, data: st.DataObject) -> None:
    """SEAL-1: near misses of a real one parse or are refused; and never open."""
    good = scene.seal().envelope(PAYMENT)
    place = data.draw(st.integers(0, 200))
    broken = good[:place] if data.draw(st.booleans()) else flipped(good, place)
    try:
        parse_envelope(broken)
    except MalformedMessage:
        pass


def test_nine_candidates_are_too_many(scene: Scene) -> None:
    """SEAL-1: k is at most 8."""
    with pytest.raises(MalformedMessage, match="SEAL-1"):
        parse_envelope(b"\x01p\x01m\x09" + b"\x01w" * 9 + bytes(40))


@given(wrap=st.binary(max_size=300), body=st.binary(max_size=300), meta=st.binary(max_size=300))
def test_any_bytes_at_the_enclaves_door(scene: Scene, wrap: bytes, body: bytes, meta: bytes) -> None:
    """SEAL-3, SEAL-9: no input does worse than a typed error."""
    for front in (b"", scene.keys[0].config.header()):
        with pytest.raises((SealError, MalformedMessage, StreamTruncated)):
            scene.open(scene.seal_plain(), wrap=wrap and front + wrap, body=front + body, meta_bytes=meta)


# --- k = 1, plain ----------------------------------------------------------------------------------------------------


def test_a_plain_request_opens(scene: Scene) -> None:
    """SEAL-9: byte for byte a chunked OHTTP request; Meta bound by an inner field; salts and hashes as ever."""
    sealed = scene.seal_plain()
    envelope = parse_envelope(sealed.envelope(PAYMENT))
    assert envelope.wraps == ()
    check_layout(sealed.meta, envelope.wraps)
    opened = scene.open(sealed, body=envelope.body)
    request = decode_request(opened.bhttp)
    assert request.content == scene.request.content
    assert opened.request_hash == sealed.request_hash(scene.candidates[0])
    assert opened.request_hash == request_hash(sealed.meta_bytes, b"", sealed.body)
    assert opened.salt == sealed.keys[0].salt


def test_a_plain_request_is_bound_like_any_other(scene: Scene) -> None:
    """SEAL-9: Meta, time, proxy, replay, finished ids, every bit."""
    sealed, replays = scene.seal_plain(), ReplayGuard()
    with pytest.raises(SealError, match="SEAL-2"):
        scene.open(sealed, meta_bytes=scene.seal_plain().meta_bytes)
    with pytest.raises(SealError, match="SEAL-5"):
        scene.open(sealed, now=scene.not_after.plus(seconds=1))
    with pytest.raises(SealError, match="SEAL-5"):
        scene.open(sealed, proxy=Address(b"Q" * 20))
    with pytest.raises(StreamTruncated):
        scene.open(sealed, body=sealed.body[:1127])  # header and key alone
    with pytest.raises(KeyConfigError):
        scene.open(sealed, body=sealed.body[:-1])  # no frame opened: the key may be the wrong one
    with pytest.raises(KeyConfigError):
        scene.open(sealed, body=flipped(sealed.body, len(sealed.body) - 1))
    scene.open(sealed, replays=replays)
    with pytest.raises(ReplayError):
        scene.open(sealed, replays=replays)
    with pytest.raises(ReplayError):
        scene.open(sealed, finished=lambda _: True)


def _plain_body(scene: Scene, request: Request) -> bytes:
    """A draft-conforming chunked request to the first worker, with the fields its author chose."""
    key = scene.keys[0].config
    info = REQUEST_LABEL + b"\x00" + key.header()
    enc, context = setup_sender(key.kem, key.public_key, info, scene.randomness)
    return key.header() + enc + seal_whole(ChunkSealer.under(context), encode_request(request))


def test_an_unbound_plain_request_is_never_served(scene: Scene) -> None:
    """SEAL-9: a chunked OHTTP request without bombyx-meta opens, and is refused."""
    with pytest.raises(SealError, match="SEAL-9"):
        scene.open(scene.seal_plain(), body=_plain_body(scene, scene.request))


@pytest.mark.parametrize("instant", [None, b"soon", b"-1", b"9" * 19, b""])
def test_a_plain_request_without_an_instant_is_malformed(scene: Scene, instant: bytes | None) -> None:
    """SEAL-9: bombyx-not-after is decimal milliseconds."""
    sealed = scene.seal_plain()
    fields: tuple[tuple[bytes, bytes], ...] = ((b"bombyx-meta", sealed.meta_hash.hex().encode()),)
    if instant is not None:
        fields += ((b"bombyx-not-after", instant),)
    with pytest.raises(MalformedMessage, match="SEAL-9"):
        scene.open(sealed, body=_plain_body(scene, scene.request.with_headers(fields)))


def test_a_plain_request_has_one_candidate(scene: Scene) -> None:
    """SEAL-9: a Meta of three candidates needs three wraps."""
    sealed, meta = scene.seal_plain(), scene.meta()
    bound = ((b"bombyx-meta", sha256(meta.encode()).hex().encode()), (b"bombyx-not-after", b"1700000060000"))
    body = _plain_body(scene, scene.request.with_headers(bound))
    with pytest.raises(MalformedMessage, match="SEAL-1"):
        scene.open(sealed, meta_bytes=meta.encode(), body=body)


def test_garbage_inside_a_plain_request_is_malformed(scene: Scene) -> None:
    """SEAL-12: what opens need not be HTTP."""
    key = scene.keys[0].config
    info = REQUEST_LABEL + b"\x00" + key.header()
    enc, context = setup_sender(key.kem, key.public_key, info, scene.randomness)
    body = key.header() + enc + seal_whole(ChunkSealer.under(context), b"no binary HTTP")
    with pytest.raises(MalformedMessage, match="SEAL-12"):
        scene.open(scene.seal_plain(), body=body)
