# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Where slashed stake goes: clients first, a bounded bounty, the rest an insurance pool
@license Apache-2.0
@notice After a slash whoever holds receipts of the convicted worker claims what it paid, for a time; then the clients'
    part is shared among the claims, pro rata where it does not suffice. A claim needs the worker's signed receipt, the
    opening of its audit commitment up to the claimant, and the claimant's signature naming where the money goes: so
    neither the worker nor whoever sees a receipt can redirect it, and no prompt is shown.
    Always: a receipt is refunded once; no more is paid for a sentence than came in; tokens held are the insurance, the
    open parts, what is reserved for claims and the credits.
@custom:security A worker can sign receipts for itself and claim on its own slash. What it wins back is bounded by
    CLIENT_BPS of it, by REFUND_CAP a receipt, and by receipts signed before the slash; the rest it loses whatever it
    signs. Clients share pro rata with such claims: deployments set the stake far above an epoch's fees. Receipts count
    by the enclave's clock: a worker that set it wrong loses nothing by that, and its clients may lose their refund.
    Commission is not refunded: receipts do not carry it. The stake token must be the token clients pay in. `steward`
    grants from the insurance, in public; the zero address means nobody does. What rounding leaves stays here.
"""

from ethereum.ercs import IERC20
from interfaces import IRestitution
from lib import receipts
from lib import signatures

implements: IRestitution

BPS: constant(uint256) = 10_000
NAME_HASH: constant(bytes32) = keccak256("bombyx restitution")
VERSION_HASH: constant(bytes32) = keccak256("1")
CLAIM_TYPEHASH: constant(bytes32) = keccak256("RefundClaim(uint256 sentence,bytes32 receipt,address payout)")
AUDIT_TAG: constant(bytes32) = sha256("bombyx audit v2")
CLAIM_TAG: constant(bytes32) = sha256("bombyx claim v1")

struct Parameters:
    claimSeconds: uint256
    epochSeconds: uint256
    bountyBps: uint256
    bountyMost: uint256
    clientBps: uint256
    refundCap: uint256

struct Row:
    operator: address
    model: bytes32  # zero: any
    since: uint256  # ms; receipts finished from here on
    until: uint256  # ms
    claimUntil: uint256  # seconds
    slashed: uint256
    bounty: uint256
    forClients: uint256
    claimed: uint256
    paid: uint256  # of `claimed`, once finished
    finished: bool

event Opened:
    sentence: indexed(uint256)
    operator: indexed(address)
    slashed: uint256
    bounty: uint256
    forClients: uint256

event RefundClaimed:
    sentence: indexed(uint256)
    payout: indexed(address)
    receipt: bytes32
    amount: uint256

event RefundsFinished:
    sentence: indexed(uint256)
    claimed: uint256
    paid: uint256

event RefundPaid:
    sentence: indexed(uint256)
    payout: indexed(address)
    amount: uint256

event Granted:
    to: indexed(address)
    amount: uint256

token: public(immutable(address))
registry: public(immutable(address))
slasher: public(immutable(address))
steward: public(immutable(address))
PARAMETERS: immutable(Parameters)
rows: public(HashMap[uint256, Row])
owed: public(HashMap[uint256, HashMap[address, uint256]])
refunded: public(HashMap[bytes32, bool])  # keccak256(receipt key, seq)
credits: public(HashMap[address, uint256])
insurance: public(uint256)
accounted: public(uint256)  # tokens that have a meaning here


@deploy
def __init__(token_: address, registry_: address, slasher_: address, steward_: address, terms: Parameters):
    assert terms.bountyBps + terms.clientBps <= BPS
    token = token_
    registry = registry_
    slasher = slasher_
    steward = steward_
    PARAMETERS = terms


@external
def open(
    sentence: uint256, operator: address, model: bytes32, fromEpoch: uint64, accuser: address, amount: uint256
):
    """@notice The slasher says that `amount` has come in for a sentence."""
    self._take_in(amount)
    terms: Parameters = PARAMETERS
    bounty: uint256 = min(amount * terms.bountyBps // BPS, terms.bountyMost)
    for_clients: uint256 = amount * terms.clientBps // BPS
    self.credits[accuser] += bounty
    self.insurance += amount - bounty - for_clients
    self.rows[sentence] = Row(
        operator=operator,
        model=model,
        since=convert(fromEpoch, uint256) * terms.epochSeconds * 1000,
        until=block.timestamp * 1000,
        claimUntil=block.timestamp + terms.claimSeconds,
        slashed=amount,
        bounty=bounty,
        forClients=for_clients,
        claimed=0,
        paid=0,
        finished=False,
    )
    log Opened(sentence=sentence, operator=operator, slashed=amount, bounty=bounty, forClients=for_clients)


@external
def insure(amount: uint256):
    """@notice The slasher says that `amount` has come in for the pool alone."""
    self._take_in(amount)
    self.insurance += amount


@internal
def _take_in(amount: uint256):
    if msg.sender != slasher:
        raw_revert(method_id("OnlySlasher()"))
    self.accounted += amount
    if staticcall IERC20(token).balanceOf(self) < self.accounted:
        raw_revert(method_id("NothingCame()"))


# --- claims ---


@external
def claimRefund(
    sentence: uint256,
    held: receipts.SignedReceipt,
    claimant: address,
    content: bytes32,
    payout: address,
    signature: Bytes[1024],
):
    """@notice Claim what one answer cost. Anyone may send it: the claimant's signature says where the money goes."""
    row: Row = self.rows[sentence]
    if block.timestamp >= row.claimUntil or payout == empty(address):
        raw_revert(method_id("TooLate()"))
    receipt: receipts.Receipt = held.receipt
    if receipt.kind != receipts.FINAL or receipt.operator != row.operator:
        raw_revert(method_id("OtherReceipt()"))
    if row.model != empty(bytes32) and receipt.model != row.model:
        raw_revert(method_id("OtherReceipt()"))
    finished: uint256 = convert(receipt.finishedAt, uint256)
    if finished < row.since or finished >= row.until:
        raw_revert(method_id("OtherReceipt()"))
    place: bytes32 = keccak256(abi_encode(receipts._key(registry, held), receipt.seq))
    if self.refunded[place]:
        raw_revert(method_id("RefundedAlready()"))
    leaf: bytes32 = sha256(concat(CLAIM_TAG, convert(claimant, bytes20)))
    if sha256(concat(AUDIT_TAG, leaf, content)) != receipt.auditCommitment:
        raw_revert(method_id("NotItsClaimant()"))
    digest: bytes32 = receipts._digest(registry, receipt)
    signed: bytes32 = signatures._typed(
        signatures._separator(NAME_HASH, VERSION_HASH),
        keccak256(abi_encode(CLAIM_TYPEHASH, sentence, digest, payout)),
    )
    if not signatures._is_signed(claimant, signed, signature):
        raw_revert(method_id("NotItsClaimant()"))
    amount: uint256 = min(convert(receipt.charge, uint256), PARAMETERS.refundCap)
    self.refunded[place] = True
    self.owed[sentence][payout] += amount
    self.rows[sentence].claimed += amount
    log RefundClaimed(sentence=sentence, payout=payout, receipt=digest, amount=amount)


