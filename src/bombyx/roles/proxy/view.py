# SPDX-License-Identifier: Apache-2.0
"""What the proxy saw of one request: sizes, counts, times, ids; never payload bytes beyond 32 bytes of ciphertext.

Shown to its operator and in demonstrations, so that "the proxy cannot read it" can be looked at. An `Observer` may be
given by tests to receive every byte that passes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bombyx.protocol.primitives import Address, Digest, RequestId

KEPT: Final = 256  # requests

Attempt = dict[str, Address | str]  # which worker, and what became of it
Observer = Callable[[RequestId, str, bytes], None]  # request, what ("envelope", "to worker", "frame", "receipt"), bytes


@dataclass(slots=True, kw_only=True)
class Sent:
    """What came in: made where somebody may look at it."""

    envelope_bytes: int
    payment_bytes: int
    meta_bytes: int
    wrap_bytes: tuple[int, ...]
    body_bytes: int
    ciphertext_start: bytes  # the first bytes of the sealed body
    candidates: tuple[Digest, ...]
    model: Digest
    max_output: int
    shape: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "sent": {
                "envelope_bytes": self.envelope_bytes,
                "payment_bytes": self.payment_bytes,
                "meta_bytes": self.meta_bytes,
                "wrap_bytes": list(self.wrap_bytes),
                "body_bytes": self.body_bytes,
                "ciphertext_start": self.ciphertext_start.hex(),
            },
            "known": {
                "model": self.model.hex(),
                "max_output_units": self.max_output,
                "shape": self.shape,
                "candidates": [candidate.hex() for candidate in self.candidates],
            },
        }


@dataclass(slots=True, kw_only=True)
class ProxyView:
    """One request as the proxy saw it."""

    request_id: RequestId
    started_at: int
    sent: Sent | None = None  # None: views are not shown
    attempts: list[Attempt] = field(default_factory=list)
    why: str = ""
    outcome: str = "open"
    frames: int = 0
    frame_sizes: dict[int, int] = field(default_factory=dict)
    answer_bytes: int = 0
    receipts: int = 0
    seconds: float = 0.0
    first_frame_seconds: float = 0.0
    worker_charge: int = 0
    charge: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id.hex(),
            **(self.sent.as_dict() if self.sent else {}),
            "choice": {"why": self.why, "attempts": [{k: str(v) for k, v in one.items()} for one in self.attempts]},
            "answer": {
                "outcome": self.outcome,
                "frames": self.frames,
                "frame_sizes": {str(size): count for size, count in sorted(self.frame_sizes.items())},
                "bytes": self.answer_bytes,
                "receipts": self.receipts,
                "first_frame_seconds": round(self.first_frame_seconds, 4),
                "seconds": round(self.seconds, 4),
            },
            "booked": {"worker_charge": self.worker_charge, "charge": self.charge},
            "started_at": self.started_at,
        }


class Views:
    """The last requests, newest last."""

    def __init__(self) -> None:
        self._views: OrderedDict[RequestId, ProxyView] = OrderedDict()

    def add(self, view: ProxyView) -> None:
        self._views[view.request_id] = view
        while len(self._views) > KEPT:
            self._views.popitem(last=False)

    def get(self, request_id: RequestId) -> ProxyView | None:
        return self._views.get(request_id)
