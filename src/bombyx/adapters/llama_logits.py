# SPDX-License-Identifier: Apache-2.0
"""From a row of logits to the few candidates that sampling and judging look at. numpy stops here.

Always: candidates come sorted by logit, the largest first, equal ones by the lower id first (AUD-4), so that the same
row gives the same candidates on any machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Candidates = tuple[tuple[int, float], ...]  # (token id, logit)


def top_candidates(row: npt.NDArray[np.float32], count: int) -> Candidates:
    """The `count` largest logits of a row, in order."""
    count = min(count, row.size)
    edge = np.partition(row, row.size - count)[row.size - count]  # the smallest that is still in, perhaps several times
    chosen = np.flatnonzero(row >= edge)  # by id; more than `count` only where the edge is shared
    order = np.argsort(-row[chosen], kind="stable")[:count]
    ids = chosen[order]
    return tuple(zip(ids.tolist(), row[ids].tolist(), strict=True))


def log_normaliser(row: npt.NDArray[np.float32]) -> float:
    """log of the sum of exp over the whole row: a logit less this is a log probability."""
    largest = row.max()
    return float(largest) + float(np.log(np.exp(row - largest, dtype=np.float32).sum(dtype=np.float64)))


def rank_of(row: npt.NDArray[np.float32], token: int) -> int:
    """How many tokens come before this one in the order of candidates."""
    logit = row[token]
    return int(np.count_nonzero(row > logit)) + int(np.count_nonzero(row[:token] == logit))