@external
def finishRefunds(sentence: uint256):
    """@notice When claiming is over: what is not claimed goes to the insurance. Anyone, once."""
    row: Row = self.rows[sentence]
    if row.claimUntil == 0 or block.timestamp < row.claimUntil or row.finished:
        raw_revert(method_id("TooEarly()"))
    spent: uint256 = min(row.claimed, row.forClients)
    self.rows[sentence].paid = spent
    self.rows[sentence].finished = True
    self.insurance += row.forClients - spent
    log RefundsFinished(sentence=sentence, claimed=row.claimed, paid=spent)


@external
def payRefund(sentence: uint256, payout: address):
    """@notice Send a payout address its part. Anyone."""
    row: Row = self.rows[sentence]
    due: uint256 = self.owed[sentence][payout]
    if not row.finished or due == 0:
        raw_revert(method_id("NothingOwed()"))
    self.owed[sentence][payout] = 0
    amount: uint256 = due * row.paid // row.claimed
    self._pay(payout, amount)
    log RefundPaid(sentence=sentence, payout=payout, amount=amount)


@external
def collect(account: address):
    """@notice Send an account its bounties. Anyone."""
    amount: uint256 = self.credits[account]
    self.credits[account] = 0
    self._pay(account, amount)


@external
def grant(to: address, amount: uint256):
    """@notice Pay from the insurance. The steward."""
    if msg.sender != steward or amount > self.insurance:
        raw_revert(method_id("OnlySteward()"))
    self.insurance -= amount
    self._pay(to, amount)
    log Granted(to=to, amount=amount)


@internal
def _pay(to: address, amount: uint256):
    self.accounted -= amount
    assert extcall IERC20(token).transfer(to, amount, default_return_value=True)


@view
@external
def parameters() -> Parameters:
    return PARAMETERS
