# SPDX-License-Identifier: Apache-2.0
"""Another provider's report, appraised: every part by the same ten steps as a bundle, with what is at hand (ATT-13).

Three outcomes. Verified: every step that the policy asks for passed. Refused: something is wrong. Undecided: something
needed is not at hand (Endorsements, a Reference Value, the nonce we asked); it counts as no.
Always: the trust class is computed from the roots; a report without a part that serves decides nothing, but one machine
left out of several is not missed; GPU and CPU are bound by a shared nonce alone, which the result says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from bombyx.errors import AttestationError
from bombyx.protocol.attest import gpu, nras, report_steps
from bombyx.protocol.attest.claims import BootClaims, Claims, QuoteClaims
from bombyx.protocol.attest.gpu import NO_GPUS, GpuClaims, GpuEndorsements
from bombyx.protocol.attest.platforms import TECHNOLOGIES
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue
from bombyx.protocol.attest.report import AtHand, Part, Report
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.attest.steps import REPORT_STEP_NAMES, Found, NotEnough, Refused, Status, Step, Trail
from bombyx.protocol.primitives import Instant

_ALWAYS: Final = frozenset(range(1, 8))  # steps that must not stay unchecked


class Verdict(StrEnum):
    """Worst last."""

    VERIFIED = "verified"
    UNDECIDED = "not enough to decide"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one part."""

    name: str
    verdict: Verdict
    steps: tuple[Step, ...]
    why: str
    trust_class: TrustClass | None = None  # None unless verified
    claims: Claims | None = None  # what the signatures prove, whatever the verdict; None: they prove nothing
    keys: tuple[tuple[str, str], ...] = ()  # bound by the quote; empty unless verified
    until: Instant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What became of a report."""

    form: str
    outcomes: tuple[Outcome, ...]
    serves: bool = True  # a part that runs the model is among them

    @property
    def verdict(self) -> Verdict:
        """The worst of all parts'; of none, refused. A gateway alone decides nothing."""
        order = list(Verdict)
        worst = max((one.verdict for one in self.outcomes), key=order.index, default=Verdict.REFUSED)
        return Verdict.UNDECIDED if worst is Verdict.VERIFIED and not self.serves else worst


def appraise_report(report: Report, policy: AppraisalPolicy, *, now: Instant, at_hand: AtHand) -> tuple[Outcome, ...]:
    """Holding the value is proof that every part was verified. Raises `AttestationError` or `NotEnough` otherwise."""
    examined = examine(report, policy, now=now, at_hand=at_hand)
    for outcome in examined.outcomes:
        if outcome.verdict is Verdict.REFUSED:
            raise AttestationError(f"{outcome.name}: {outcome.why}", steps=outcome.steps, rule="ATT-13")
    for outcome in examined.outcomes:
        if outcome.verdict is Verdict.UNDECIDED:
            raise NotEnough(f"{outcome.name}: {outcome.why}", steps=outcome.steps)
    if examined.verdict is not Verdict.VERIFIED:
        raise NotEnough("no part of the report serves a model")
    return examined.outcomes


def examine(report: Report, policy: AppraisalPolicy, *, now: Instant, at_hand: AtHand) -> Examination:
    """Appraise every part and show all of it; never raises for what the report says."""
    outcomes, tokens = [], iter((*([report.tokens] if report.tokens else []), *at_hand.tokens))
    for part in report.parts:
        carries = part.gpu_evidence is not None or not part.quote
        outcomes.append(_Examiner(part, policy, now, at_hand, next(tokens, b"") if carries else b"").outcome())
    serves = report.chosen or any(part.serves for part in report.parts)
    return Examination(form=report.form, outcomes=tuple(outcomes), serves=serves)


