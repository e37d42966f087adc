# SPDX-License-Identifier: Apache-2.0
"""What a proxy publishes: its Directory, blobs by digest, and a few facts in JSON. Hints, all of it: clients check.

Always: a blob is served only under its own SHA-256, and only if a linked worker's evidence or offer names that digest,
so a proxy is nobody's file host; the directory lists a worker's newest keyset alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.ports import Clock, LedgerInfo
from bombyx.protocol.attest import AttestationResult
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.seal import GatewayKey
from bombyx.protocol.wire.evidence import EvidenceBundle
from bombyx.protocol.wire.market import Directory, write_directory
from bombyx.protocol.wire.records import MAX_BLOBS, LinkHello
from bombyx.roles.proxy.roster import Roster
from bombyx.roles.proxy.settings import ProxySettings

MAX_SHELF: Final = 512 << 20  # bytes of blobs, all workers together; the oldest go first
DIRECTORY_SECONDS: Final = 1.0  # how old an encoded directory may be


class Shelf:
    """Blobs by digest. What a client fetched an offer for stays a while after its worker left."""

    def __init__(self) -> None:
        self._blobs: OrderedDict[Digest, bytes] = OrderedDict()
        self._size = 0

    def get(self, digest: Digest) -> bytes | None:
        return self._blobs.get(digest)

    def lacks(self, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        """Those of `digests` that are not here."""
        return tuple(digest for digest in digests if digest not in self._blobs)

    def put(self, blobs: Iterable[bytes]) -> None:
        for blob in blobs:
            digest = sha256(blob)
            if digest in self._blobs:
                self._blobs.move_to_end(digest)
                continue
            self._blobs[digest] = blob
            self._size += len(blob)
        while self._size > MAX_SHELF:
            _, dropped = self._blobs.popitem(last=False)
            self._size -= len(dropped)


def offered_blobs(hello: LinkHello, result: AttestationResult) -> tuple[Digest, ...]:
    """The digests of the blobs a HELLO offers, if its evidence names each. Raises `MalformedMessage`."""
    named = {digest for m in result.manifests for digest in (m.tokenizer, m.chat_template) if digest is not None}
    if len(hello.blobs) > MAX_BLOBS or len(set(hello.blobs)) != len(hello.blobs) or not set(hello.blobs) <= named:
        raise MalformedMessage("a blob that none of its manifests names, or too many", peer=Peer.WORKER, rule="LINK-7")
    return hello.blobs


def evidence_blobs(hello: LinkHello) -> tuple[bytes, ...]:
    """What every HELLO brings to be published."""
    return (hello.bundle, hello.price_sheet, *EvidenceBundle.decode(hello.bundle).manifests)


class Noticeboard:
    """The pages a proxy shows."""

    def __init__(
        self,
        settings: ProxySettings,
        address: Address,
        pay_key: GatewayKey,
        info: LedgerInfo,
        roster: Roster,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._address = address
        self._pay_key = pay_key
        self._info = info
        self._roster = roster
        self._clock = clock
        self._encoded = (-1, float("-inf"), b"")

    def directory(self) -> bytes:
        """The canonical Directory of now, re-made when a worker came or went, and every second."""
        changes, made_at, encoded = self._encoded
        now = self._clock.monotonic()
        if changes != self._roster.changes or now - made_at > DIRECTORY_SECONDS:
            encoded = self._directory()
            self._encoded = (self._roster.changes, now, encoded)
        return encoded

    def _directory(self) -> bytes:
        now = self._clock.now()
        bare = Directory(v=1, proxy=self._address, commission_bps=self._settings.commission_bps, at=now, offers=())
        return write_directory(bare, [seat.offer for seat in self._roster.offered(now)])

    def info(self) -> dict[str, Any]:
        return {
            "role": "proxy",
            "version": 1,
            "address": str(self._address),
            "commission_bps": self._settings.commission_bps,
            "pay_key_config": self._pay_key.config.encode().hex(),
            "chain": {
                "chain_id": self._info.chain_id,
                "settlement": str(self._info.settlement),
                "registry": str(self._info.registry),
                "token": str(self._info.token),
                "kind": self._info.kind,
            },
            "limits": {
                "max_body": self._settings.limits.max_body,
                "open_per_channel": self._settings.limits.open_per_channel,
                "rate_per_channel": self._settings.limits.rate_per_channel,
                "max_deadline_seconds": self._settings.timings.max_deadline,
            },
        }

    def network(self) -> dict[str, Any]:
        """Counts, for people and the explorer."""
        workers = list(self._roster.workers.values())
        offered = list(self._roster.offered(self._clock.now()))
        models: dict[str, int] = {}
        for seat in offered:
            for manifest in seat.result.manifests:
                models[manifest.name] = models.get(manifest.name, 0) + 1
        return {
            "proxy": str(self._address),
            "workers": [self._line(worker) for worker in workers],
            "models": models,
            "trust_classes": sorted({str(seat.result.trust_class) for seat in offered}),
            "open_requests": sum(worker.link.open_streams for worker in workers),
        }

    def _line(self, worker: Any) -> dict[str, Any]:
        load, stats = worker.load, worker.stats
        return {
            "operator": str(worker.operator),
            "hardware": worker.hardware,
            "trust_class": str(worker.seats[-1].result.trust_class) if worker.seats else None,
            "standing": stats.standing(self._clock.monotonic()),
            "draining": worker.draining,
            "load": {"active": load.active, "queued": load.queued, "capacity": load.capacity},
            "seen": stats.seen,
            "success": round(stats.success, 4),
            "seconds_per_unit": round(stats.seconds_per_unit, 6),
            "first_frame_seconds": round(stats.first_frame, 4),
        }
