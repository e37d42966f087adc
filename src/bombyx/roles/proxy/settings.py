# SPDX-License-Identifier: Apache-2.0
"""What a proxy is told at its start. Values only; every limit is finite. An empty policy lets no worker in."""

from __future__ import annotations

from dataclasses import dataclass, field

from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.wire.request import MAX_DEADLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one proxy process."""

    max_body: int = 36 << 20  # bytes of one sealed request
    open_total: int = 2_048  # requests under way
    open_per_channel: int = 32
    rate_per_channel: float = 50.0  # requests per second, with a burst of two seconds' worth
    held_bytes: int = 512 << 20  # sealed requests not yet handed to a worker
    lookups: int = 16  # channels looked up on chain at once
    channels: int = 100_000  # rate counters kept
    workers: int = 4_096  # links
    blob_bytes: int = 64 << 20  # one worker's published blobs
    streams_per_link: int = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds."""

    handshake: float = 10.0
    first_frame: float = 60.0  # a worker that shows nothing for so long is taken for hung
    cancel_grace: float = 5.0  # after CANCEL, for the receipt of what was delivered
    max_deadline: float = MAX_DEADLINE  # how far ahead a request may set its end
    view_fresh: float = 30.0  # how old a channel's view may be
    registry_fresh: float = 10.0
    deposit_fresh: float = 300.0  # how old our view of a channel to a worker may be: a reorg can take its deposit back
    housekeeping: float = 30.0  # claims, top-ups, clean-up
    reclaim_after: float = 600.0  # a worker's enclave that is gone for so long does not come back
    lapse_after: float = 2.0 * MAX_DEADLINE  # a cut answer can end no more: its deadline, and clocks that are wrong
    retry_after: float = 1.0  # told to those turned away
    drain: float = 30.0
    lease_life: float = 10.0  # replicas: what a process had in hand is free so long after its last sign of life
    lease_renew: float = 3.0
    lease_idle: float = 10.0  # a channel without requests for so long is given back


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Everything a proxy needs to know besides its ports and its keys."""

    policy: AppraisalPolicy
    commission_bps: int = 500
    float_limit: int = 20_000_000  # base units placed in each worker's channel
    voucher_window: int = 1_000_000  # base units a voucher reaches beyond need: fewer signatures against more at risk
    session_seconds: int = 3_600
    withdraw_delay: int = 3_600  # of channels we open
    claim_threshold: int = 1_000_000  # base units owed on one channel before a claim is worth its gas
    claim_age: int = 86_400  # seconds after which any debt is claimed
    stream_window: int = 262_144  # bytes of DATA a worker may send ahead of the client
    expose_views: bool = False  # serve what was seen of each request at /v1/view/{id}; development only
    limits: Limits = field(default_factory=Limits)
    timings: Timings = field(default_factory=Timings)
