# SPDX-License-Identifier: Apache-2.0
"""One scene for every test of the seal: three workers' keys, a request, and somebody who opens it. Chance is seeded."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, sha256
from bombyx.protocol.seal import (
    GatewayKey,
    Kem,
    OpenedRequest,
    ReplayGuard,
    Request,
    SealedRequest,
    encode_request,
    open_request,
    pad_request,
    seal_plain,
    seal_request,
)
from bombyx.protocol.wire.request import Meta, Shape

PROXY = Address(b"P" * 20)
NOW = Instant(1_700_000_000_000)
NOT_AFTER = NOW.plus(seconds=60)


class SeededRandomness:
    """Repeatable but for ML-KEM, whose randomness the library keeps to itself."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def bytes(self, size: int) -> builtins.bytes:
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(8)).digest(size)

    def mlkem768_encapsulate(self, public_key: builtins.bytes) -> tuple[builtins.bytes, builtins.bytes]:
        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()


@dataclasses.dataclass(frozen=True)
class Scene:
    """Values and shorthands; holds no state but the random counter, so Hypothesis may share it."""

    randomness: SeededRandomness
    keys: tuple[GatewayKey, ...]
    request: Request
    proxy: Address = PROXY
    now: Instant = NOW
    not_after: Instant = NOT_AFTER

    @property
    def candidates(self) -> tuple[Digest, ...]:
        return tuple(key.config.candidate_id() for key in self.keys)

    def meta(self, candidates: tuple[Digest, ...] | None = None, **changes: Any) -> Meta:
        chosen = self.candidates if candidates is None else candidates
        meta = Meta(
            v=1,
            request_id=RequestId(self.randomness.bytes(16)),
            model=sha256(b"model"),
            proxy=self.proxy,
            price_sheets=tuple(sha256(b"prices") for _ in chosen),
            commission_bps=500,
            max_input=128,
            max_output=1024,
            deadline=self.now.plus(seconds=120),
            candidates=chosen,
            shape=Shape.CONSTANT,
            frame_size=1024,
        )
        return dataclasses.replace(meta, **changes)

    def seal(self, meta: Meta | None = None, content: bytes | None = None) -> SealedRequest:
        """Sealed to all three workers."""
        request = self.request if content is None else dataclasses.replace(self.request, content=content)
        return seal_request(
            meta=meta or self.meta(),
            bhttp=pad_request(encode_request(request)),
            recipients=[key.config for key in self.keys],
            randomness=self.randomness,
            not_after=self.not_after,
        )

    def seal_plain(self, meta: Meta | None = None) -> SealedRequest:
        """Sealed to the first worker as a plain chunked request."""
        return seal_plain(
            meta=meta or self.meta(self.candidates[:1]),
            request=self.request,
            recipient=self.keys[0].config,
            randomness=self.randomness,
            not_after=self.not_after,
        )

    def open(self, sealed: SealedRequest, worker: int = 0, **changes: Any) -> OpenedRequest:
        """What worker `worker` makes of it; `changes` are what somebody on the way did."""
        given: dict[str, Any] = {
            "meta_bytes": sealed.meta_bytes,
            "wrap": sealed.wraps[worker] if sealed.wraps else b"",
            "body": sealed.body,
            "proxy": self.proxy,
            "now": self.now,
            "replays": ReplayGuard(),
        }
        return open_request((self.keys[worker],), **(given | changes))


@pytest.fixture(scope="session")
def scene() -> Scene:
    randomness = SeededRandomness("scene")
    kems = (Kem.MLKEM768_X25519, Kem.X25519, Kem.MLKEM768_X25519)
    return Scene(
        randomness=randomness,
        keys=tuple(GatewayKey.generate(1 + place, kem, randomness) for place, kem in enumerate(kems)),
        request=Request(
            method=b"POST",
            path=b"/v1/chat/completions",
            authority=b"worker",
            headers=((b"content-type", b"application/json"),),
            content=b'{"messages":[{"role":"user","content":"What is the capital of France?"}]}',
        ),
    )


@pytest.fixture(scope="session")
def vector(vectors: Path) -> Callable[[str], dict[str, Any]]:
    """Read one vector file of this area."""

    def read(name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((vectors / "seal" / f"{name}.json").read_text(encoding="utf-8"))
        return loaded

    return read