@dataclass(slots=True)
class _Examiner:
    """One part's way through the ten steps."""

    part: Part
    policy: AppraisalPolicy
    now: Instant
    at_hand: AtHand
    tokens: bytes
    trail: Trail = field(default_factory=lambda: Trail(REPORT_STEP_NAMES))
    claims: Claims | None = None
    trust: TrustClass | None = None
    until: Instant | None = None

    def outcome(self) -> Outcome:
        try:
            self._run() if self.part.quote else self._run_without_quote()
        except AttestationError as error:
            return self._made(Verdict.REFUSED, str(error))
        except NotEnough as gap:
            return self._made(Verdict.UNDECIDED, gap.message)
        needed = _ALWAYS | ({8} if self.policy.require_nonce else set())
        gaps = [step for step in self.trail.steps if step.status is Status.NOT_CHECKED and step.number in needed]
        if gaps:
            return self._made(Verdict.UNDECIDED, f"{gaps[0].name}: {gaps[0].detail}")
        return self._made(Verdict.VERIFIED, f"trust class {self.trust}")

    def _made(self, verdict: Verdict, why: str) -> Outcome:
        sound = verdict is Verdict.VERIFIED
        binding = self.part.binding
        return Outcome(
            name=self.part.name,
            verdict=verdict,
            steps=self.trail.steps,
            why=why,
            trust_class=self.trust if sound else None,
            claims=self.claims,
            keys=binding.keys if sound and binding else (),
            until=self.until if sound else None,
        )

    def _run(self) -> None:
        run, part = self.trail.run, self.part
        technology: Any = TECHNOLOGIES.get(part.technology)
        quote, events = run(1, report_steps.read_part, part, technology)
        collateral = report_steps.Collateral(technology, part.technology, self.at_hand.endorsements)
        chain = run(2, collateral.check_chain, quote, self.policy, self.now)
        endorsed = run(3, technology.check_endorsements, chain)
        quoted: QuoteClaims = run(4, technology.check_attributes, chain, endorsed)
        self.claims = Claims(quote=quoted, boot=BootClaims(), reference_value="")
        boot = run(5, report_steps.check_events_of, part, quoted, events)
        self.claims = Claims(quote=quoted, boot=boot, reference_value="")
        reference = run(
            6, report_steps.check_reference, part, quote, quoted, boot, self.policy, self.now, self.at_hand.compose
        )
        run(7, report_steps.check_binding, part, quoted, self.at_hand)
        run(8, report_steps.check_nonce, part, self.at_hand)
        gpus: GpuClaims = run(9, self._check_gpu, quoted, reference)
        self.claims = Claims(quote=quoted, boot=boot, reference_value=reference.name, gpus=gpus.lines)
        self.trust = report_steps.class_of(quoted, gpus)
        self.until = run(10, report_steps.check_window, quoted, gpus, self.now)

    def _check_gpu(self, quoted: QuoteClaims, reference: ReferenceValue) -> Found[GpuClaims]:
        found = self._gpus(required=self.part.serves and (self.policy.require_gpu or reference.gpu))
        given = report_steps.class_of(quoted, found.value)
        accepted = given in self.policy.trust_classes
        if not accepted and (self.part.serves or not self.policy.may_accept(given)):
            raise Refused(f"trust class {given} is not one the policy accepts")
        return found

    def _gpus(self, *, required: bool) -> Found[GpuClaims]:
        part = self.part
        if part.gpu_evidence is None:
            if required or part.gpu_expected:
                raise Refused("a GPU is opened or required, and there is no GPU evidence")
            return Found(NO_GPUS, "no GPU evidence, and none required", Status.NOT_APPLICABLE)
        nonce = part.binding.nonce if part.binding and part.binding.nonce else part.gpu_nonce
        if nonce is None:
            raise NotEnough("not checked: nothing says which nonce the GPUs answered")
        if part.gpu_nonce not in (None, nonce):
            raise Refused("the GPU evidence answers another nonce than the CPU quote")
        at_hand = GpuEndorsements(
            tokens=self.tokens,
            jwks=self.at_hand.jwks,
            rims=self.at_hand.rims,
            ocsp=self.at_hand.ocsp,
            switches=part.switches,
        )
        bound = "bound to the CPU quote by the nonce alone" if part.quote else "bound to no CPU quote"
        gpus = gpu.appraise_gpus(part.gpu_evidence, nonce, self.policy, self.now, at_hand, bound=bound)
        if part.gpu_expected is not None and len(gpus.lines) != part.gpu_expected:
            raise Refused(f"{len(gpus.lines)} GPUs answer, the report says {part.gpu_expected}")
        return Found(gpus, gpus.describe())

    def _run_without_quote(self) -> None:
        """GPU evidence or tokens alone prove no enclave; what they do prove is shown, and the verdict stays open."""
        self.trail.run(1, _nothing, "no CPU quote", Status.PASSED)
        for number in range(2, 9):
            self.trail.run(number, _nothing, "not checked: no CPU quote, so no enclave is proven", Status.NOT_CHECKED)
        self.trail.run(9, self._gpus_alone)
        self.trail.run(10, _nothing, "not checked: no CPU quote", Status.NOT_CHECKED)

    def _gpus_alone(self) -> Found[GpuClaims]:
        if self.part.gpu_evidence is not None:
            return self._gpus(required=True)
        if self.at_hand.nonce is None:
            return Found(NO_GPUS, "not checked: no nonce given", Status.NOT_CHECKED)
        roots, nonce = self.policy.token_roots, self.at_hand.nonce
        finding = nras.check_tokens(self.tokens, self.at_hand.jwks, roots, self.now, nonce=nonce)
        if finding.done:
            return Found(NO_GPUS, finding.detail)
        return Found(NO_GPUS, f"not checked: {finding.detail}", Status.NOT_CHECKED)


def _nothing(detail: str, status: Status) -> Found[None]:
    return Found(None, detail, status)
