# SPDX-License-Identifier: Apache-2.0
"""Counters for Prometheus. Labels are words from short lists, never ids or anything that came from a request.

A request counts a dozen things, so counting is an addition; the library's own objects are made when somebody looks.
One thread counts: the event loop's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        self.value += by


class Counts(dict[str, Count]):
    """One count per word."""

    def __missing__(self, word: str) -> Count:
        made = self[word] = Count()
        return made

    def labels(self, word: str) -> Count:
        return self[word]


class Level:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def set(self, value: int) -> None:
        self.value = value


class Spread:
    """How many took how many seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds


class Metrics(Collector):
    """One registry per proxy, so that several can live in one process."""

    def __init__(self) -> None:
        self.requests = Counts()
        self.refused = Counts()
        self.attempts = Counts()
        self.links = Counts()
        self.frames = Count()
        self.answer_bytes = Count()
        self.request_bytes = Count()
        self.charged = Count()
        self.paid = Count()
        self.receipts_bad = Count()
        self.open = Level()
        self.workers = Level()
        self.first_frame = Spread()
        self.duration = Spread()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees (`prometheus_client.registry.Collector`)."""
        yield _by_word("requests", "Sealed requests, by how they ended", "outcome", self.requests)
        yield _by_word("refused", "Requests turned away, by code", "code", self.refused)
        yield _by_word("attempts", "Requests handed to a worker, by result", "result", self.attempts)
        yield _by_word("links", "Worker links, by what became of them", "event", self.links)
        yield _count("frames", "DATA frames forwarded", self.frames)
        yield _count("answer_bytes", "Sealed bytes of answers forwarded", self.answer_bytes)
        yield _count("request_bytes", "Sealed bytes of requests taken", self.request_bytes)
        yield _count("charged", "Token base units charged to clients", self.charged)
        yield _count("paid", "Token base units agreed to workers", self.paid)
        yield _count("receipts_bad", "Receipts that did not hold", self.receipts_bad)
        yield GaugeMetricFamily(_name("open_requests"), "Requests under way", value=self.open.value)
        yield GaugeMetricFamily(_name("workers"), "Workers linked", value=self.workers.value)
        yield _spread("first_frame_seconds", "From a request's arrival to its first frame", self.first_frame)
        yield _spread("request_seconds", "From a request's arrival to its end", self.duration)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _name(name: str) -> str:
    return f"bombyx_proxy_{name}"


def _count(name: str, meaning: str, count: Count) -> Metric:
    return CounterMetricFamily(_name(name), meaning, value=count.value)


def _by_word(name: str, meaning: str, label: str, counts: Counts) -> Metric:
    family = CounterMetricFamily(_name(name), meaning, labels=[label])
    for word, count in counts.items():
        family.add_metric([word], count.value)
    return family


def _spread(name: str, meaning: str, spread: Spread) -> Metric:
    bounds = [*map(str, _SECONDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(spread.counts), strict=True))
    return HistogramMetricFamily(_name(name), meaning, buckets=buckets, sum_value=spread.total)
