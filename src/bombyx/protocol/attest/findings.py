# SPDX-License-Identifier: Apache-2.0
"""What became of a check that only counts when its material is at hand: done, or not checked and why. Never a pass."""

from __future__ import annotations

from dataclasses import dataclass

from bombyx.protocol.primitives import Instant


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a step's detail. What fails raises instead."""

    detail: str
    done: bool = False
    until: Instant | None = None
