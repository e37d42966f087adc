# SPDX-License-Identifier: Apache-2.0
"""A chain's part of the game in memory: plans, cases, juries, sentences. `contracts/` has the real rules; these suffice
to play the roles against each other. Time is the test's clock; blocks come one a second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from bombyx.errors import PaymentError
from bombyx.protocol.audit.case import (
    Accusation,
    Ballot,
    Case,
    CaseState,
    Ending,
    EpochRoot,
    PlanCommitment,
    Restitution,
    Step,
    ValidationParameters,
    Verdict,
    certificate_digest,
    certificate_message,
    plant_commitment,
    verdict_commitment,
)
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.signing import SigningKey, recover

PARAMETERS = ValidationParameters(
    chain_id=31337,
    service=Address(b"s" * 20),
    registry=Address(b"R" * 20),
    restitution=Address(b"r" * 20),
    epoch_seconds=30,
    root_window=10,
    commit_seconds=20,
    reveal_seconds=15,
    appeal_seconds=20,
    veto_seconds=10,
    claim_seconds=20,
    jury=3,
    min_jury=3,
    jury_delay=1,
    bond=100,
    juror_fee=10,
    strikes=1,
    strike_cases=5,
)
NOBODY = Address.zero()


@dataclass
class Court:
    """One object for all roles; `ports.Validation` as far as validators use it."""

    clock: Any
    members: list[Address] = field(default_factory=list)
    plans: dict[tuple[Address, int], PlanCommitment] = field(default_factory=dict)
    kept: dict[int, Case] = field(default_factory=dict)
    commitments: dict[tuple[int, int, Address], Digest] = field(default_factory=dict)
    ejected: list[Address] = field(default_factory=list)
    owed: dict[int, dict[Address, int]] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    planted: list[int] = field(default_factory=list)
    roots: dict[tuple[Address, Address], EpochRoot] = field(default_factory=dict)
    struck: list[Address] = field(default_factory=list)
    paid: int = 0

    async def parameters(self) -> ValidationParameters:
        return PARAMETERS

    async def now(self) -> tuple[int, int]:
        seconds = self.clock.now().seconds
        return seconds, seconds

    async def commit_plan(self, epoch: int, root: Digest, count: int, *, signer: SigningKey) -> Digest:
        now, _ = await self.now()
        if now >= PARAMETERS.epoch_start(epoch) or (signer.address, epoch) in self.plans:
            raise PaymentError("too late, or twice", rule="VAL-2")
        self.plans[signer.address, epoch] = PlanCommitment(epoch=epoch, root=root, count=count)
        return root

    async def plan_of(self, validator: Address, epoch: int) -> PlanCommitment | None:
        return self.plans.get((validator, epoch))

    async def roots_of(self, worker: Address, receipt_key: Address) -> tuple[Any, ...]:
        return ()

    async def last_root(self, worker: Address, receipt_key: Address) -> EpochRoot | None:
        return self.roots.get((worker, receipt_key))

    async def open_case(self, accusation: Accusation, *, signer: SigningKey) -> int:
        now, block = await self.now()
        if accusation.to_epoch >= PARAMETERS.epoch_of(now):
            raise PaymentError("an epoch that has not ended", rule="VAL-6")
        number = len(self.kept) + 1
        self.kept[number] = Case(
            id=number, state=CaseState.DRAWING, accuser=signer.address, accusation=accusation, round=1,
            jury_block=block + 1, ballots=(), commit_until=0, reveal_until=0, appeal_until=0, veto_until=0,
            outcome=None, ending=Ending.OPEN, sentence=0, opened_at=now, appellant=NOBODY,
        )  # fmt: skip
        return number

    async def case(self, case: int) -> Case | None:
        return self.kept.get(case)

    async def cases(self, first: int = 1) -> tuple[Case, ...]:
        return tuple(self.kept[number] for number in sorted(self.kept) if number >= first)

    async def draw(self, case: int, *, signer: SigningKey) -> Digest:
        await self._due(case, Step.DRAW)
        found, (now, _) = self.kept[case], await self.now()
        barred = {found.accuser, found.accused}
        pool = sorted((m for m in self.members if m not in barred), key=lambda m: sha256(m, bytes([case, found.round])))
        size = PARAMETERS.jury if found.round == 1 else 2 * PARAMETERS.jury + 1
        ballots = tuple(Ballot(juror=juror, committed=False, verdict=None) for juror in pool[:size])
        self.kept[case] = replace(
            found, state=CaseState.VOTING, ballots=ballots, commit_until=now + PARAMETERS.commit_seconds,
            reveal_until=now + PARAMETERS.commit_seconds + PARAMETERS.reveal_seconds,
        )  # fmt: skip
        return Digest.zero()

    async def commit_verdict(self, case: int, commitment: Digest, *, signer: SigningKey) -> Digest:
        found, (now, _) = self.kept[case], await self.now()
        if not found.may_commit(signer.address, now):
            raise PaymentError("no vote to commit", rule="VAL-8")
        self.commitments[case, found.round, signer.address] = commitment
        ballots = _with(found, signer.address, committed=True)
        if all(ballot.committed for ballot in ballots):
            found = replace(found, commit_until=now, reveal_until=now + PARAMETERS.reveal_seconds)
        self.kept[case] = replace(found, ballots=ballots)
        return commitment

    async def reveal_verdict(self, case: int, verdict: Verdict, salt: Digest, *, signer: SigningKey) -> Digest:
        found, (now, _) = self.kept[case], await self.now()
        wanted = verdict_commitment(case, found.round, verdict, salt, signer.address)
        if not found.may_reveal(signer.address, now) or self.commitments[case, found.round, signer.address] != wanted:
            raise PaymentError("nothing to reveal, or something else than was committed", rule="VAL-9")
        self.kept[case] = replace(found, ballots=_with(found, signer.address, verdict=verdict))
        return Digest.zero()

    async def certify(
        self, case: int, verdict: Verdict, timestamp: int, certificate: bytes, *, signer: SigningKey
    ) -> Digest:
        found, (now, _) = self.kept[case], await self.now()
        message = certificate_message(PARAMETERS.chain_id, PARAMETERS.service, case, found.round, verdict)
        digest = certificate_digest(PARAMETERS.service, timestamp, message)
        signers = [recover(digest, certificate[at : at + 65]) for at in range(0, len(certificate), 65)]
        jury = {ballot.juror for ballot in found.ballots if ballot.committed}
        good = signers == sorted(set(signers)) and set(signers) <= jury and len(signers) >= found.quorum
        good = good and verdict is not Verdict.ABSTAIN
        if found.state is not CaseState.VOTING or now < found.commit_until or not good:
            raise PaymentError("no certificate of this round", rule="VAL-10")
        self._decided(found, verdict, now)
        return Digest.zero()

    async def decide(self, case: int, *, signer: SigningKey) -> Digest:
        await self._due(case, Step.DECIDE)
        found, (now, _) = self.kept[case], await self.now()
        for verdict in (Verdict.GUILTY, Verdict.INNOCENT):
            if sum(ballot.verdict is verdict for ballot in found.ballots) >= found.quorum:
                self._decided(replace(found, reveal_until=min(now, found.reveal_until)), verdict, now)
                return Digest.zero()
        self.kept[case] = replace(found, state=CaseState.CLOSED, outcome=Verdict.ABSTAIN, ending=Ending.VOID)
        return Digest.zero()

    async def reveal_plant(self, case: int, verdict: Verdict, salt: Digest, *, signer: SigningKey) -> Digest:
        found, (now, _) = self.kept[case], await self.now()
        wanted = plant_commitment(signer.address, found.accusation.evidence, verdict, salt)
        shown = found.state in (CaseState.DECIDED, CaseState.QUEUED) and found.outcome is verdict
        if found.accusation.plant != wanted or not shown or now < found.reveal_until:
            raise PaymentError("no plant to show", rule="VAL-13")
        self.planted.append(case)
        found = replace(found, accusation=replace(found.accusation, plant=Digest.zero()))
        if verdict is Verdict.GUILTY:
            found = replace(found, state=CaseState.CLOSED, ending=Ending.PLANTED)
        self.kept[case] = found
        for ballot in found.ballots:
            if ballot.verdict is not None and ballot.verdict not in (verdict, Verdict.ABSTAIN):
                self.struck.append(ballot.juror)
        return Digest.zero()

    async def appeal(self, case: int, *, signer: SigningKey) -> Digest:
        found, (now, block) = self.kept[case], await self.now()
        if not found.may_appeal(signer.address, now):
            raise PaymentError("no appeal", rule="VAL-12")
        self.kept[case] = replace(
            found, state=CaseState.DRAWING, round=2, ballots=(), jury_block=block + 1, appellant=signer.address
        )
        return Digest.zero()

    async def execute(self, case: int, *, signer: SigningKey) -> Digest:
        await self._due(case, Step.EXECUTE)
        found, (now, _) = self.kept[case], await self.now()
        if found.state is CaseState.QUEUED:
            self.ejected.append(found.accused)
            self.kept[case] = replace(found, state=CaseState.CLOSED, ending=Ending.SLASHED)
            self.owed[case] = {Address(b"c" * 20): 7}
        elif found.outcome is Verdict.GUILTY:
            until = now + PARAMETERS.veto_seconds
            self.kept[case] = replace(found, state=CaseState.QUEUED, veto_until=until, sentence=case)
        else:
            self.kept[case] = replace(found, state=CaseState.CLOSED, ending=Ending.ACQUITTED)
        return Digest.zero()

    async def restitution(self, sentence: int) -> Restitution | None:
        return Restitution(
            sentence=sentence, operator=NOBODY, slashed=9, bounty=1, for_clients=7, claimed=7, claim_until=0,
            finished=sentence in self.finished, owed=dict(self.owed[sentence]),
        )  # fmt: skip

    async def finish_refunds(self, sentence: int, *, signer: SigningKey) -> Digest:
        if sentence in self.finished:
            raise PaymentError("finished already", rule="VAL-15")
        self.finished.append(sentence)
        return Digest.zero()

    async def pay_refund(self, sentence: int, payout: Address, *, signer: SigningKey) -> Digest:
        if not self.owed[sentence][payout]:
            raise PaymentError("nothing owed", rule="VAL-15")
        self.paid += self.owed[sentence][payout]
        self.owed[sentence][payout] = 0
        return Digest.zero()

    def _decided(self, found: Case, verdict: Verdict, now: int) -> None:
        since = max(now, found.reveal_until)  # decided by a certificate: whoever wants the fee still reveals
        until = since if found.round == 2 else since + PARAMETERS.appeal_seconds
        self.kept[found.id] = replace(found, state=CaseState.DECIDED, outcome=verdict, appeal_until=until)

    async def _due(self, case: int, step: Step) -> None:
        now, block = await self.now()
        if self.kept[case].step(now=now, block=block) is not step:
            raise PaymentError(f"{step.name} is not due", rule="VAL-6")


def _with(case: Case, juror: Address, **changes: Any) -> tuple[Ballot, ...]:
    return tuple(replace(ballot, **changes) if ballot.juror == juror else ballot for ballot in case.ballots)
