# SPDX-License-Identifier: Apache-2.0
"""Merkle trees a contract can judge: a worker's receipts of one epoch, a validator's plan (spec VAL-1, VAL-2).

Keccak-256, as EVM contracts hash. A place in the tree is a number, and a proof says left or right by its bits: a leaf
can be shown at its own place only. The number of leaves stands on chain beside the root and fixes a proof's length.

Always: a leaf is hashed apart from a node, so neither can be passed off as the other; places past the last leaf are
zero. `contracts/lib/merkle.vy` is the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bombyx.errors import MalformedMessage
from bombyx.protocol.primitives import Digest, keccak256

MAX_DEPTH: Final = 32
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
_NOTHING: Final = Digest.zero()


def merkle_root(leaves: Sequence[Digest]) -> Digest:
    """The root over at least one leaf, in their order."""
    return _levels(leaves)[-1][0]


def merkle_proof(leaves: Sequence[Digest], index: int) -> tuple[Digest, ...]:
    """The siblings of leaf `index`, from the bottom up: `depth_of(len(leaves))` of them."""
    if not 0 <= index < len(leaves):
        raise MalformedMessage(f"no leaf {index} among {len(leaves)}", rule="VAL-1")
    siblings = []
    empty = _NOTHING
    for level in _levels(leaves)[:-1]:
        beside = index ^ 1
        siblings.append(level[beside] if beside < len(level) else empty)
        empty = _node(empty, empty)
        index >>= 1
    return tuple(siblings)


def merkle_verifies(root: Digest, count: int, index: int, leaf: Digest, proof: Sequence[Digest]) -> bool:
    """Whether `leaf` stands at `index` of a tree of `count` leaves with this root."""
    if not 0 <= index < count or len(proof) != depth_of(count):
        return False
    found = keccak256(_LEAF, leaf)
    for sibling in proof:
        found = _node(sibling, found) if index & 1 else _node(found, sibling)
        index >>= 1
    return found == root


def depth_of(count: int) -> int:
    """How many siblings a proof has in a tree of `count` leaves."""
    return (count - 1).bit_length()


def _levels(leaves: Sequence[Digest]) -> list[list[Digest]]:
    if not 0 < len(leaves) <= 1 << MAX_DEPTH:
        raise MalformedMessage(f"a tree of {len(leaves)} leaves", rule="VAL-1")
    levels = [[keccak256(_LEAF, leaf) for leaf in leaves]]
    empty = _NOTHING
    while len(levels[-1]) > 1:
        below = levels[-1] if len(levels[-1]) % 2 == 0 else [*levels[-1], empty]
        levels.append([_node(below[n], below[n + 1]) for n in range(0, len(below), 2)])
        empty = _node(empty, empty)
    return levels


def _node(left: Digest, right: Digest) -> Digest:
    return keccak256(_NODE, left, right)
