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

import orjson

from bombyx.errors import AttestationError, MalformedMessage
from bombyx.protocol.attest import dcap, gpu, nras, snp
from bombyx.protocol.attest.claims import BootClaims, Claims, QuoteClaims
from bombyx.protocol.attest.events import Event, parse_event_log
from bombyx.protocol.attest.gpu import NO_GPUS, GpuClaims, GpuEndorsements
from bombyx.protocol.attest.platforms import TECHNOLOGIES, check_boot, check_config_id, matching
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue
from bombyx.protocol.attest.report import Part, Report
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.attest.steps import REPORT_STEP_NAMES, Found, NotEnough, Refused, Status, Step, Trail
from bombyx.protocol.primitives import Digest, Instant, sha256

_ALWAYS: Final = frozenset(range(1, 8))  # steps that must not stay unchecked
_EMPTY: Final = ReferenceValue(name="none", trust_class=TrustClass.SIMULATED, compose_hash=Digest.zero())


class Verdict(StrEnum):
    """Worst last."""

    VERIFIED = "verified"
    UNDECIDED = "not enough to decide"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtHand:
    """What the verifier has beside the report."""

    endorsements: tuple[bytes, ...] = ()  # Intel's collateral in JSON, AMD's certificates; one a platform
    tokens: tuple[bytes, ...] = ()  # NVIDIA's, in the order of the parts with GPUs
    jwks: bytes = b""
    rims: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()
    nonce: bytes | None = None  # the one we asked with
    report_data: bytes | None = None  # what a bare quote must hold
    compose: bytes | None = None


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
        quote, events = run(1, _read, part, technology)
        collateral = _Collateral(technology, part.technology, self.at_hand.endorsements)
        chain = run(2, collateral.check_chain, quote, self.policy, self.now)
        endorsed = run(3, technology.check_endorsements, chain)
        quoted: QuoteClaims = run(4, technology.check_attributes, chain, endorsed)
        self.claims = Claims(quote=quoted, boot=BootClaims(), reference_value="")
        boot = run(5, _check_events, part, quoted, events)
        self.claims = Claims(quote=quoted, boot=boot, reference_value="")
        reference = run(6, _check_reference, part, quoted, boot, self.policy, self.at_hand.compose)
        run(7, _check_binding, part, quoted, self.at_hand)
        run(8, _check_nonce, part, self.at_hand)
        gpus: GpuClaims = run(9, self._check_gpu, quoted, reference)
        self.claims = Claims(quote=quoted, boot=boot, reference_value=reference.name, gpus=gpus.lines)
        self.trust = _class_of(quoted, gpus)
        self.until = run(10, _check_window, quoted, gpus, self.now)

    def _check_gpu(self, quoted: QuoteClaims, reference: ReferenceValue) -> Found[GpuClaims]:
        found = self._gpus(required=self.part.serves and (self.policy.require_gpu or reference.gpu))
        given = _class_of(quoted, found.value)
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
            tokens=self.tokens, jwks=self.at_hand.jwks, rims=self.at_hand.rims, ocsp=self.at_hand.ocsp
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


def _read(part: Part, technology: Any) -> Found[tuple[Any, tuple[Event, ...] | None]]:
    """Step 1."""
    if technology is None:
        raise MalformedMessage("evidence of a technology this version does not know", rule="ATT-6.1")
    events = None if part.event_log is None else parse_event_log(part.event_log)
    detail = f"{part.technology} quote of {len(part.quote)} bytes"
    unread = f"; not read: {', '.join(part.unread)}" if part.unread else ""
    return Found((technology.parse_quote(part.quote), events), detail + unread)


@dataclass(frozen=True, slots=True)
class _Collateral:
    """The Endorsements for one platform, out of those at hand."""

    technology: Any
    name: str
    at_hand: tuple[bytes, ...]

    def check_chain(self, quote: Any, policy: AppraisalPolicy, now: Instant) -> Found[Any]:
        """Step 2."""
        if not policy.roots:
            raise Refused("the policy names no root: nothing passes")
        platform = "" if self.name == snp.TECHNOLOGY else dcap.platform_of(quote)
        fitting = [raw for raw in self.at_hand if _fits(raw, platform, self.name)]
        if not fitting and platform:
            dcap.check_without_endorsements(quote, now)
        if not fitting:
            raise NotEnough(f"not checked: no Endorsements for this {self.name} platform {platform}".rstrip())
        found: Found[Any] = self.technology.check_chain(
            quote, self.technology.parse_collateral(fitting[0]), policy, now
        )
        return found


