# SPDX-License-Identifier: Apache-2.0
"""Counters for Prometheus. Labels are words from short lists, never ids or anything that came from a request."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """One registry per proxy, so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self.requests = Counter("bombyx_proxy_requests", "Sealed requests, by how they ended", ["outcome"], registry=r)
        self.refused = Counter("bombyx_proxy_refused", "Requests turned away, by code", ["code"], registry=r)
        self.attempts = Counter(
            "bombyx_proxy_attempts", "Requests handed to a worker, by result", ["result"], registry=r
        )
        self.frames = Counter("bombyx_proxy_frames", "DATA frames forwarded", registry=r)
        self.answer_bytes = Counter("bombyx_proxy_answer_bytes", "Sealed bytes of answers forwarded", registry=r)
        self.request_bytes = Counter("bombyx_proxy_request_bytes", "Sealed bytes of requests taken", registry=r)
        self.charged = Counter("bombyx_proxy_charged", "Token base units charged to clients", registry=r)
        self.paid = Counter("bombyx_proxy_paid", "Token base units agreed to workers", registry=r)
        self.receipts_bad = Counter("bombyx_proxy_receipts_bad", "Receipts that did not hold", registry=r)
        self.links = Counter("bombyx_proxy_links", "Worker links, by what became of them", ["event"], registry=r)
        self.open = Gauge("bombyx_proxy_open_requests", "Requests under way", registry=r)
        self.workers = Gauge("bombyx_proxy_workers", "Workers linked", registry=r)
        self.first_frame = Histogram(
            "bombyx_proxy_first_frame_seconds",
            "From a request's arrival to its first frame",
            buckets=_SECONDS,
            registry=r,
        )
        self.duration = Histogram(
            "bombyx_proxy_request_seconds", "From a request's arrival to its end", buckets=_SECONDS, registry=r
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
