# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title What a case is made of: its struct, states, events, and the digests jurors and accusers make
@license Apache-2.0
@notice A module with storage, for ValidationService.vy alone. src/bombyx/protocol/audit/case.py has the same numbers.
"""

GUILTY: constant(uint8) = 1
INNOCENT: constant(uint8) = 2
ABSTAIN: constant(uint8) = 3  # also the outcome of a round without a quorum

DRAWING: constant(uint8) = 1
VOTING: constant(uint8) = 2
DECIDED: constant(uint8) = 3
QUEUED: constant(uint8) = 4
CLOSED: constant(uint8) = 5

SLASHED: constant(uint8) = 1
STRUCK: constant(uint8) = 2
ACQUITTED: constant(uint8) = 3
VOID: constant(uint8) = 4
VETOED: constant(uint8) = 5
PLANTED: constant(uint8) = 6

struct Parameters:
    jury: uint256
    minJury: uint256
    juryDelay: uint256  # blocks
    commitSeconds: uint256
    revealSeconds: uint256
    appealSeconds: uint256
    bond: uint256
    jurorFee: uint256
    patience: uint256  # verdicts missed, or as many given against planted samples, before a juror is dismissed

struct Case:
    state: uint8
    ending: uint8
    round: uint8
    outcome: uint8  # of the last round that was decided
    accused: address
    accuser: address
    appellant: address
    model: bytes32
    evidence: bytes32
    plant: bytes32
    fromEpoch: uint64
    toEpoch: uint64
    openedAt: uint256
    juryBlock: uint256
    commitUntil: uint256
    revealUntil: uint256
    appealUntil: uint256
    vetoUntil: uint256
    sentence: uint256

event CaseOpened:
    id: indexed(uint256)
    accused: indexed(address)
    accuser: indexed(address)
    model: bytes32
    evidence: bytes32
    uri: String[256]
    fromEpoch: uint64
    toEpoch: uint64

event JuryDrawn:
    id: indexed(uint256)
    round: uint8
    jury: DynArray[address, 31]

event VerdictCommitted:
    id: indexed(uint256)
    round: uint8
    juror: indexed(address)

event VerdictRevealed:
    id: indexed(uint256)
    round: uint8
    juror: indexed(address)
    verdict: uint8

event RoundDecided:
    id: indexed(uint256)
    round: uint8
    outcome: uint8

event Appealed:
    id: indexed(uint256)
    appellant: indexed(address)

event PlantRevealed:
    id: indexed(uint256)
    verdict: uint8

event CaseClosed:
    id: indexed(uint256)
    accused: indexed(address)
    ending: uint8
    sentence: uint256

PARAMETERS: immutable(Parameters)
caseCount: public(uint256)
rows: HashMap[uint256, Case]


@deploy
def __init__(terms: Parameters):
    assert terms.minJury >= 2 and terms.jury >= terms.minJury and 2 * terms.jury + 1 <= 31
    assert terms.bond >= terms.jurorFee * terms.jury and terms.juryDelay > 0
    PARAMETERS = terms


@view
@internal
def _in(id: uint256, state: uint8) -> Case:
    """@dev The case, where it is in that state."""
    row: Case = self.rows[id]
    if row.state != state:
        raw_revert(method_id("OutsidePhase()"))
    return row


@pure
@internal
def _commitment(id: uint256, round: uint8, verdict: uint8, salt: bytes32, juror: address) -> bytes32:
    return keccak256(abi_encode(id, round, verdict, salt, juror))


@view
@internal
def _message(id: uint256, round: uint8, verdict: uint8) -> bytes32:
    return keccak256(abi_encode(chain.id, self, id, round, verdict))


@pure
@internal
def _plant(accuser: address, evidence: bytes32, verdict: uint8, salt: bytes32) -> bytes32:
    return keccak256(abi_encode(accuser, evidence, verdict, salt))
