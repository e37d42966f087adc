# pragma version 0.4.3
# SPDX-License-Identifier: Apache-2.0
"""
@title A round's votes: hidden, then shown, or certified; and its outcome
@license Apache-2.0
@notice A module with storage, for ValidationService.vy alone.
    Always: a juror votes once a round; an outcome takes two thirds of the jury drawn, present or not; a commitment
    names case, round and juror, so a copied one opens for nobody; a certificate names chain, contract, case and round, and
    its signers have committed, so waiting to see what others say is too late.
"""

from lib import cases
from lib import quorum

uses: cases

MAX_JURY: constant(uint256) = 31
jury: HashMap[uint256, HashMap[uint8, DynArray[address, MAX_JURY]]]  # case -> round
commitments: HashMap[uint256, HashMap[uint8, HashMap[address, bytes32]]]
verdicts: HashMap[uint256, HashMap[uint8, HashMap[address, uint8]]]
tally: HashMap[uint256, HashMap[uint8, HashMap[uint8, uint256]]]  # by verdict; 0: how many have committed


@external
def commitVerdict(id: uint256, commitment: bytes32):
    """@notice A juror's hidden verdict. The last juror's ends the phase."""
    row: cases.Case = cases._in(id, cases.VOTING)
    if block.timestamp >= row.commitUntil or commitment == empty(bytes32):
        raw_revert(method_id("OutsidePhase()"))
    if msg.sender not in self.jury[id][row.round]:
        raw_revert(method_id("NotAJuror()"))
    if self.commitments[id][row.round][msg.sender] != empty(bytes32):
        raw_revert(method_id("AlreadyVoted()"))
    self.commitments[id][row.round][msg.sender] = commitment
    self.tally[id][row.round][0] += 1
    log cases.VerdictCommitted(id=id, round=row.round, juror=msg.sender)
    if self.tally[id][row.round][0] == len(self.jury[id][row.round]):
        self._begin_reveals(id)


@external
def revealVerdict(id: uint256, verdict: uint8, salt: bytes32):
    """@notice Show what was committed. After a certificate too: only who reveals earns the fee."""
    row: cases.Case = cases.rows[id]
    if row.state != cases.VOTING and row.state != cases.DECIDED:
        raw_revert(method_id("OutsidePhase()"))
    if block.timestamp < row.commitUntil or block.timestamp >= row.revealUntil:
        raw_revert(method_id("OutsidePhase()"))
    committed: bytes32 = self.commitments[id][row.round][msg.sender]
    if committed == empty(bytes32) or committed != cases._commitment(id, row.round, verdict, salt, msg.sender):
        raw_revert(method_id("NotWhatWasCommitted()"))
    if self.verdicts[id][row.round][msg.sender] != 0 or verdict < cases.GUILTY or verdict > cases.ABSTAIN:
        raw_revert(method_id("AlreadyVoted()"))
    self.verdicts[id][row.round][msg.sender] = verdict
    self.tally[id][row.round][verdict] += 1
    log cases.VerdictRevealed(id=id, round=row.round, juror=msg.sender, verdict=verdict)


@external
def certify(id: uint256, verdict: uint8, timestamp: uint32, certificate: Bytes[65 * quorum.MAX_SIGNERS]):
    """@notice End the round by the signatures of two thirds of its jury, all of whom have committed. Anyone."""
    row: cases.Case = cases._in(id, cases.VOTING)
    at: uint256 = convert(timestamp, uint256)
    if (verdict != cases.GUILTY and verdict != cases.INNOCENT) or at < row.openedAt or at > block.timestamp:
        raw_revert(method_id("OutsidePhase()"))
    digest: bytes32 = quorum._certificate_digest(timestamp, cases._message(id, row.round, verdict))
    signers: DynArray[address, quorum.MAX_SIGNERS] = quorum._signers(digest, certificate)
    for signer: address in signers:
        if self.commitments[id][row.round][signer] == empty(bytes32):
            raw_revert(method_id("NotAJuror()"))
    if 3 * len(signers) < 2 * len(self.jury[id][row.round]):
        raw_revert(method_id("NoQuorum()"))
    if block.timestamp < row.commitUntil:
        self._begin_reveals(id)
    self._decide(id, row.round, verdict, max(block.timestamp, cases.rows[id].revealUntil))


@external
def decide(id: uint256):
    """@notice Count a round's verdicts: once all are shown, or the time is up. Anyone."""
    row: cases.Case = cases._in(id, cases.VOTING)
    size: uint256 = len(self.jury[id][row.round])
    guilty: uint256 = self.tally[id][row.round][cases.GUILTY]
    innocent: uint256 = self.tally[id][row.round][cases.INNOCENT]
    shown: uint256 = guilty + innocent + self.tally[id][row.round][cases.ABSTAIN]
    if block.timestamp < row.revealUntil:
        if shown < size:
            raw_revert(method_id("TooEarly()"))
        cases.rows[id].revealUntil = block.timestamp
    outcome: uint8 = cases.ABSTAIN
    if 3 * guilty >= 2 * size:
        outcome = cases.GUILTY
    elif 3 * innocent >= 2 * size:
        outcome = cases.INNOCENT
    self._decide(id, row.round, outcome, block.timestamp)


@internal
def _begin(id: uint256, round: uint8, drawn: DynArray[address, MAX_JURY]):
    self.jury[id][round] = drawn
    cases.rows[id].state = cases.VOTING
    cases.rows[id].commitUntil = block.timestamp + cases.PARAMETERS.commitSeconds
    cases.rows[id].revealUntil = cases.rows[id].commitUntil + cases.PARAMETERS.revealSeconds
    log cases.JuryDrawn(id=id, round=round, jury=drawn)


@internal
def _begin_reveals(id: uint256):
    cases.rows[id].commitUntil = block.timestamp
    cases.rows[id].revealUntil = block.timestamp + cases.PARAMETERS.revealSeconds


@internal
def _decide(id: uint256, round: uint8, outcome: uint8, since: uint256):
    """@dev A second round is final: nobody appeals again."""
    cases.rows[id].state = cases.DECIDED
    cases.rows[id].outcome = outcome
    cases.rows[id].appealUntil = since + cases.PARAMETERS.appealSeconds if round == 1 else since
    log cases.RoundDecided(id=id, round=round, outcome=outcome)


# --- views ---


@view
@external
def juryOf(id: uint256, round: uint8) -> DynArray[address, MAX_JURY]:
    return self.jury[id][round]


@view
@external
def commitmentOf(id: uint256, round: uint8, juror: address) -> bytes32:
    return self.commitments[id][round][juror]


@view
@external
def verdictOf(id: uint256, round: uint8, juror: address) -> uint8:
    return self.verdicts[id][round][juror]


@view
@external
def certificateDigest(id: uint256, round: uint8, verdict: uint8, timestamp: uint32) -> bytes32:
    """@notice What jurors sign for `certify`."""
    return quorum._certificate_digest(timestamp, cases._message(id, round, verdict))