def _fits(raw: bytes, platform: str, technology: str) -> bool:
    """By what the Endorsements say of themselves, which only picks them: the signatures decide."""
    try:
        fields = orjson.loads(raw)
        if technology == "snp":
            return "certificates" in fields
        info = orjson.loads(fields["tcb_info"])
        return bool(info["fmspc"].lower() == platform and info["id"].lower() == technology)
    except (ValueError, KeyError, TypeError, AttributeError):
        return technology == "snp" and raw.lstrip().startswith(b"-----BEGIN")


def _check_events(part: Part, quoted: QuoteClaims, events: tuple[Event, ...] | None) -> Found[BootClaims]:
    """Step 5."""
    if events is None and part.technology == "tdx":
        return Found(BootClaims(), "not checked: no event log", Status.NOT_CHECKED)
    return check_boot(quoted, events or ())


def _check_reference(
    part: Part, quoted: QuoteClaims, boot: BootClaims, policy: AppraisalPolicy, compose: bytes | None
) -> Found[ReferenceValue]:
    """Step 6: nothing said contradicts what was measured; and it is an image the policy names."""
    compose = compose if compose is not None else part.compose
    if compose is not None and boot.compose_hash is not None and sha256(compose) != boot.compose_hash:
        raise Refused("the compose file shown is not the one that was measured")
    check_config_id(quoted, boot)
    for name, value in part.said:
        measured = _measured(name, quoted, boot)
        if measured and value != measured:
            raise Refused(f"the report says another {name} than was measured")
    if not policy.reference_values:
        found = boot.compose_hash or quoted.measurements[0][1][:16].hex()
        return Found(_EMPTY, f"not checked: the policy names no Reference Value; found {found}", Status.NOT_CHECKED)
    return matching(quoted, boot, policy)


def _measured(name: str, quoted: QuoteClaims, boot: BootClaims) -> bytes:
    boots: dict[str, bytes | None] = {
        "compose_hash": boot.compose_hash,
        "app_id": boot.app_id,
        "instance_id": boot.instance_id,
    }
    boots |= {"os_image_hash": boot.os_image_hash, "key_provider": boot.key_provider}
    return (boots.get(name) or b"") if name in boots else quoted.measurement(name)


def _check_binding(part: Part, quoted: QuoteClaims, at_hand: AtHand) -> Found[None]:
    """Step 7."""
    binding, data = part.binding, quoted.report_data
    if at_hand.report_data is not None and data != at_hand.report_data.ljust(64, b"\0"):
        raise Refused("the quote's report data is not the one expected")
    if binding is None:
        if at_hand.report_data is None:
            detail = f"not checked: a bare quote binds what its report data says, {data.hex()[:32]}..."
            return Found(None, detail, Status.NOT_CHECKED)
        return Found(None, "report data is the one expected")
    if binding.expected != data:
        raise Refused(f"the quote's report data is not {binding.scheme} of what the report shows")
    if binding.faults:
        raise Refused(binding.faults[0])
    return Found(
        None, "; ".join((f"{binding.scheme}: {', '.join(what for what, _ in binding.keys)}", *binding.checked))
    )


def _check_nonce(part: Part, at_hand: AtHand) -> Found[None]:
    """Step 8: report_data, verified in step 7, holds the nonce we asked with."""
    nonce = part.binding.nonce if part.binding else None
    if nonce is None:
        if at_hand.report_data is not None:
            return Found(None, "the report data expected was ours to choose")
        return Found(None, "not checked: nothing in it answers a nonce", Status.NOT_CHECKED)
    if at_hand.nonce is None:
        return Found(None, "not checked: nobody said which nonce was asked; it may be old", Status.NOT_CHECKED)
    if nonce != at_hand.nonce:
        raise Refused("made for another nonce than the one asked: a replay, or an answer to somebody else")
    return Found(None, "answers the nonce asked")


def _class_of(quoted: QuoteClaims, gpus: GpuClaims) -> TrustClass:
    if not gpus.genuine:
        return TrustClass.SIMULATED
    return TrustClass.TDX_GPU if gpus.lines and quoted.trust_class is TrustClass.TDX else quoted.trust_class


def _check_window(quoted: QuoteClaims, gpus: GpuClaims, now: Instant) -> Found[Instant]:
    """Step 10: until when what vouches for it vouches."""
    until = min(one for one in (quoted.endorsed_until, gpus.until) if one is not None)
    if until <= now:
        raise Refused("what vouches for it has run out")
    return Found(until, f"vouched for until {until.seconds} (Unix seconds)")
