# SPDX-License-Identifier: Apache-2.0
"""Merkle trees: every leaf is shown at its own place, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.audit.merkle import depth_of, merkle_proof, merkle_root, merkle_verifies
from bombyx.protocol.primitives import Digest, keccak256, sha256

LEAVES = [sha256(bytes([n])) for n in range(33)]


@given(count=st.integers(1, 33), data=st.data())
def test_every_leaf_has_a_proof_at_its_place_alone(count: int, data: st.DataObject) -> None:
    """VAL-1: whatever the number of leaves; another place, another leaf and another count fail."""
    leaves = LEAVES[:count]
    root = merkle_root(leaves)
    index = data.draw(st.integers(0, count - 1))
    proof = merkle_proof(leaves, index)
    assert len(proof) == depth_of(count)
    assert merkle_verifies(root, count, index, leaves[index], proof)
    for other in range(count):
        assert merkle_verifies(root, count, other, leaves[index], proof) == (other == index)
    assert not merkle_verifies(root, count, index, sha256(b"forged"), proof)
    assert not merkle_verifies(root, count * 2, index, leaves[index], proof)
    assert not merkle_verifies(root, count, index, leaves[index], [*proof, Digest.zero()])


def test_a_node_is_no_leaf() -> None:
    """VAL-1: a shorter proof over an inner node is a forgery that a tree without tags would take."""
    leaves = LEAVES[:4]
    upper = merkle_proof(leaves, 0)[1:]
    inner = keccak256(b"\x01", keccak256(b"\x00", leaves[0]), keccak256(b"\x00", leaves[1]))
    assert merkle_verifies(merkle_root(leaves), 4, 0, leaves[0], merkle_proof(leaves, 0))
    assert not merkle_verifies(merkle_root(leaves), 2, 0, inner, upper)
    assert not merkle_verifies(merkle_root(leaves), 4, 0, inner, upper)


def test_an_empty_tree_and_a_missing_leaf_are_refused() -> None:
    """VAL-1: an epoch without receipts has no root."""
    with pytest.raises(MalformedMessage, match="0 leaves"):
        merkle_root([])
    with pytest.raises(MalformedMessage, match="no leaf 4"):
        merkle_proof(LEAVES[:4], 4)
