# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy off
# SPDX-License-Identifier: Apache-2.0
"""
@title Cases against workers: bonded accusations, drawn juries, hidden votes, one appeal
@license Apache-2.0
@notice Evidence stays off chain; here stand its digest, who says what of it, and what follows. A later block draws the
    jury; jurors commit, then reveal; two thirds of the jury make an outcome, or a certificate they signed does. The
    loser may appeal to a bigger jury. A conviction goes to the slasher, which counts strikes and waits out the veto.
    Always: no outcome without two thirds of a jury of at least two, none of whom is the accuser or the accused; a
    closed case never moves again; tokens held are the bonds of open cases and the credits.
@custom:security Two thirds of a jury that collude convict or acquit whom they like, up to the appeal and the veto:
    juries are drawn so that this takes about two thirds of the stake in the set. Who builds the drawing block may try
    again at the price of a block. Jurors that vote against the final outcome lose their fee, never stake; one that
    hides a verdict it committed loses a small fine. A planted sample costs its planter the fees (and the bond, where it
    says INNOCENT), and tells against a juror only where the majority agrees with it; a planter of a GUILTY sample names
    a worker of its own, which is slashed if the plant is not shown. Evidence that cannot be fetched is for jurors to
    abstain on. An appeal whose jury cannot be drawn fails.
"""

from ethereum.ercs import IERC20
from interfaces import IAllocationManager
from lib import bonds
from lib import cases
from lib import jury
from lib import votes

initializes: cases
initializes: votes[cases := cases]
initializes: bonds[cases := cases, votes := votes]
exports: (
    bonds.token,
    bonds.slasher,
    bonds.credits,
    bonds.strikes,
    bonds.blunders,
    bonds.collect,
    cases.caseCount,
    votes.commitVerdict,
    votes.revealVerdict,
    votes.certify,
    votes.decide,
    votes.juryOf,
    votes.commitmentOf,
    votes.verdictOf,
    votes.certificateDigest,
)

interface Roots:
    def EPOCH() -> uint64: view
    def rootAt(worker: address, key: address, index: uint256) -> (bytes32, uint64, uint64, uint64, uint64): view

interface ValidationRegistry:
    def validationResponse(
        requestHash: bytes32, response: uint8, responseURI: String[256], responseHash: bytes32, tag: String[64]
    ): nonpayable

WORKER: constant(uint32) = 2
VALIDATOR: constant(uint32) = 3
HASHES_KEPT: constant(uint256) = 256  # blocks, by the EVM

registry: public(immutable(address))
manager: immutable(IAllocationManager)
roots: public(immutable(address))
validations: public(immutable(address))  # ERC-8004's validation registry, or zero
_uris: HashMap[uint256, String[256]]


@deploy
def __init__(
    token_: address,
    registry_: address,
    manager_: address,
    slasher_: address,
    roots_: address,
    validations_: address,
    terms: cases.Parameters,
):
    registry = registry_
    manager = IAllocationManager(manager_)
    roots = roots_
    validations = validations_
    cases.__init__(terms)
    bonds.__init__(token_, slasher_)


@external
@nonreentrant
def openCase(
    accused: address,
    model: bytes32,
    evidence: bytes32,
    uri: String[256],
    fromEpoch: uint64,
    toEpoch: uint64,
    plant: bytes32,
) -> uint256:
    """@notice Accuse a worker of wrong answers in epochs that have ended. Anyone who pays the bond."""
    worker: IAllocationManager.OperatorSet = IAllocationManager.OperatorSet(avs=registry, id=WORKER)
    if accused == msg.sender or not staticcall manager.isOperatorSlashable(accused, worker):
        raw_revert(method_id("NotAccusable()"))
    now: uint64 = convert(block.timestamp, uint64)
    if fromEpoch > toEpoch or toEpoch >= now // staticcall Roots(roots).EPOCH():
        raw_revert(method_id("NotYetOver()"))
    cases.caseCount += 1
    id: uint256 = cases.caseCount
    row: cases.Case = empty(cases.Case)
    row.state = cases.DRAWING
    row.round = 1
    row.accused = accused
    row.accuser = msg.sender
    row.model = model
    row.evidence = evidence
    row.plant = plant
    row.fromEpoch = fromEpoch
    row.toEpoch = toEpoch
    row.openedAt = block.timestamp
    row.juryBlock = block.number + cases.PARAMETERS.juryDelay
    cases.rows[id] = row
    self._uris[id] = uri
    log cases.CaseOpened(
        id=id,
        accused=accused,
        accuser=msg.sender,
        model=model,
        evidence=evidence,
        uri=uri,
        fromEpoch=fromEpoch,
        toEpoch=toEpoch,
    )
    assert extcall IERC20(bonds.token).transferFrom(msg.sender, self, cases.PARAMETERS.bond, default_return_value=True)
    return id


@external
@nonreentrant
def draw(id: uint256):
    """@notice Draw the jury by the hash of its block; anew, where nobody did within 256 blocks. Anyone."""
    row: cases.Case = cases._in(id, cases.DRAWING)
    if block.number <= row.juryBlock:
        raw_revert(method_id("TooEarly()"))
    if block.number > row.juryBlock + HASHES_KEPT:
        cases.rows[id].juryBlock = block.number + cases.PARAMETERS.juryDelay
        return
    seed: bytes32 = keccak256(abi_encode(blockhash(row.juryBlock), id, row.round))
    size: uint256 = cases.PARAMETERS.jury if row.round == 1 else 2 * cases.PARAMETERS.jury + 1
    members: DynArray[address, 512] = staticcall manager.getMembers(
        IAllocationManager.OperatorSet(avs=registry, id=VALIDATOR)
    )
    drawn: DynArray[address, 31] = jury._drawn(registry, members, seed, size, [row.accuser, row.accused])
    if len(drawn) >= cases.PARAMETERS.minJury:
        votes._begin(id, row.round, drawn)
    elif row.round == 1:
        bonds._close(id, row, cases.VOID, cases.ABSTAIN)
    else:
        cases.rows[id].state = cases.DECIDED
        cases.rows[id].appealUntil = block.timestamp


