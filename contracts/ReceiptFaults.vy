# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy off
# SPDX-License-Identifier: Apache-2.0
"""
@title Faults that receipts prove by themselves: one key that says two things, a receipt missing from its root
@license Apache-2.0
@notice Two receipts of one key that cannot both be honest cost the whole allocation at once. Who holds a receipt may
    ask its worker, for a bond, to show it inside one of its roots; silence costs what a jury's conviction would, an
    answer earns the bond.
    Always: a fault is two signatures, or a time that has passed; the key is one its operator published; each pair, and
    each receipt, counts once; tokens held are open bonds and credits.
@custom:security Whoever has broken a worker's enclave can forge its receipts and so its faults: that is what stake
    answers for. A worker must keep receipts as long as they can be asked for (CHALLENGEABLE after their root, RCT-11)
    and post roots after its last receipt, too, before it goes away; being away longer than ANSWER is punished as a
    wrong answer would be, so a worker that lost its disk loses that. Only finals and checkpoints with equal `frames` of
    one request contradict each other, and any two receipts with one seq.
"""

from ethereum.ercs import IERC20
from interfaces import ISlasher
from lib import receipts

interface Roots:
    def nextSeq(worker: address, receiptKey: address) -> uint64: view
    def covers(worker: address, receiptKey: address, index: uint256, seq: uint64) -> bool: view
    def rootAt(worker: address, key: address, index: uint256) -> (bytes32, uint64, uint64, uint64, uint64): view
    def includes(
        worker: address, key: address, index: uint256, seq: uint64, leaf: bytes32, proof: DynArray[bytes32, 32]
    ) -> bool: view

WAD: constant(uint256) = 10**18

struct Parameters:
    bond: uint256
    answerSeconds: uint256  # more than an epoch and its root window, so that the root can be there
    challengeable: uint256  # seconds after a root was posted; less than receipts are kept

struct Challenge:
    worker: address
    challenger: address
    receiptKey: address
    seq: uint64
    leaf: bytes32
    answerUntil: uint256
    settled: bool

event EquivocationProven:
    operator: indexed(address)
    receiptKey: indexed(address)
    one: bytes32
    other: bytes32

event Challenged:
    id: indexed(uint256)
    worker: indexed(address)
    challenger: indexed(address)
    leaf: bytes32

event Answered:
    id: indexed(uint256)

event Defaulted:
    id: indexed(uint256)

token: public(immutable(address))
registry: public(immutable(address))
roots: public(immutable(address))
slasher: immutable(ISlasher)
PARAMETERS: immutable(Parameters)
proven: public(HashMap[bytes32, bool])  # keccak256(receipt key, what both share)
challenged: public(HashMap[bytes32, bool])  # by leaf
challenges: public(HashMap[uint256, Challenge])
challengeCount: public(uint256)
credits: public(HashMap[address, uint256])


@deploy
def __init__(token_: address, registry_: address, roots_: address, slasher_: address, terms: Parameters):
    token = token_
    registry = registry_
    roots = roots_
    slasher = ISlasher(slasher_)
    PARAMETERS = terms


@external
@nonreentrant
def proveEquivocation(one: receipts.SignedReceipt, other: receipts.SignedReceipt):
    """@notice Two receipts of one key with one seq, or two that settle one request differently. Slashed at once."""
    key: address = receipts._key(registry, one)
    digests: bytes32[2] = [receipts._digest(registry, one.receipt), receipts._digest(registry, other.receipt)]
    same_operator: bool = one.receipt.operator == other.receipt.operator
    if not same_operator or receipts._key(registry, other) != key or digests[0] == digests[1]:
        raw_revert(method_id("NoContradiction()"))
    shared: bytes32 = keccak256(abi_encode(key, one.receipt.seq))
    if one.receipt.seq != other.receipt.seq:
        shared = keccak256(abi_encode(key, one.receipt.requestHash))
        if one.receipt.requestHash != other.receipt.requestHash or one.receipt.kind != other.receipt.kind:
            raw_revert(method_id("NoContradiction()"))
        if one.receipt.kind != receipts.FINAL and one.receipt.frames != other.receipt.frames:
            raw_revert(method_id("NoContradiction()"))
    if self.proven[shared]:
        raw_revert(method_id("ProvenAlready()"))
    self.proven[shared] = True
    log EquivocationProven(operator=one.receipt.operator, receiptKey=key, one=digests[0], other=digests[1])
    extcall slasher.punish(one.receipt.operator, msg.sender, WAD, "equivocation")


