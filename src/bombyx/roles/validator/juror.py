# SPDX-License-Identifier: Apache-2.0
"""Sits on juries: fetches a case's evidence, checks it, re-runs it, votes (spec AUD-54, AUD-56).

Accusers are assumed hostile; what they serve is bounded and blamed. Always: a vote is this juror's own finding, made
from the evidence alone; it is durable before its commitment leaves, and said to nobody before all have committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bombyx.errors import AttestationError, MalformedMessage, PeerError, Unavailable
from bombyx.ports import Clock, Entropy, Validation
from bombyx.protocol.attest import AppraisalPolicy, appraise
from bombyx.protocol.audit.case import (
    Case,
    PlanCommitment,
    ValidationParameters,
    Verdict,
    verdict_commitment,
)
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.jury import Exhibit, asked_tokens, check_exhibit, exhibits, first_epoch, open_case
from bombyx.protocol.audit.verdict import find, taken_in
from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.cases import CaseEvidence
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset, ModelManifest
from bombyx.protocol.wire.receipt import receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.asking import Pages
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.examine import Examiner
from bombyx.roles.validator.register import Register

log = logging.getLogger("bombyx.validator")
FETCHES = 3  # tries to get a case's evidence before a juror abstains
PAUSE = 1.0  # seconds between them


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a juror found, and why, for its log and report."""

    verdict: Verdict
    log10: float
    why: str


