# SPDX-License-Identifier: Apache-2.0
"""What a worker is told at its start. Values only: nothing here reads a file or an environment variable.

Always: every limit is finite; an empty `models` or `proxies` is refused where the worker starts, not silently served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bombyx.ports import Engine
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.request import MAX_DEADLINE

TICK_SECONDS: Final = 0.040  # SEAL-8: one frame each tick in `constant` shape
CHECKPOINT_FRAMES: Final = 64  # RCT-7: a checkpoint receipt every so many frames


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model and the engine that runs it. `token_table` is published so that clients can check output ids."""

    manifest: ModelManifest
    engine: Engine = field(repr=False)
    token_table: bytes | None = field(default=None, repr=False)

    @property
    def digest(self) -> Digest:
        return self.manifest.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Token base units per million units of each class."""

    input: int
    cached_input: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPeer:
    """A proxy to dial. Without `address`, any proxy the registry knows may answer at `url`; with it, only that one."""

    url: str
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one worker, over all its links."""

    capacity: int = 8  # requests in the engine at once
    queue: int = 16  # requests that may wait for the engine; more are refused with a time to come back
    uploads: int = 96 << 20  # bytes of unfinished requests, all links together
    answer: int = 16 << 20  # bytes of one non-streamed answer
    backlog: int = 256 << 10  # bytes of one streamed answer that may wait for the client before the engine is paused
    deadline_seconds: float = MAX_DEADLINE  # a request gets no more; a payer who withdraws must leave time for it
    refuse_retry_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds. The keyset's life is `rotation + overlap` and stays below the 2 h a verifier grants from its beacon."""

    rotation: float = 3600.0
    overlap: float = 600.0
    handshake: float = 10.0
    load_report: float = 1.0
    upload_stall: float = 30.0
    reconnect_first: float = 0.25
    reconnect_most: float = 30.0
    drain: float = 120.0
    claim: float = 60.0  # how often vouchers are looked at for claiming
    engine_probe: float = 1.0  # how often a failed engine is asked whether it is back
    retry_publish: float = 2.0  # after the chain or the enclave device did not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Everything a worker needs to know besides its ports and its operator's key."""

    proxies: tuple[ProxyPeer, ...]
    prices: dict[Digest, Price]  # by model digest; a model without a price is not served
    grain: int = 16
    hardware: str = "cpu"
    receipts_kept: int = 200_000  # the newest; a receipt takes some 600 bytes
    receipts_seconds: float = 2_592_000.0
    claim_threshold: int = 1_000_000  # base units claimable on one channel before a claim is worth its gas
    claim_age: int = 86_400  # seconds after which any debt is claimed
    limits: Limits = field(default_factory=Limits)
    timings: Timings = field(default_factory=Timings)
