# pragma version 0.4.3
# pragma nonreentrancy off
# SPDX-License-Identifier: Apache-2.0
"""
@title The arithmetic of allocated stake: shares, magnitudes, members, and what a slash takes
@license Apache-2.0
@notice A module with storage, for StakeManager.vy alone: it moves no token and checks no caller.
    Always: `encumbered` is the sum of an operator's magnitudes and at most its maximum; a slash takes from shares
    exactly the fraction of them that the magnitude was of the maximum.
"""

from interfaces import IAllocationManager

MAX_MEMBERS: constant(uint256) = 512
MAX_OPERATORS: constant(uint256) = 64  # in one question
WAD: constant(uint256) = 10**18

struct Allocation:
    magnitude: uint256
    next: uint256  # the magnitude from block `effect` on, where that is not zero
    effect: uint256

struct Withdrawal:
    amount: uint256
    magnitude: uint256  # the operator's maximum when it was queued: what is slashed later is taken from it too
    since: uint256

DEALLOCATION_DELAY: public(immutable(uint32))  # blocks
shares: public(HashMap[address, uint256])
totalShares: public(uint256)
encumbered: public(HashMap[address, uint256])  # allocated magnitude, over all sets
withdrawals: public(HashMap[address, Withdrawal])
slasher: public(HashMap[bytes32, address])  # of a set; a set without one does not exist
_lost: HashMap[address, uint256]  # magnitude slashed so far: the maximum is WAD less this
_members: HashMap[bytes32, DynArray[address, MAX_MEMBERS]]
_place: HashMap[bytes32, HashMap[address, uint256]]  # in `_members`, from 1
_slashable_until: HashMap[bytes32, HashMap[address, uint256]]  # block, of who left
_allocations: HashMap[bytes32, HashMap[address, Allocation]]


@deploy
def __init__(delay: uint32):
    DEALLOCATION_DELAY = delay


@pure
@internal
def _key(operator_set: IAllocationManager.OperatorSet) -> bytes32:
    return keccak256(abi_encode(operator_set))


@view
@internal
def _existing(operator_set: IAllocationManager.OperatorSet) -> bytes32:
    key: bytes32 = self._key(operator_set)
    if self.slasher[key] == empty(address):
        raw_revert(method_id("InvalidOperatorSet()"))
    return key


@view
@internal
def _delay() -> uint256:
    return convert(DEALLOCATION_DELAY, uint256)


@view
@internal
def _maximum(operator: address) -> uint256:
    return WAD - self._lost[operator]


@view
@internal
def _is_slashable(operator: address, key: bytes32) -> bool:
    return self._place[key][operator] != 0 or block.number <= self._slashable_until[key][operator]


@view
@internal
def _magnitude(operator: address, key: bytes32, at: uint256) -> uint256:
    held: Allocation = self._allocations[key][operator]
    return held.next if held.effect != 0 and at >= held.effect else held.magnitude


