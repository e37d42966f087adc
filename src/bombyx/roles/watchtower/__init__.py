# SPDX-License-Identifier: Apache-2.0
"""The watchtower role: claims for a payee that is away, with none of its keys."""

from bombyx.roles.watchtower.tower import Claimed, Watchtower

__all__ = ["Claimed", "Watchtower"]
