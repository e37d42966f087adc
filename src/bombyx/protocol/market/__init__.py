# SPDX-License-Identifier: Apache-2.0
"""Candidates and choice: who may answer (the client's secret draw) and who does (the proxy's choice among those k)."""

from bombyx.protocol.market.choice import Choice, Contender, Load, choose
from bombyx.protocol.market.directory import DirectoryReport, compare_directory
from bombyx.protocol.market.draw import EPOCH_SECONDS, Ranking, draw, epoch_of, goes_single
from bombyx.protocol.market.stats import WorkerStats

__all__ = [
    "EPOCH_SECONDS",
    "Choice",
    "Contender",
    "DirectoryReport",
    "Load",
    "Ranking",
    "WorkerStats",
    "choose",
    "compare_directory",
    "draw",
    "epoch_of",
    "goes_single",
]
