# SPDX-License-Identifier: Apache-2.0
"""Signed answers and reports in other providers' form, with the holes found there closed (ENC-7)."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.worker.rig import CHAT, Rig, chat, inner, running

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.simulator import development_policy
from bombyx.protocol.attest import AtHand, Verdict, examine, recognise
from bombyx.protocol.attest.report import Report
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.answer_hash import EventHash, answer_hash
from bombyx.protocol.wire.receipt import Outcome
from bombyx.protocol.wire.signing import recover
from bombyx.roles.worker.signed import MAX_HEAD, SIGNATURE_PATH, answer_id, personal_digest

NONCE = bytes(range(32))


async def signature_of(rig: Rig, name: str) -> dict[str, str]:
    reply = await rig.proxy.ask(inner(SIGNATURE_PATH + name, b"", method="GET")).done()
    assert (reply.status, reply.complete, reply.final.charge) == (200, True, 0)
    return dict(reply.json)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_signature_covers_the_bytes_on_the_wire(stream: bool) -> None:
    """ENC-7: both hashes are of what was sent and got, to the byte; model, evidence and time stand beside them."""
    async with running() as rig:
        request = chat(stream=stream)
        before = SystemClock().now()
        reply = await rig.proxy.ask(request).done()
        signed = await signature_of(rig, answer_id(reply.body[:MAX_HEAD]))
        tag, model, asked, answered, bundle, at = signed["text"].split(":")
        assert tag == "bombyx signed answer v1"
        assert model == rig.proxy.keyset.models[0].hex()
        assert asked == sha256(request.content).hex()
        assert answered == answer_hash(reply.body, "text/event-stream" if stream else "application/json").hex()
        assert bundle == sha256(rig.proxy.hellos[-1].bundle).hex()
        assert int(at) >= before - 60_000
        signer = recover(personal_digest(signed["text"]), bytes.fromhex(signed["signature"][2:]))
        assert signer == rig.proxy.keyset.receipt_address
        assert signed["signing_address"] == str(signer)


async def test_no_header_replaces_the_hash_of_the_request() -> None:
    """ENC-7: elsewhere X-Request-Hash made the enclave sign arbitrary text."""
    async with running() as rig:
        plain = chat(stream=False)
        headers = (*plain.headers, (b"x-request-hash", b"I owe you 1 ETH"))
        reply = await rig.proxy.ask(
            plain.__class__(method=b"POST", path=CHAT.encode(), headers=headers, content=plain.content)
        ).done()
        signed = await signature_of(rig, reply.json["id"])
        assert "owe" not in signed["text"]
        assert signed["text"].split(":")[2] == sha256(plain.content).hex()


async def test_a_fresh_report_answers_our_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENC-7: in Phala's form, and it verifies as Phala's does; for another nonce it does not."""
    async with running() as rig:
        path = f"/v1/attestation/report?nonce={NONCE.hex()}&signing_algo=ecdsa"
        reply = await rig.proxy.ask(inner(path, b"", method="GET")).done()
        assert reply.status == 200 and reply.final.charge == 0 and reply.final.outcome is Outcome.COMPLETE
        assert reply.json["signing_address"] == str(rig.proxy.keyset.receipt_address)
        report = recognise(reply.body)
        assert isinstance(report, Report)
        now = SystemClock().now()
        endorsements = (rig.platform.endorsements(now),)
        policy = development_policy(rig.platform)
        for nonce, verdict in ((NONCE, Verdict.VERIFIED), (bytes(32), Verdict.REFUSED)):
            at_hand = AtHand(endorsements=endorsements, nonce=nonce)
            assert examine(report, policy, now=now, at_hand=at_hand).verdict is verdict


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1/attestation/report?nonce=00", "GET", 400),
        ("/v1/attestation/report?nonce=zz", "GET", 400),
        ("/v1/attestation/report?signing_algo=ed25519", "GET", 400),
        ("/v1/attestation/report", "POST", 405),
        ("/v1/signature/chatcmpl-nobody-ever-got-this", "GET", 404),
        ("/v1/signature/", "GET", 404),
        ("/v1/signature/x?signing_algo=ed25519", "GET", 400),
    ],
)
async def test_what_is_not_signed_is_refused(path: str, method: str, status: int) -> None:
    """ENC-7: sealed, and for nothing."""
    async with running() as rig:
        reply = await rig.proxy.ask(inner(path, b"", method=method)).done()
        assert (reply.status, reply.complete, reply.final.charge) == (status, True, 0)


async def test_a_report_without_a_nonce_brings_one() -> None:
    """ENC-7."""
    async with running() as rig:
        told = [
            (await rig.proxy.ask(inner("/v1/attestation/report", b"", method="GET")).done()).json["request_nonce"]
            for _ in range(2)
        ]
        assert told[0] != told[1] and all(len(bytes.fromhex(nonce)) == Digest.SIZE for nonce in told)


def test_ids_are_found_where_answers_hold_them() -> None:
    """ENC-7: whole bodies, streams with filler before the first event, long bodies, and nothing."""
    assert answer_id(b'{"id":"chatcmpl-1","choices":[]}') == "chatcmpl-1"
    assert answer_id(b': \n\ndata: {"id":"chatcmpl-2"}\n\n') == "chatcmpl-2"
    long = orjson.dumps({"id": "chatcmpl-3", "text": "x" * MAX_HEAD})
    assert answer_id(long[:MAX_HEAD]) == "chatcmpl-3"
    assert answer_id(b"") == answer_id(b"[]") == answer_id(b'{"id":7}') == ""


@given(st.binary(max_size=300))
def test_any_head_has_an_id_or_none(head: bytes) -> None:
    """ENC-7."""
    assert isinstance(answer_id(head), str)


EVENTS = b'data: {"a":1}\n\ndata: {"b":2}\ndata: c\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("filler", [b"\n", b":   \n", b": \n\n", b"\n\n:\n"])
def test_filler_between_events_is_nothing(filler: bytes) -> None:
    """ENC-7: what the shape adds, before, between and after, changes no hash."""
    plain = answer_hash(EVENTS, "text/event-stream; charset=utf-8")
    filled = filler + EVENTS.replace(b"\n\n", b"\n\n" + filler)
    assert answer_hash(filled, "text/event-stream") == plain


@pytest.mark.parametrize(
    "changed",
    [
        EVENTS.replace(b"1", b"3"),
        EVENTS.replace(b"\ndata: c", b"\n\ndata: c"),
        EVENTS.replace(b"\n\ndata: {", b"\ndata: {"),
        EVENTS.replace(b"data: [DONE]\n\n", b""),
        EVENTS + b"data: more\n\n",
        EVENTS.replace(b"data: c", b"data: c "),
        EVENTS + b"data: half",
    ],
)
def test_everything_else_counts(changed: bytes) -> None:
    """ENC-7: content, the borders of events, and the end."""
    assert answer_hash(changed, "text/event-stream") != answer_hash(EVENTS, "text/event-stream")


@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=6))
def test_any_cut_gives_the_same_hash(data: bytes, cuts: list[int]) -> None:
    """ENC-7."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = EventHash()
    for start, end in itertools.pairwise(places):
        pieces.put(data[start:end])
    assert pieces.digest() == answer_hash(data, "text/event-stream")