# --- receipts missing from roots ---


@external
@nonreentrant
def challengeReceipt(held: receipts.SignedReceipt, index: uint256) -> uint256:
    """
    @notice Ask a worker for the place of a receipt. `index`: the root that covers its seq, if one does yet. Bonded.
    """
    key: address = receipts._key(registry, held)
    worker: address = held.receipt.operator
    leaf: bytes32 = receipts._digest(registry, held.receipt)
    if self.challenged[leaf]:
        raw_revert(method_id("ChallengedAlready()"))
    if held.receipt.seq < staticcall Roots(roots).nextSeq(worker, key):
        root: bytes32 = empty(bytes32)
        epoch: uint64 = 0
        first: uint64 = 0
        count: uint64 = 0
        posted: uint64 = 0
        root, epoch, first, count, posted = staticcall Roots(roots).rootAt(worker, key, index)
        covered: bool = staticcall Roots(roots).covers(worker, key, index, held.receipt.seq)
        if not covered or block.timestamp > convert(posted, uint256) + PARAMETERS.challengeable:
            raw_revert(method_id("TooLate()"))
    self.challenged[leaf] = True
    self.challengeCount += 1
    id: uint256 = self.challengeCount
    self.challenges[id] = Challenge(
        worker=worker,
        challenger=msg.sender,
        receiptKey=key,
        seq=held.receipt.seq,
        leaf=leaf,
        answerUntil=block.timestamp + PARAMETERS.answerSeconds,
        settled=False,
    )
    log Challenged(id=id, worker=worker, challenger=msg.sender, leaf=leaf)
    assert extcall IERC20(token).transferFrom(msg.sender, self, PARAMETERS.bond, default_return_value=True)
    return id


@external
@nonreentrant
def answerChallenge(id: uint256, index: uint256, proof: DynArray[bytes32, 32]):
    """@notice Show the receipt inside root `index`. Anyone; the bond is the worker's."""
    row: Challenge = self._open(id)
    if block.timestamp >= row.answerUntil:
        raw_revert(method_id("TooLate()"))
    if not staticcall Roots(roots).includes(row.worker, row.receiptKey, index, row.seq, row.leaf, proof):
        raw_revert(method_id("NotIncluded()"))
    self.challenges[id].settled = True
    self.credits[row.worker] += PARAMETERS.bond
    log Answered(id=id)


@external
@nonreentrant
def defaultChallenge(id: uint256):
    """@notice Nobody has shown it in time. Anyone."""
    row: Challenge = self._open(id)
    if block.timestamp < row.answerUntil:
        raw_revert(method_id("TooEarly()"))
    self.challenges[id].settled = True
    self.credits[row.challenger] += PARAMETERS.bond
    log Defaulted(id=id)
    extcall slasher.punish(row.worker, row.challenger, 0, "receipt missing from its root")


@external
@nonreentrant
def collect(account: address):
    """@notice Send an account its returned and earned bonds. Anyone."""
    amount: uint256 = self.credits[account]
    self.credits[account] = 0
    assert extcall IERC20(token).transfer(account, amount, default_return_value=True)


@view
@internal
def _open(id: uint256) -> Challenge:
    row: Challenge = self.challenges[id]
    if row.worker == empty(address) or row.settled:
        raw_revert(method_id("NoSuchChallenge()"))
    return row


@view
@external
def parameters() -> Parameters:
    return PARAMETERS
