# SPDX-License-Identifier: Apache-2.0
"""The client's secret draw of its candidates (spec MKT-1 .. MKT-4).

Rendezvous hashing under a secret: every worker gets the rank HMAC(secret, model, epoch, worker), the k lowest are the
candidates. So a worker that joins or leaves moves only its own share, a conversation comes back to the same workers
(their prefix cache is warm), and nobody without the secret can foresee or steer the draw.

Always: the same arguments give the same candidates, so a retry never redraws.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret

EPOCH_SECONDS: Final = 3600  # candidates change once an hour; a keyset lives about as long
BASIS_POINTS: Final = 10_000
_DRAW_TAG: Final = b"bombyx draw v1\x00"
_SINGLE_TAG: Final = b"bombyx single v1\x00"


def epoch_of(now: Instant) -> int:
    """The number of the epoch `now` lies in."""
    return now.seconds // EPOCH_SECONDS


class Ranking:
    """One secret's order of operators for one model and epoch. Each is ranked once, however often it is asked about."""

    def __init__(self, secret: Secret, model: Digest, epoch: int) -> None:
        self._prefix = hmac.new(secret.reveal(), _DRAW_TAG + model + epoch.to_bytes(8), hashlib.sha256)
        self._ranks: dict[Address, bytes] = {}

    def order(self, operators: Iterable[Address]) -> tuple[Address, ...]:
        """All of them, lowest rank first. Duplicates count once."""
        ranks, prefix = self._ranks, self._prefix
        wanted = set(operators)
        for operator in wanted.difference(ranks):
            mac = prefix.copy()
            mac.update(operator)
            ranks[operator] = mac.digest()
        return tuple(sorted(wanted, key=ranks.__getitem__))


def draw(secret: Secret, model: Digest, epoch: int, operators: Sequence[Address], k: int) -> tuple[Address, ...]:
    """The k operators of lowest rank, lowest first; fewer when fewer are given. Duplicates count once."""
    return Ranking(secret, model, epoch).order(operators)[: max(0, k)]


def goes_single(secret: Secret, request_id: RequestId, share_bps: int) -> bool:
    """Whether this request goes out at k = 1: `share_bps` of 10 000 do, so that k = 1 marks nobody (MKT-4)."""
    mac = hmac.new(secret.reveal(), _SINGLE_TAG + request_id, hashlib.sha256).digest()
    return int.from_bytes(mac[:8]) % BASIS_POINTS < share_bps
