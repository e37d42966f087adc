# SPDX-License-Identifier: Apache-2.0
"""A case against an operator, as the chain keeps it, and what jurors hash and sign in it (spec VAL-6 .. VAL-14).

    DRAWING -> VOTING (commit, then reveal) -> DECIDED -> CLOSED                 innocent, no quorum, or a strike only
                 ^                                |-----> QUEUED -> CLOSED       guilty: the slash waits out the veto
                 +------- appeal: round 2 --------+

Not here: whether an answer is wrong (`verdict`), nor any call to a chain. Moments are whole Unix seconds of the chain's
own clock. Digests are those of `contracts/ValidationService.vy`; differential tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.eip712 import domain_separator, struct_hash, type_hash, typed_digest, word

MAX_JURY: Final = 31  # jurors of one round
MAX_URI: Final = 256  # bytes
WAD: Final = 10**18  # shares of an allocation, as EigenLayer counts them
_CERTIFICATE: Final = type_hash("ECDSACertificate(uint32 referenceTimestamp,bytes32 messageHash)")
_DOMAIN: Final = type_hash("EIP712Domain(string name,string version,address verifyingContract)")
_REFUND: Final = type_hash("RefundClaim(uint256 sentence,bytes32 receipt,address payout)")


class Verdict(IntEnum):
    """What a juror says of the evidence. ABSTAIN: it could not tell; that costs nothing and earns nothing."""

    GUILTY = 1
    INNOCENT = 2
    ABSTAIN = 3


class CaseState(IntEnum):
    DRAWING = 1  # the block whose hash draws the jury is not there yet, or nobody called `draw`
    VOTING = 2
    DECIDED = 3  # the round has an outcome, which may be appealed
    QUEUED = 4  # final and guilty; the veto's time runs
    CLOSED = 5  # nothing moves any more; `Case.ending` says how it ended


class Ending(IntEnum):
    OPEN = 0
    SLASHED = 1
    STRUCK = 2  # guilty: a strike below the threshold, or an offence that was punished already
    ACQUITTED = 3
    VOID = 4  # no two thirds of a jury said the same, or no jury could be drawn
    VETOED = 5
    PLANTED = 6  # a sample with a known answer: nobody was accused in earnest


class Step(IntEnum):
    """What anybody may do now so that a case goes on."""

    NONE = 0
    DRAW = 1
    DECIDE = 2
    EXECUTE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Accusation:
    """What an accuser puts on chain. `plant` is `plant_commitment(...)`, or random bytes that open to nothing: from
    outside both look alike. Epochs are inclusive and have ended."""

    accused: Address
    model: Digest
    evidence: Digest  # SHA-256 of the bundle
    uri: str  # the accuser's validator endpoint
    from_epoch: int
    to_epoch: int
    plant: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One juror's part in the standing round."""

    juror: Address
    committed: bool
    verdict: Verdict | None  # once revealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case. `jury`, `ballots` and `outcome` are the standing round's; zero moments have not been set yet."""

    id: int
    state: CaseState
    accuser: Address
    accusation: Accusation
    round: int  # 1, or 2 after an appeal
    jury_block: int  # its hash draws the jury, once it is older than the newest block
    ballots: tuple[Ballot, ...]
    commit_until: int
    reveal_until: int
    appeal_until: int
    veto_until: int
    outcome: Verdict | None  # GUILTY, INNOCENT, or ABSTAIN where no quorum was met
    ending: Ending
    sentence: int  # of the slasher and of restitution; 0: none
    opened_at: int
    appellant: Address  # zero: nobody appealed

    @property
    def accused(self) -> Address:
        return self.accusation.accused

    @property
    def jury(self) -> tuple[Address, ...]:
        return tuple(ballot.juror for ballot in self.ballots)

    @property
    def quorum(self) -> int:
        """Two thirds of the jury drawn, rounded up. Who stays away counts as not agreeing."""
        return -(-2 * len(self.ballots) // 3)

    @property
    def said(self) -> bool:
        """The standing round's votes are public, or the case is over: nobody can copy one any more."""
        return self.state not in (CaseState.DRAWING, CaseState.VOTING)

    def ballot(self, juror: Address) -> Ballot | None:
        return next((ballot for ballot in self.ballots if ballot.juror == juror), None)

    def may_commit(self, juror: Address, now: int) -> bool:
        mine = self.ballot(juror)
        return self.state is CaseState.VOTING and now < self.commit_until and mine is not None and not mine.committed

    def may_reveal(self, juror: Address, now: int) -> bool:
        mine = self.ballot(juror)
        if mine is None or not mine.committed or mine.verdict is not None:
            return False
        open_ = self.state in (CaseState.VOTING, CaseState.DECIDED)  # decided by a certificate: only the fee is left
        return open_ and self.commit_until <= now < self.reveal_until

    def may_appeal(self, party: Address, now: int) -> bool:
        """The accused against GUILTY, the accuser against INNOCENT; once in a case."""
        loser = {Verdict.GUILTY: self.accused, Verdict.INNOCENT: self.accuser}
        if self.state is not CaseState.DECIDED or self.round != 1 or self.outcome not in loser:
            return False
        return self.reveal_until <= now < self.appeal_until and loser[self.outcome] == party

    def step(self, *, now: int, block: int) -> Step:
        """What is due, where `block` is the newest block's number and `now` its timestamp."""
        if self.state is CaseState.DRAWING and block > self.jury_block:
            return Step.DRAW
        if self.state is CaseState.VOTING and (now >= self.reveal_until or self._all_revealed):
            return Step.DECIDE
        if self.state is CaseState.DECIDED and now >= self.appeal_until:
            return Step.EXECUTE
        if self.state is CaseState.QUEUED and now >= self.veto_until:
            return Step.EXECUTE
        return Step.NONE

    @property
    def _all_revealed(self) -> bool:
        return bool(self.ballots) and all(ballot.verdict is not None for ballot in self.ballots)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRoot:
    """Receipts `first_seq` .. `first_seq + count - 1` of one receipt key; leaves are their EIP-712 digests."""

    epoch: int
    root: Digest
    first_seq: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCommitment:
    """What a validator fixed before an epoch began: `merkle_root` over its canaries, in order."""

    epoch: int
    root: Digest
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A held receipt whose worker must show it inside one of its roots before `answer_until`."""

    id: int
    worker: Address
    challenger: Address
    receipt_key: Address
    seq: int
    leaf: Digest  # the receipt's EIP-712 digest
    answer_until: int
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationParameters:
    """Constants of a deployment. Times in seconds, amounts in base units of the stake token."""

    chain_id: int
    service: Address
    registry: Address
    restitution: Address
    epoch_seconds: int
    root_window: int  # after an epoch's end, in which its roots are taken
    commit_seconds: int
    reveal_seconds: int
    appeal_seconds: int
    veto_seconds: int
    claim_seconds: int  # for refunds, after a slash
    jury: int  # jurors of round 1; round 2 has 2n + 1, as far as there are members
    min_jury: int  # fewer members than this: the case is void
    jury_delay: int  # blocks between opening (or appeal) and the block that draws
    bond: int  # of an accuser
    juror_fee: int
    strikes: int  # convictions within the last `strike_cases` cases that make a slash
    strike_cases: int

    @property
    def appeal_bond(self) -> int:
        """It pays for the bigger jury, and as much again to the other side where it fails."""
        return self.bond + self.juror_fee * (self.jury + 1)

    def epoch_of(self, now: int) -> int:
        return now // self.epoch_seconds

    def epoch_start(self, epoch: int) -> int:
        return epoch * self.epoch_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Restitution:
    """What became of one slash. Amounts in base units; `owed`: per payout address, what was claimed."""

    sentence: int
    operator: Address
    slashed: int
    bounty: int
    for_clients: int
    claimed: int  # sum of accepted claims
    claim_until: int
    finished: bool
    owed: Mapping[Address, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundClaim:
    """A client's claim: `content` is the last part of the receipt's audit commitment (spec AUD), which with `claimant`
    opens it; `signature` is the claimant's over `refund_digest`."""

    claimant: Address
    content: Digest
    payout: Address
    signature: bytes


def verdict_commitment(case: int, round_: int, verdict: Verdict, salt: Digest, juror: Address) -> Digest:
    """What a juror commits to: nobody else can open a copy of it, and no other case or round takes it."""
    return keccak256(word(case), word(round_), word(verdict), salt, word(juror))


def plant_commitment(accuser: Address, evidence: Digest, verdict: Verdict, salt: Digest) -> Digest:
    """What an accuser commits to when it knows the right answer and tests the jury."""
    return keccak256(word(accuser), evidence, word(verdict), salt)


def certificate_message(chain_id: int, service: Address, case: int, round_: int, verdict: Verdict) -> Digest:
    """What a quorum certifies. EigenLayer's domain names no chain, so the message does."""
    return keccak256(word(chain_id), word(service), word(case), word(round_), word(verdict))


def certificate_digest(service: Address, timestamp: int, message: Digest) -> Digest:
    """What each juror signs: EigenLayer's `ECDSACertificate`, under its domain without a chain id."""
    domain = keccak256(_DOMAIN, keccak256(b"EigenLayer"), keccak256(b"v1"), word(service))
    return typed_digest(domain, struct_hash(_CERTIFICATE, word(timestamp), message))


def encode_certificate(signatures: Mapping[Address, bytes]) -> bytes:
    """Signatures one after the other, sorted by signer, as EigenLayer's verifier takes them."""
    return b"".join(signatures[signer] for signer in sorted(signatures))


def refund_digest(chain_id: int, restitution: Address, sentence: int, receipt: Digest, payout: Address) -> Digest:
    """What a claimant signs, so that nobody redirects its refund. `receipt` is the receipt's EIP-712 digest."""
    domain = domain_separator("bombyx restitution", "1", chain_id, restitution)
    return typed_digest(domain, struct_hash(_REFUND, word(sentence), receipt, word(payout)))
