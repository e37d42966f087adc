# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title Drawing a jury from the validators' set by a seed
@license Apache-2.0
@notice A module, not a contract: it holds no storage.
@custom:security Each place is drawn among those left, so everybody fit has the same chance, whatever the order of the
    set. A member whose stake fell below the minimum, the accuser and the accused are passed over.
"""

MAX_JURY: constant(uint256) = 31
MAX_MEMBERS: constant(uint256) = 512
VALIDATOR: constant(uint8) = 3

interface Registry:
    def isFit(operator: address, role: uint8) -> bool: view


@view
@internal
def _drawn(
    registry: address,
    members: DynArray[address, MAX_MEMBERS],
    seed: bytes32,
    size: uint256,
    outside: DynArray[address, 3],
) -> DynArray[address, MAX_JURY]:
    found: DynArray[address, MAX_JURY] = []
    left: DynArray[address, MAX_MEMBERS] = members
    for turn: uint256 in range(MAX_MEMBERS):
        count: uint256 = len(left)
        if count == 0 or len(found) >= min(size, MAX_JURY):
            break
        place: uint256 = convert(keccak256(abi_encode(seed, turn)), uint256) % count
        one: address = left[place]
        left[place] = left[count - 1]
        left.pop()
        if one not in outside and staticcall Registry(registry).isFit(one, VALIDATOR):
            found.append(one)
    return found
