# SPDX-License-Identifier: Apache-2.0
"""What a juror checks before it re-runs anything: is evidence whole, is each answer what it is said to be?

Accusers are assumed hostile. They cannot choose the prompts (made from seeds fixed before the epoch), nor leave out
answers that speak for the accused (the plan is shown whole, and a missing answer counts for it), nor begin where it
suits them (a case begins at a block of epochs), nor show answers of another worker, request or model (AUD-52, AUD-54).

Not here: re-running (`ports.Prefill`), whether an enclave is real (`attest`; its verdict arrives as `signers`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bombyx.errors import BombyxError, MalformedMessage, Peer
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.audit.case import Accusation, PlanCommitment
from bombyx.protocol.audit.plan import plan_root
from bombyx.protocol.primitives import Address, Digest, sha256, tagged_hash
from bombyx.protocol.wire.audit import AuditBlock, AuditPackage
from bombyx.protocol.wire.cases import MAX_EPOCHS, CaseEvidence, EpochEvidence, PlannedCanary
from bombyx.protocol.wire.receipt import Kind, Outcome

RULE: Final = "AUD-54"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One canary of a case, and the accused worker's answer to it, if there is one. None counts for the accused."""

    epoch: int
    canary: PlannedCanary
    package: AuditPackage | None


def canary_nonce(canary: PlannedCanary) -> Digest:
    """The client's share of a canary's seed: fixed with the plan, so that no validator tries until one looks bad."""
    return tagged_hash("bombyx canary nonce v1", canary.seed)


def asked_tokens(canary: PlannedCanary) -> int:
    """Tokens that an answer to this canary is scored on, at most: those it was asked for, and an end it left out."""
    return int(json.loads(compose(canary.seed, canary.name, canary.most).body)["max_tokens"]) + 1


def first_epoch(last: int) -> int:
    """Where a case that ends with epoch `last` begins: at a multiple of 64, so that no accuser chooses the start."""
    return last - last % MAX_EPOCHS


def open_case(data: bytes, accusation: Accusation, accuser: Address) -> CaseEvidence:
    """Evidence as served, if it is what was named on chain. Raises `MalformedMessage` that blames the accuser."""
    if len(data) > CaseEvidence.MAX_SIZE or sha256(data) != accusation.evidence:
        raise _lie("the evidence served is not what the case names")
    try:
        evidence = CaseEvidence.decode(data)
    except MalformedMessage as error:
        raise _lie(f"evidence that cannot be read: {error.message}") from None
    told = (evidence.v, evidence.accuser, evidence.accused, evidence.model)
    if told != (1, accuser, accusation.accused, accusation.model):
        raise _lie("evidence about another case")
    if sha256(evidence.manifest) != evidence.model:
        raise _lie("the manifest is another model's")
    return evidence


def exhibits(
    evidence: CaseEvidence, accusation: Accusation, commitments: Mapping[int, PlanCommitment]
) -> tuple[Exhibit, ...]:
    """Every canary of the case in order, each with the accused's answer. `commitments`: the accuser's, as the chain
    has them, of all epochs from `first_epoch`. Raises `MalformedMessage` when anything planned is not shown."""
    first, last = accusation.from_epoch, accusation.to_epoch
    if first != first_epoch(last):
        raise _lie(f"a case over epochs {first} .. {last} begins where its accuser liked")
    wanted = sorted(epoch for epoch in commitments if first <= epoch <= last)
    if [one.epoch for one in evidence.epochs] != wanted or not wanted:
        raise _lie("epochs with a committed plan are missing, or others are added")
    shown: list[Exhibit] = []
    for one in evidence.epochs:
        committed = commitments[one.epoch]
        if (plan_root(one.salt, one.canaries), len(one.canaries)) != (committed.root, committed.count):
            raise _lie(f"the plan of epoch {one.epoch} is not the one committed")
        shown.extend(_of_epoch(one, accusation))
    if not any(exhibit.package for exhibit in shown):
        raise _lie("no answer of the accused at all")
    return tuple(shown)


def check_exhibit(
    exhibit: Exhibit, *, accused: Address, domain: Digest, signers: Collection[Address]
) -> AuditPackage | None:
    """The package, if the accused's enclave signed exactly this as the answer to this canary. Raises otherwise.

    `signers`: receipt keys of the accused's appraised enclaves. None: nothing to judge. What binds block and usage to
    the receipt, and what is wrong with an answer's own structure, is the Examiner's to find.
    """
    package, canary = exhibit.package, exhibit.canary
    if package is None:
        return None
    receipt = package.receipt.receipt
    if (receipt.request_id, receipt.operator, receipt.model) != (canary.request_id, accused, canary.model):
        raise _lie(f"the receipt shown for canary {canary.index} is of another request, worker or model")
    if receipt.kind is not Kind.FINAL or receipt.outcome is not Outcome.COMPLETE:
        raise _lie(f"canary {canary.index} was not answered whole")
    try:
        signer = package.receipt.signer(domain)
    except BombyxError:
        raise _lie(f"the receipt of canary {canary.index} is signed by nobody") from None
    if signer not in signers:
        raise _lie(f"the receipt of canary {canary.index} is not signed by an appraised enclave of the accused")
    made = compose(canary.seed, canary.name, canary.most)
    if (package.path, package.body) != (made.path, made.body):
        raise _lie(f"canary {canary.index} is not the prompt that was planned")
    if AuditBlock.decode(package.block).nonce != canary_nonce(canary):
        raise _lie(f"canary {canary.index} was not asked with the nonce planned")
    return package


def _of_epoch(one: EpochEvidence, accusation: Accusation) -> list[Exhibit]:
    found: dict[bytes, AuditPackage] = {}
    for data in one.packages:
        try:
            package = AuditPackage.decode(data)
        except MalformedMessage as error:
            raise _lie(f"a package that cannot be read: {error.message}") from None
        name = package.receipt.receipt.request_id
        if name in found:
            raise _lie("two answers to one canary")
        found[name] = package
    exhibits = [
        Exhibit(epoch=one.epoch, canary=canary, package=found.pop(canary.request_id, None))
        for canary in one.canaries
        if canary.model == accusation.model and accusation.accused in canary.candidates
    ]
    if found:
        raise _lie("answers to what was not planned for this worker and model")
    return exhibits


def with_packages(plan: EpochEvidence, packages: Sequence[bytes]) -> EpochEvidence:
    """An epoch's plan, shown with a worker's answers."""
    return EpochEvidence(epoch=plan.epoch, salt=plan.salt, canaries=plan.canaries, packages=tuple(packages))


def _lie(message: str) -> MalformedMessage:
    return MalformedMessage(message, peer=Peer.VALIDATOR, rule=RULE)