@view
@internal
def _still_queued(operator: address, queued: Withdrawal) -> uint256:
    if queued.amount == 0:
        return 0
    return min(self.shares[operator], queued.amount * self._maximum(operator) // queued.magnitude)


@view
@internal
def _stake(operator: address, key: bytes32, at: uint256) -> uint256:
    """@dev Slashable tokens at block `at`, if nothing is slashed until then and every queue runs its course."""
    maximum: uint256 = self._maximum(operator)
    if maximum == 0:
        return 0
    left: uint256 = self.shares[operator]
    queued: Withdrawal = self.withdrawals[operator]
    if at > queued.since + self._delay():
        left -= self._still_queued(operator, queued)
    return left * self._magnitude(operator, key, at) // maximum


# --- changes ---


@internal
def _join(operator: address, key: bytes32):
    if self._is_slashable(operator, key):
        raw_revert(method_id("AlreadyMemberOfSet()"))
    self._members[key].append(operator)
    self._place[key][operator] = len(self._members[key])


@internal
def _leave(operator: address, key: bytes32):
    place: uint256 = self._place[key][operator]
    if place == 0:
        raw_revert(method_id("NotMemberOfSet()"))
    last: address = self._members[key].pop()
    if last != operator:
        self._members[key][place - 1] = last
        self._place[key][last] = place
    self._place[key][operator] = 0
    self._slashable_until[key][operator] = block.number + self._delay()


@internal
def _complete(operator: address, key: bytes32):
    """@dev Book a deallocation whose delay has passed."""
    held: Allocation = self._allocations[key][operator]
    if held.effect != 0 and block.number >= held.effect:
        self.encumbered[operator] -= held.magnitude - held.next
        self._allocations[key][operator] = Allocation(magnitude=held.next, next=0, effect=0)


@internal
def _allocate(operator: address, key: bytes32, magnitude: uint256) -> uint256:
    """@return the block from which it counts"""
    self._complete(operator, key)
    held: Allocation = self._allocations[key][operator]
    if held.effect != 0:
        raw_revert(method_id("ModificationAlreadyPending()"))
    if magnitude == held.magnitude:
        raw_revert(method_id("SameMagnitude()"))
    if magnitude < held.magnitude and self._is_slashable(operator, key):
        effect: uint256 = block.number + self._delay() + 1
        self._allocations[key][operator].next = magnitude
        self._allocations[key][operator].effect = effect
        return effect
    used: uint256 = self.encumbered[operator] - held.magnitude + magnitude
    if used > self._maximum(operator):
        raw_revert(method_id("InsufficientMagnitude()"))
    self.encumbered[operator] = used
    self._allocations[key][operator].magnitude = magnitude
    return block.number


@internal
def _slash(operator: address, key: bytes32, wad: uint256) -> uint256:
    """@return tokens taken. Magnitudes are rounded against the operator, as EigenLayer does; tokens down."""
    self._complete(operator, key)
    held: Allocation = self._allocations[key][operator]
    gone: uint256 = (held.magnitude * wad + WAD - 1) // WAD
    if gone == 0:
        return 0
    amount: uint256 = self.shares[operator] * gone // self._maximum(operator)
    self._allocations[key][operator].magnitude = held.magnitude - gone
    if held.effect != 0:
        self._allocations[key][operator].next = min(held.magnitude - gone, held.next - held.next * wad // WAD)
    self.encumbered[operator] -= gone
    self._lost[operator] += gone
    self.shares[operator] -= amount
    self.totalShares -= amount
    return amount


# --- views ---


@view
@external
def getMaxMagnitude(operator: address, strategy: address) -> uint64:
    return convert(self._maximum(operator), uint64)


@view
@external
def getAllocation(
    operator: address, operatorSet: IAllocationManager.OperatorSet, strategy: address
) -> (uint64, int128, uint32):
    """@return currentMagnitude, pendingDiff, effectBlock, as EigenLayer's struct"""
    held: Allocation = self._allocations[self._key(operatorSet)][operator]
    if held.effect == 0 or block.number >= held.effect:
        return convert(self._magnitude(operator, self._key(operatorSet), block.number), uint64), 0, 0
    difference: int128 = convert(held.next, int128) - convert(held.magnitude, int128)
    return convert(held.magnitude, uint64), difference, convert(held.effect, uint32)


@view
@external
def isOperatorSlashable(operator: address, operatorSet: IAllocationManager.OperatorSet) -> bool:
    return self._is_slashable(operator, self._key(operatorSet))


@view
@external
def isMemberOfOperatorSet(operator: address, operatorSet: IAllocationManager.OperatorSet) -> bool:
    return self._place[self._key(operatorSet)][operator] != 0


@view
@external
def getMembers(operatorSet: IAllocationManager.OperatorSet) -> DynArray[address, MAX_MEMBERS]:
    return self._members[self._key(operatorSet)]


@view
@external
def getMemberCount(operatorSet: IAllocationManager.OperatorSet) -> uint256:
    return len(self._members[self._key(operatorSet)])


@view
@external
def getMinimumSlashableStake(
    operatorSet: IAllocationManager.OperatorSet,
    operators: DynArray[address, MAX_OPERATORS],
    strategies: DynArray[address, 4],
    futureBlock: uint32,
) -> DynArray[DynArray[uint256, 4], MAX_OPERATORS]:
    """@notice What could be slashed at that block at least; zero for who is not slashable."""
    return self._stakes(operatorSet, operators, strategies, convert(futureBlock, uint256))


@view
@external
def getAllocatedStake(
    operatorSet: IAllocationManager.OperatorSet,
    operators: DynArray[address, MAX_OPERATORS],
    strategies: DynArray[address, 4],
) -> DynArray[DynArray[uint256, 4], MAX_OPERATORS]:
    """@notice What is allocated now, members or not."""
    return self._stakes(operatorSet, operators, strategies, block.number)


@view
@internal
def _stakes(
    operator_set: IAllocationManager.OperatorSet,
    operators: DynArray[address, MAX_OPERATORS],
    strategies: DynArray[address, 4],
    at: uint256,
) -> DynArray[DynArray[uint256, 4], MAX_OPERATORS]:
    found: DynArray[DynArray[uint256, 4], MAX_OPERATORS] = []
    key: bytes32 = self._key(operator_set)
    for operator: address in operators:
        row: DynArray[uint256, 4] = []
        for strategy: address in strategies:
            row.append(self._stake(operator, key, at) if strategy == self else 0)
        found.append(row)
    return found