class Juror:
    """One member's duty."""

    def __init__(
        self,
        *,
        key: SigningKey,
        parameters: ValidationParameters,
        validation: Validation,
        book: Book,
        examiner: Examiner,
        pages: Pages,
        register: Register,
        policy: AppraisalPolicy,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._key = key
        self._parameters = parameters
        self._validation = validation
        self._book = book
        self._examiner = examiner
        self._pages = pages
        self._register = register
        self._policy = policy
        self._clock = clock
        self._entropy = entropy
        self.opinions: dict[int, Opinion] = {}

    async def serve(self, case: Case, now: int) -> None:
        """Whatever this case wants of us now."""
        me = self._key.address
        if case.may_commit(me, now):
            await self._commit(case)
        elif case.may_reveal(me, now):
            await self._reveal(case)

    async def _commit(self, case: Case) -> None:
        kept = await self._book.vote(case.id, case.round)
        if kept is None:
            opinion = self.opinions.get(case.id)
            if opinion is None:
                opinion = self.opinions[case.id] = await self.judge(case)
                log.info("case %d: %s, log10 E %.1f: %s", case.id, opinion.verdict.name, opinion.log10, opinion.why)
            kept = bytes([opinion.verdict]) + self._entropy.bytes(32)
            await self._book.keep_vote(case.id, case.round, kept)
        verdict, salt = Verdict(kept[0]), Digest(kept[1:])
        commitment = verdict_commitment(case.id, case.round, verdict, salt, self._key.address)
        await self._validation.commit_verdict(case.id, commitment, signer=self._key)

    async def _reveal(self, case: Case) -> None:
        kept = await self._book.vote(case.id, case.round)
        if kept is None:
            log.warning("case %d: our vote is lost, nothing can be revealed", case.id)
            return
        await self._validation.reveal_verdict(case.id, Verdict(kept[0]), Digest(kept[1:]), signer=self._key)

    # --- judging ---

    async def judge(self, case: Case) -> Opinion:
        """GUILTY at evidence of a million to one. An accuser who lies, or shows nothing that holds, loses: INNOCENT.
        ABSTAIN is for what may be our own fault: a page that did not answer, a model we do not have."""
        try:
            evidence = open_case(await self._fetch(case), case.accusation, case.accuser)
            async with self._examiner.first():
                return await self._weigh(case, evidence)
        except Unavailable as error:
            return Opinion(verdict=Verdict.ABSTAIN, log10=0.0, why=error.message)
        except PeerError as error:
            return Opinion(verdict=Verdict.INNOCENT, log10=0.0, why=error.message)

    async def _fetch(self, case: Case) -> bytes:
        digest = case.accusation.evidence
        own = await self._book.evidence(digest)
        if own is not None:
            return own
        url = f"{case.accusation.uri.rstrip('/')}/v1/evidence/{digest.hex()}"
        for turn in range(FETCHES):
            try:
                return await self._pages.get(url, CaseEvidence.MAX_SIZE)
            except Unavailable:
                if turn + 1 == FETCHES:
                    raise
                await self._clock.sleep(PAUSE)
        raise Unavailable("nobody serves the evidence", rule="AUD-54")

    async def _weigh(self, case: Case, evidence: CaseEvidence) -> Opinion:
        manifest = ModelManifest.decode(evidence.manifest)
        if manifest.calibration is None:
            raise MalformedMessage("a model without calibration accuses nobody", rule="AUD-54")
        if not self._examiner.knows(manifest):
            raise Unavailable("this juror has no weights of the model", rule="AUD-56")
        shown = exhibits(evidence, case.accusation, await self._commitments(case))
        domain = receipt_domain(self._parameters.chain_id, self._parameters.registry)
        signers = await asyncio.to_thread(self._signers, case.accused, evidence, _signed(shown, domain))
        for signer in signers:
            if not await self._register.had_key(case.accused, signer):
                raise Unavailable("an enclave whose key the registry never named to us", rule="AUD-54")
        packages = [check_exhibit(one, accused=case.accused, domain=domain, signers=signers) for one in shown]
        weighed = Evidence.none(manifest.calibration)
        judged = 0
        for exhibit, package in zip(shown, packages, strict=True):
            if package is None:
                weighed = weighed.absent(asked_tokens(exhibit.canary))
                continue
            weighed = taken_in(weighed, await self._examiner.examine(package, manifest))
            judged += 1
            if find(weighed) is Verdict.GUILTY:
                break  # evidence that was ever reached stays reached: nothing that follows takes it away
        return Opinion(verdict=find(weighed), log10=weighed.peak, why=f"{judged} of {len(shown)} canaries re-run")

    async def _commitments(self, case: Case) -> dict[int, PlanCommitment]:
        """The accuser's, of every epoch of the case's block: none may be left out of its evidence."""
        last = case.accusation.to_epoch
        epochs = range(first_epoch(last), last + 1)
        plans = await asyncio.gather(*(self._validation.plan_of(case.accuser, epoch) for epoch in epochs))
        return {plan.epoch: plan for plan in plans if plan is not None}

    def _signers(
        self, accused: Address, evidence: CaseEvidence, signed: Mapping[Address, Sequence[Instant]]
    ) -> frozenset[Address]:
        """Receipt keys of the accused's enclaves, each appraised by our own policy as of when it signed."""
        signers = set()
        for bundle in evidence.bundles:
            keyset = _keyset(bundle)
            if keyset.operator != accused or evidence.model not in keyset.models:
                raise MalformedMessage("an enclave of another worker, or without the model", rule="AUD-54")
            moments = [
                at for at in signed.get(keyset.receipt_address, ()) if keyset.not_before <= at <= keyset.not_after
            ]
            if not moments:
                raise MalformedMessage("an enclave that signed nothing here in its time", rule="AUD-54")
            try:
                appraise(bundle, self._policy.offline(), now=max(moments))
            except AttestationError as error:
                raise MalformedMessage(f"an enclave that does not convince: {error.message}", rule="AUD-54") from None
            signers.add(keyset.receipt_address)
        return frozenset(signers)


def _signed(shown: Sequence[Exhibit], domain: Digest) -> dict[Address, list[Instant]]:
    """When each receipt key began an answer shown here, by its own word."""
    found: dict[Address, list[Instant]] = {}
    for exhibit in shown:
        if exhibit.package is not None:
            receipt = exhibit.package.receipt
            found.setdefault(receipt.signer(domain), []).append(receipt.receipt.started_at)
    return found


def _keyset(bundle: bytes) -> Keyset:
    return Keyset.decode(EvidenceBundle.decode(bundle).keyset)
