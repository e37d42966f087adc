# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title What was fixed before anybody could know: roots of workers' receipts, validators' plans, beacons
@license Apache-2.0
@notice Time is cut into epochs. After an epoch a worker posts the Merkle root of the receipts it signed, by receipt
    key; the roots of one key cover its receipts without a gap, in order. Before an epoch a validator commits its plan
    of canaries. Once an epoch's roots are final, a block that is still to come is named, and its hash is the beacon.
    Always: nothing posted changes; a receipt's place in its root follows from its seq; a beacon's block was not there
    when it was named, and every root it draws from was.
@custom:security Whoever builds the beacon's block may throw it away and lose its reward: one try more in a while. A
    beacon nobody asks for within 256 blocks is named anew, so validators should ask. A root says what its worker
    chose to put into it: that a receipt is missing or different shows only against a receipt somebody holds
    (ReceiptFaults.vy). Plans are taken from members of the validators' set; a plan says nothing about its quality.
"""

from lib import merkle

interface Registry:
    def keySince(operator: address, key: address) -> uint64: view
    def inSet(operator: address, id: uint32) -> bool: view

VALIDATOR: constant(uint32) = 3
HASHES_KEPT: constant(uint256) = 256  # blocks, by the EVM

struct Root:
    root: bytes32
    epoch: uint64
    firstSeq: uint64
    count: uint64
    postedAt: uint64

struct Plan:
    root: bytes32
    count: uint64

event RootPosted:
    worker: indexed(address)
    receiptKey: indexed(address)
    epoch: indexed(uint64)
    root: bytes32
    firstSeq: uint64
    count: uint64

event PlanCommitted:
    validator: indexed(address)
    epoch: indexed(uint64)
    root: bytes32
    count: uint64

event BeaconNamed:
    epoch: indexed(uint64)
    blockNumber: uint256

event BeaconFixed:
    epoch: indexed(uint64)
    beacon: bytes32

registry: public(immutable(address))
EPOCH: public(immutable(uint64))  # seconds
ROOT_WINDOW: public(immutable(uint64))  # seconds after an epoch in which its roots are taken
BEACON_DELAY: public(immutable(uint64))  # blocks; deeper than a reorg goes
rootCount: public(HashMap[address, HashMap[address, uint256]])
rootAt: public(HashMap[address, HashMap[address, HashMap[uint256, Root]]])  # worker -> key -> index
planOf: public(HashMap[address, HashMap[uint64, Plan]])
beaconBlock: public(HashMap[uint64, uint256])
beaconOf: public(HashMap[uint64, bytes32])


@deploy
def __init__(registry_: address, epoch: uint64, root_window: uint64, beacon_delay: uint64):
    assert epoch > 0 and beacon_delay > 0 and beacon_delay < 128
    registry = registry_
    EPOCH = epoch
    ROOT_WINDOW = root_window
    BEACON_DELAY = beacon_delay


@external
def postRoot(receiptKey: address, epoch: uint64, root: bytes32, firstSeq: uint64, count: uint64):
    """@notice The receipts `firstSeq` .. `firstSeq + count - 1` that the sender's key signed, in that order."""
    if staticcall Registry(registry).keySince(msg.sender, receiptKey) == 0:
        raw_revert(method_id("NotItsKey()"))
    now: uint64 = convert(block.timestamp, uint64)
    if epoch >= now // EPOCH or now >= (epoch + 1) * EPOCH + ROOT_WINDOW:
        raw_revert(method_id("OutsideWindow()"))
    index: uint256 = self.rootCount[msg.sender][receiptKey]
    last: Root = empty(Root)
    if index > 0:
        last = self.rootAt[msg.sender][receiptKey][index - 1]
        if epoch <= last.epoch:
            raw_revert(method_id("AlreadyPosted()"))
    if firstSeq != self._next_seq(msg.sender, receiptKey) or count == 0 or count > 2**32 or root == empty(bytes32):
        raw_revert(method_id("NotConsecutive()"))
    self.rootAt[msg.sender][receiptKey][index] = Root(
        root=root, epoch=epoch, firstSeq=firstSeq, count=count, postedAt=now
    )
    self.rootCount[msg.sender][receiptKey] = index + 1
    log RootPosted(
        worker=msg.sender, receiptKey=receiptKey, epoch=epoch, root=root, firstSeq=firstSeq, count=count
    )


@external
def commitPlan(epoch: uint64, root: bytes32, count: uint64):
    """@notice Which canaries the sender will send in an epoch that has not begun. Once."""
    if not staticcall Registry(registry).inSet(msg.sender, VALIDATOR):
        raw_revert(method_id("NotAValidator()"))
    if epoch <= convert(block.timestamp, uint64) // EPOCH or count == 0 or root == empty(bytes32):
        raw_revert(method_id("OutsideWindow()"))
    if self.planOf[msg.sender][epoch].count != 0:
        raw_revert(method_id("AlreadyPosted()"))
    self.planOf[msg.sender][epoch] = Plan(root=root, count=count)
    log PlanCommitted(validator=msg.sender, epoch=epoch, root=root, count=count)


@external
def fixBeacon(epoch: uint64):
    """@notice First names the block, later keeps its hash. Anyone; two calls an epoch."""
    if convert(block.timestamp, uint64) < (epoch + 1) * EPOCH + ROOT_WINDOW or self.beaconOf[epoch] != empty(bytes32):
        raw_revert(method_id("OutsideWindow()"))
    named: uint256 = self.beaconBlock[epoch]
    if named == 0 or block.number > named + HASHES_KEPT:
        self.beaconBlock[epoch] = block.number + convert(BEACON_DELAY, uint256)
        log BeaconNamed(epoch=epoch, blockNumber=self.beaconBlock[epoch])
        return
    if block.number <= named:
        raw_revert(method_id("TooEarly()"))
    self.beaconOf[epoch] = blockhash(named)
    log BeaconFixed(epoch=epoch, beacon=self.beaconOf[epoch])


# --- views ---


@view
@external
def nextSeq(worker: address, receiptKey: address) -> uint64:
    """@notice The first seq that no root covers yet."""
    return self._next_seq(worker, receiptKey)


@view
@external
def covers(worker: address, receiptKey: address, index: uint256, seq: uint64) -> bool:
    """@notice Whether root `index` is the one the receipt with this seq belongs into."""
    row: Root = self.rootAt[worker][receiptKey][index]
    return row.count != 0 and seq >= row.firstSeq and seq - row.firstSeq < row.count


@view
@external
def includes(
    worker: address,
    receiptKey: address,
    index: uint256,
    seq: uint64,
    leaf: bytes32,
    proof: DynArray[bytes32, merkle.MAX_DEPTH],
) -> bool:
    """@notice Whether `leaf` stands at the place of `seq` in root `index`."""
    row: Root = self.rootAt[worker][receiptKey][index]
    if row.count == 0 or seq < row.firstSeq:
        return False
    place: uint256 = convert(seq - row.firstSeq, uint256)
    return merkle._verifies(row.root, convert(row.count, uint256), place, leaf, proof)


@view
@internal
def _next_seq(worker: address, receipt_key: address) -> uint64:
    index: uint256 = self.rootCount[worker][receipt_key]
    if index == 0:
        return 1
    last: Root = self.rootAt[worker][receipt_key][index - 1]
    return last.firstSeq + last.count