@external
@nonreentrant
def appeal(id: uint256):
    """@notice The accused against a conviction, the accuser against an acquittal. Once, for a bond."""
    row: cases.Case = cases._in(id, cases.DECIDED)
    if row.round != 1 or block.timestamp < row.revealUntil or block.timestamp >= row.appealUntil:
        raw_revert(method_id("OutsidePhase()"))
    loser: address = row.accused if row.outcome == cases.GUILTY else row.accuser
    if row.outcome == cases.ABSTAIN or msg.sender != loser:
        raw_revert(method_id("NotTheLoser()"))
    cases.rows[id].appellant = loser
    cases.rows[id].round = 2
    cases.rows[id].state = cases.DRAWING
    cases.rows[id].juryBlock = block.number + cases.PARAMETERS.juryDelay
    log cases.Appealed(id=id, appellant=loser)
    assert extcall IERC20(bonds.token).transferFrom(loser, self, bonds._appeal_bond(), default_return_value=True)


@external
@nonreentrant
def revealPlant(id: uint256, verdict: uint8, salt: bytes32):
    """@notice The accuser shows that it knew the answer. Jurors against it and the majority get a strike."""
    row: cases.Case = cases.rows[id]
    if row.state != cases.DECIDED and row.state != cases.QUEUED:
        raw_revert(method_id("OutsidePhase()"))
    if msg.sender != row.accuser or row.plant != cases._plant(msg.sender, row.evidence, verdict, salt):
        raw_revert(method_id("NotWhatWasCommitted()"))
    if verdict != row.outcome or verdict == cases.ABSTAIN or block.timestamp < row.revealUntil:
        raw_revert(method_id("OutsidePhase()"))
    cases.rows[id].plant = empty(bytes32)
    log cases.PlantRevealed(id=id, verdict=verdict)
    for juror: address in votes.jury[id][row.round]:
        said: uint8 = votes.verdicts[id][row.round][juror]
        if said == cases.GUILTY or said == cases.INNOCENT:
            bonds._tell(juror, said == verdict)
    if verdict == cases.GUILTY:
        if row.state == cases.QUEUED:
            extcall bonds.slasher.cancelSlashingRequest(row.sentence)
        bonds._close(id, row, cases.PLANTED, cases.GUILTY)


@external
@nonreentrant
def execute(id: uint256):
    """@notice What is due once nobody may appeal, and once nobody may veto. Anyone."""
    row: cases.Case = cases.rows[id]
    if row.state == cases.QUEUED and block.timestamp >= row.vetoUntil:
        ended: uint8 = extcall bonds.slasher.fulfillSlashingRequest(row.sentence)
        bonds._close(id, row, ended, cases.GUILTY)
        return
    if row.state != cases.DECIDED or block.timestamp < row.appealUntil:
        raw_revert(method_id("TooEarly()"))
    if row.outcome == cases.ABSTAIN:
        bonds._close(id, row, cases.VOID, cases.ABSTAIN)
    elif row.outcome == cases.INNOCENT:
        extcall bonds.slasher.acquit(row.accused)
        bonds._close(id, row, cases.ACQUITTED, cases.INNOCENT)
    else:
        sentence: uint256 = extcall bonds.slasher.convict(
            row.accused, row.accuser, row.model, row.fromEpoch, row.toEpoch
        )
        if sentence == 0:
            bonds._close(id, row, cases.STRUCK, cases.GUILTY)
        else:
            cases.rows[id].state = cases.QUEUED
            cases.rows[id].sentence = sentence
            cases.rows[id].vetoUntil = staticcall bonds.slasher.executableAt(sentence)


@external
def publish(id: uint256, receiptKey: address, index: uint256):
    """@notice Say how a case ended in ERC-8004's words, where its worker had asked us about that root. Anyone."""
    row: cases.Case = cases._in(id, cases.CLOSED)
    if row.ending == cases.VOID or row.ending == cases.VETOED or row.ending == cases.PLANTED:
        raw_revert(method_id("NothingToSay()"))
    root: bytes32 = empty(bytes32)
    epoch: uint64 = 0
    first: uint64 = 0
    count: uint64 = 0
    posted: uint64 = 0
    root, epoch, first, count, posted = staticcall Roots(roots).rootAt(row.accused, receiptKey, index)
    if count == 0 or epoch < row.fromEpoch or epoch > row.toEpoch:
        raw_revert(method_id("OtherReceipt()"))
    response: uint8 = 100 if row.ending == cases.ACQUITTED else 0
    extcall ValidationRegistry(validations).validationResponse(
        root, response, self._uris[id], row.evidence, "posp-re-exec"
    )


# --- views ---


@view
@external
def caseOf(id: uint256) -> (cases.Case, String[256]):
    return cases.rows[id], self._uris[id]


@view
@external
def parameters() -> cases.Parameters:
    return cases.PARAMETERS
