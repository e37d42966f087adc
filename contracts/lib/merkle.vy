# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title Proofs that a leaf stands at a place of a tree; as src/bombyx/protocol/audit/merkle.py makes them
@license Apache-2.0
@notice A module, not a contract: it holds no storage.
@custom:security Leaves and nodes are hashed apart; the place decides left and right; the number of leaves fixes the
    proof's length. So a leaf has one place, and no inner node passes for a leaf.
"""

MAX_DEPTH: constant(uint256) = 32


@pure
@internal
def _verifies(
    root: bytes32, count: uint256, index: uint256, leaf: bytes32, proof: DynArray[bytes32, MAX_DEPTH]
) -> bool:
    if index >= count or count > 2**MAX_DEPTH or len(proof) != self._depth(count):
        return False
    found: bytes32 = keccak256(concat(b"\x00", leaf))
    place: uint256 = index
    for sibling: bytes32 in proof:
        if place & 1 == 1:
            found = keccak256(concat(b"\x01", sibling, found))
        else:
            found = keccak256(concat(b"\x01", found, sibling))
        place = place >> 1
    return found == root


@pure
@internal
def _depth(count: uint256) -> uint256:
    """@dev Bits of count - 1; count is at least 1."""
    depth: uint256 = 0
    left: uint256 = count - 1
    for _: uint256 in range(MAX_DEPTH):
        if left == 0:
            break
        left = left >> 1
        depth += 1
    return depth
