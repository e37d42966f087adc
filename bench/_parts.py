# SPDX-License-Identifier: Apache-2.0
"""The pure parts of one request, each alone: appraise, draw, seal, parse, open, seal frames, open them, receipts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.simulator import SimulatedEnclave, SimulatedPlatform, development_policy
from bombyx.protocol.attest import AppraisalPolicy, appraise, report_data
from bombyx.protocol.market import draw
from bombyx.protocol.primitives import Address, Digest, RequestId, Secret, sha256
from bombyx.protocol.seal import (
    GatewayKey,
    Kem,
    ReplayGuard,
    Request,
    ResponseOpener,
    ResponseSealer,
    encode_key_configs,
    encode_request,
    open_request,
    pad_request,
    parse_envelope,
    seal_request,
)
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle, Keyset
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt
from bombyx.protocol.wire.request import Meta, Payment, Shape
from bombyx.protocol.wire.signing import SigningKey

CLOCK, ENTROPY = SystemClock(), SystemEntropy()
PROXY = Address(b"P" * 20)
FRAMES = 16


def parts(per_call: Callable[[Callable[[], object]], float]) -> dict[str, float]:
    """Seconds of processor time of each part."""
    keys = tuple(GatewayKey.generate(1 + n, Kem.MLKEM768_X25519, ENTROPY) for n in range(3))
    bundle, policy, beacon = _evidence(keys)
    meta, inner = _meta(keys), _inner()

    def seal() -> object:
        return seal_request(
            meta=meta,
            bhttp=pad_request(inner),
            recipients=[k.config for k in keys],
            randomness=ENTROPY,
            not_after=meta.deadline,
        )

    sealed = seal_request(
        meta=meta, bhttp=pad_request(inner), recipients=[k.config for k in keys], randomness=ENTROPY,
        not_after=meta.deadline,
    )  # fmt: skip
    payment = Payment(v=1, channel=Digest.zero(), cap=1000, voucher=None, grant=None, counter=1, mac=bytes(32)).encode()
    envelope = sealed.envelope(payment)

    def unseal() -> object:
        return open_request(
            keys[:1], meta_bytes=sealed.meta_bytes, wrap=sealed.wraps[0], body=sealed.body, proxy=PROXY,
            now=CLOCK.now(), replays=ReplayGuard(),
        )  # fmt: skip

    opened = open_request(
        keys[:1], meta_bytes=sealed.meta_bytes, wrap=sealed.wraps[0], body=sealed.body, proxy=PROXY,
        now=CLOCK.now(), replays=ReplayGuard(),
    )  # fmt: skip
    nonce, chunk = ENTROPY.bytes(16), bytes(1000)

    def answer() -> list[bytes]:
        sealer = ResponseSealer(opened, nonce)
        return [sealer.seal(chunk) for _ in range(FRAMES - 1)] + [sealer.seal_final(chunk)]

    frames = answer()

    def read() -> object:
        opener = ResponseOpener(sealed, meta.candidates[0])
        return [opener.feed(frame) for frame in frames]

    secret, people = Secret(bytes(32)), [Address(hashlib.sha256(b"%d" % i).digest()[:20]) for i in range(24)]
    signer, domain = SigningKey(Secret(b"\x01" * 32)), Digest.zero()
    receipt = _receipt(signer.address)
    signed = SignedReceipt.sign(receipt, domain, signer)
    return {
        "appraisal, cold": per_call(lambda: appraise(bundle, policy, now=CLOCK.now(), beacon=beacon)),
        "client: draw 3 of 24": per_call(lambda: draw(secret, meta.model, 1, people, 3)),
        "client: seal to 3 (hybrid KEM), 1 kB": per_call(seal),
        "proxy: parse the envelope": per_call(lambda: parse_envelope(envelope)),
        "worker: open": per_call(unseal),
        f"worker: seal {FRAMES} frames of 1 kB": per_call(answer),
        f"client: open {FRAMES} frames": per_call(read),
        "worker: sign a receipt": per_call(lambda: SignedReceipt.sign(receipt, domain, signer)),
        "proxy or client: recover its signer": per_call(lambda: signed.signer(domain)),
    }


def _evidence(keys: tuple[GatewayKey, ...]) -> tuple[bytes, AppraisalPolicy, BlockHeader]:
    now = CLOCK.now()
    platform = SimulatedPlatform.create(seed=bytes(32), now=now.plus(seconds=-60))
    beacon = BlockHeader(number=1, hash=sha256(b"block"), parent=Digest.zero(), timestamp=now.plus(seconds=-5))
    keyset = Keyset(
        v=1,
        ohttp_key_config=encode_key_configs(tuple(k.config for k in keys[:1])),
        receipt_address=PROXY,
        operator=PROXY,
        chain_id=1,
        pay_authorizer=PROXY,
        models=(),
        gpu_evidence=None,
        beacon=beacon.hash,
        not_before=now,
        not_after=now.plus(seconds=3600),
    ).encode()
    quote = asyncio.run(SimulatedEnclave(platform=platform).quote(report_data(keyset)))
    bundle = EvidenceBundle(
        v=1,
        technology=quote.technology,
        quote=quote.quote,
        event_log=quote.event_log,
        keyset=keyset,
        gpu_evidence=None,
        compose=quote.compose,
        manifests=(),
        endorsements=platform.endorsements(now),
        beacon_header=beacon,
    )
    return bundle.encode(), development_policy(platform).offline(), beacon


def _meta(keys: tuple[GatewayKey, ...]) -> Meta:
    return Meta(
        v=1,
        request_id=RequestId(ENTROPY.bytes(16)),
        model=sha256(b"model"),
        proxy=PROXY,
        price_sheets=(Digest.zero(),) * len(keys),
        commission_bps=500,
        max_input=1024,
        max_output=1024,
        deadline=CLOCK.now().plus(seconds=3600),
        candidates=tuple(k.config.candidate_id() for k in keys),
        shape=Shape.CONSTANT,
        frame_size=1024,
    )


def _inner() -> bytes:
    return encode_request(Request(method=b"POST", path=b"/v1/chat/completions", content=b"x" * 1000))


def _receipt(operator: Address) -> Receipt:
    zero = Digest.zero()
    return Receipt(
        kind=Kind.FINAL,
        request_id=RequestId.zero(),
        request_hash=zero,
        response_hash=zero,
        model=zero,
        price_sheet=zero,
        operator=operator,
        frames=FRAMES,
        input_units=48,
        cached_units=0,
        output_units=64,
        charge=100,
        usage_commitment=zero,
        audit_commitment=zero,
        outcome=Outcome.COMPLETE,
        seq=1,
        started_at=CLOCK.now(),
        finished_at=CLOCK.now(),
        previous=zero,
    )
