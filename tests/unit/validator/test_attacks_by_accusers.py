# SPDX-License-Identifier: Apache-2.0
"""A hostile accuser before an honest juror: each test bends one thing of evidence that would convict a real cheater."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.unit.validator.court import NOBODY, PARAMETERS, Court
from tests.unit.validator.game import TurnedClock, line
from tests.unit.validator.world import BEGAN, DOMAIN, MANIFEST, MODEL, POLICY, TinyModel, TinyWorker, examiner, key_of

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import MalformedMessage, Unavailable
from bombyx.ports import OperatorRole
from bombyx.protocol.audit.case import Accusation, Case, CaseState, Ending, PlanCommitment, Verdict
from bombyx.protocol.audit.jury import canary_nonce
from bombyx.protocol.audit.plan import Plan, Target, make_plan
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.audit import AuditMode, AuditPackage
from bombyx.protocol.wire.cases import CaseEvidence, EpochEvidence
from bombyx.protocol.wire.receipt import SignedReceipt
from bombyx.roles.validator.book import Book
from bombyx.roles.validator.examine import Examiner
from bombyx.roles.validator.juror import Juror, Opinion
from bombyx.roles.validator.register import Register

FIRST = PARAMETERS.epoch_of(BEGAN.seconds)
ACCUSER = key_of("accuser").address


@dataclass
class Trial:
    """Two epochs of canaries a worker answered, the accuser's plans on chain, and a juror."""

    worker: TinyWorker
    plans: list[Plan]
    packages: list[list[AuditPackage]]
    court: Court
    juror: Juror
    page: bytes | None = None  # what the accuser serves instead
    asked: int = 0

    @classmethod
    async def of(cls, worker: TinyWorker, *, epochs: int = 2, canaries: int = 6) -> Trial:
        clock = TurnedClock()
        court = Court(clock)
        target = Target(operator=worker.operator, model=MODEL, name="tiny", canaries=canaries, most=32)
        plans = [make_plan(FIRST + n, [target], sha256(b"plan", bytes([n])), k=3, single_bps=0) for n in range(epochs)]
        packages = []
        for plan in plans:
            court.plans[ACCUSER, plan.epoch] = PlanCommitment(
                epoch=plan.epoch, root=plan.root, count=len(plan.canaries)
            )
            packages.append([await worker.answer(c, canary_nonce(c), BEGAN) for c in plan.canaries])
        ledger, book = MemoryLedger(clock), Book(MemoryStore())
        named = line(worker.operator, OperatorRole.WORKER, worker.receipt_key.address)
        await ledger.register(named, signer=key_of(worker.name))
        trial = cls(worker, plans, packages, court, None)  # type: ignore[arg-type]  # made below
        trial.juror = Juror(
            key=key_of("juror"), parameters=PARAMETERS, validation=court, book=book, examiner=examiner(),  # type: ignore[arg-type]
            pages=trial, register=Register(ledger, court, book, clock), policy=POLICY, clock=_Impatient(),  # type: ignore[arg-type]
            entropy=SystemEntropy(),
        )  # fmt: skip
        return trial

    def evidence(self, **changes: Any) -> CaseEvidence:
        honest = CaseEvidence(
            v=1, accuser=ACCUSER, accused=self.worker.operator, model=MODEL, manifest=MANIFEST.encode(),
            epochs=tuple(
                EpochEvidence(
                    epoch=plan.epoch, salt=plan.salt, canaries=plan.canaries,
                    packages=tuple(package.encode() for package in packages),
                )
                for plan, packages in zip(self.plans, self.packages, strict=True)
            ),
            bundles=(self.worker.bundle(),),
        )  # fmt: skip
        return replace(honest, **changes)

    def swap(self, epoch: int, place: int, package: AuditPackage) -> CaseEvidence:
        """The evidence with one package replaced."""
        self.packages[epoch][place] = package
        return self.evidence()

    async def judged(self, shown: CaseEvidence, **accusation: Any) -> Opinion:
        data = shown.encode()
        accused = Accusation(
            accused=self.worker.operator, model=MODEL, evidence=sha256(data), uri="http://accuser", from_epoch=FIRST,
            to_epoch=FIRST + len(self.plans) - 1, plant=Digest.zero(),
        )  # fmt: skip
        case = Case(
            id=1, state=CaseState.VOTING, accuser=ACCUSER, accusation=replace(accused, **accusation), round=1,
            jury_block=1, ballots=(), commit_until=0, reveal_until=0, appeal_until=0, veto_until=0, outcome=None,
            ending=Ending.OPEN, sentence=0, opened_at=0, appellant=NOBODY,
        )  # fmt: skip
        self.page = data if self.page is None else self.page
        return await self.juror.judge(case)

    async def get(self, url: str, most: int) -> bytes:
        self.asked += 1
        if self.page is None:
            raise Unavailable("no page")
        if len(self.page) > most:
            raise MalformedMessage("too large")
        return self.page


class _Impatient(TurnedClock):
    async def sleep(self, seconds: float) -> None:
        pass


@pytest.fixture
async def trial() -> Trial:
    """Of a worker that cheats: every bend must take the conviction away."""
    return await Trial.of(TinyWorker("cheater", TinyModel(weights=b"cheap")))


async def refused(trial: Trial, shown: CaseEvidence, words: str, **accusation: Any) -> None:
    opinion = await trial.judged(shown, **accusation)
    assert opinion.verdict is Verdict.INNOCENT
    assert "AUD-5" in opinion.why
    assert words in opinion.why


async def test_whole_evidence_against_a_cheater_convicts(trial: Trial) -> None:
    """AUD-54: what every other test here bends."""
    opinion = await trial.judged(trial.evidence())
    assert opinion.verdict is Verdict.GUILTY
    assert opinion.log10 > 6


async def test_whole_evidence_against_an_honest_worker_acquits() -> None:
    """AUD-54, AUD-56: rounding alone convinces nobody."""
    trial = await Trial.of(TinyWorker("honest"), epochs=3, canaries=8)
    opinion = await trial.judged(trial.evidence())
    assert opinion.verdict is Verdict.INNOCENT
    assert opinion.log10 < 3


async def test_an_accuser_cherry_picks_its_epochs(trial: Trial) -> None:
    """AUD-54: a plan on chain must be shown."""
    await refused(trial, trial.evidence(epochs=trial.evidence().epochs[1:]), "missing")


async def test_an_accuser_begins_where_it_suits_it(trial: Trial) -> None:
    """AUD-54: a case begins at a multiple of 64, not after the answers that speak for the accused."""
    evidence = trial.evidence(epochs=trial.evidence().epochs[1:])
    await refused(trial, evidence, "begins where its accuser liked", from_epoch=FIRST + 1)


async def test_an_accuser_leaves_planned_canaries_out(trial: Trial) -> None:
    """AUD-54: a plan that lost its good answers gives another root."""
    first = trial.evidence().epochs[0]
    shorter = replace(first, canaries=first.canaries[:3], packages=first.packages[:3])
    await refused(trial, trial.evidence(epochs=(shorter, trial.evidence().epochs[1])), "not the one committed")


async def test_an_accuser_withholds_answers_and_only_helps_the_accused(trial: Trial) -> None:
    """AUD-53: a canary without an answer counts for the accused."""
    whole = await trial.judged(trial.evidence())
    trial.page = None
    one = [replace(epoch, packages=epoch.packages[:1]) for epoch in trial.evidence().epochs]
    some = await trial.judged(trial.evidence(epochs=tuple(one)))
    assert (whole.verdict, some.verdict) == (Verdict.GUILTY, Verdict.ABSTAIN)


async def test_attack_an_accuser_asks_for_ever_and_shows_the_three_answers_that_failed() -> None:
    """AUD-54, JDG-12: an honest machine fails once in thousands of answers, by tokens that are far off. The answers
    between are what speaks for it; withheld, they must speak no less."""
    trial = await Trial.of(TinyWorker("honest"), epochs=2, canaries=1)
    target = Target(operator=trial.worker.operator, model=MODEL, name="tiny", canaries=250, most=32)
    faulty = replace(trial.worker, model=TinyModel(weights=b"cheap"))
    for number in range(2):
        plan = make_plan(FIRST + number, [target], sha256(b"many", bytes([number])), k=3, single_bps=0)
        trial.plans[number] = plan
        commitment = PlanCommitment(epoch=plan.epoch, root=plan.root, count=len(plan.canaries))
        trial.court.plans[ACCUSER, plan.epoch] = commitment
        bad = [canary for canary in plan.canaries if canary.index in (100, 200)][: 2 - number]
        trial.packages[number] = [await faulty.answer(canary, canary_nonce(canary), BEGAN) for canary in bad]
    opinion = await trial.judged(trial.evidence())
    assert (opinion.verdict, round(opinion.log10)) == (Verdict.INNOCENT, 0), opinion.why


async def test_an_accuser_never_committed_a_plan(trial: Trial) -> None:
    """AUD-54: canaries chosen after the answers were seen prove nothing."""
    trial.court.plans.clear()
    await refused(trial, trial.evidence(), "missing")


async def test_an_accuser_replays_another_workers_answers() -> None:
    """AUD-54: a cheater's answers are the cheater's."""
    honest, cheater = TinyWorker("honest"), TinyWorker("cheater", TinyModel(weights=b"cheap"))
    trial = await Trial.of(honest)
    canary = trial.plans[0].canaries[0]
    stolen = await cheater.answer(canary, canary_nonce(canary), BEGAN)
    await refused(trial, trial.swap(0, 0, stolen), "another request, worker or model")


async def test_an_accuser_signs_answers_itself(trial: Trial) -> None:
    """AUD-54: only keys of appraised enclaves of the accused count."""
    forger = TinyWorker("cheater", TinyModel(weights=b"worse"))
    canary = trial.plans[0].canaries[0]
    package = await forger.answer(canary, canary_nonce(canary), BEGAN)
    signed = replace(package.receipt, signature=key_of("accuser").sign(sha256(b"anything")))
    await refused(trial, trial.swap(0, 0, replace(package, receipt=signed)), "not signed by an appraised enclave")


async def test_an_accuser_boots_an_enclave_that_claims_to_be_the_accused(trial: Trial) -> None:
    """AUD-54: a keyset says whom it works for; the registry never named this key, so a juror abstains."""
    impostor = TinyWorker("impostor", TinyModel(weights=b"cheap"))
    canary = trial.plans[0].canaries[0]
    package = await trial.worker.answer(canary, canary_nonce(canary), BEGAN)
    signed = SignedReceipt.sign(package.receipt.receipt, DOMAIN, impostor.receipt_key)
    forged = replace(package, receipt=signed)
    trial.packages[0][0] = forged
    bundle = impostor.bundle(operator=trial.worker.operator)
    opinion = await trial.judged(trial.evidence(bundles=(trial.worker.bundle(), bundle)))
    assert opinion.verdict is Verdict.ABSTAIN
    assert "registry" in opinion.why


async def test_an_accuser_shows_answers_to_prompts_of_its_own(trial: Trial) -> None:
    """AUD-51: the body must be what the planned seed gives."""
    package = trial.packages[0][0]
    await refused(
        trial, trial.swap(0, 0, replace(package, body=package.body + b" ")), "not the prompt that was planned"
    )


async def test_an_accuser_tries_nonces_until_one_looks_bad(trial: Trial) -> None:
    """AUD-51: the nonce is fixed with the plan."""
    canary = trial.plans[0].canaries[0]
    chosen = await trial.worker.answer(canary, sha256(b"the thousandth nonce"), BEGAN)
    await refused(trial, trial.swap(0, 0, chosen), "nonce")


async def test_an_accuser_changes_what_the_worker_said_of_its_answer(trial: Trial) -> None:
    """AUD-55: block and usage must be what the signed receipt commits to."""
    package = trial.packages[0][0]
    await refused(trial, trial.swap(0, 0, replace(package, salt=b"x" * 32)), "does not bind")


async def test_an_accuser_shows_one_answer_twice(trial: Trial) -> None:
    """AUD-54: a bad answer counts once."""
    trial.packages[0].append(trial.packages[0][0])
    await refused(trial, trial.evidence(), "two answers")


async def test_an_accuser_adds_answers_it_had_not_planned(trial: Trial) -> None:
    """AUD-54: every answer belongs to a canary of the plan."""
    stray = make_plan(
        FIRST, [Target(operator=trial.worker.operator, model=MODEL, name="tiny", canaries=1, most=32)],
        b"r" * 32, k=1, single_bps=10_000,
    ).canaries[0]  # fmt: skip
    trial.packages[0].append(await trial.worker.answer(stray, canary_nonce(stray), BEGAN))
    await refused(trial, trial.evidence(), "not planned")


async def test_an_accuser_brings_a_harsher_calibration(trial: Trial) -> None:
    """AUD-54: the model is its manifest, calibration included."""
    assert MANIFEST.calibration is not None
    harsh = replace(MANIFEST, calibration=replace(MANIFEST.calibration, m0_e6=1))
    await refused(trial, trial.evidence(manifest=harsh.encode()), "another model's")


async def test_an_accuser_serves_other_bytes_than_it_named(trial: Trial) -> None:
    """AUD-54: the digest stands on chain."""
    trial.page = trial.evidence().encode() + b"\x00"
    await refused(trial, trial.evidence(), "not what the case names")


@pytest.mark.parametrize("page", [b"", b"\xd9\x69\xda\xa0", b"not cbor", b"\xa1" * 999])
async def test_an_accuser_serves_garbage(trial: Trial, page: bytes) -> None:
    """AUD-54: typed errors, whatever comes."""
    trial.page = page
    await refused(trial, trial.evidence(), "evidence that cannot be read", evidence=sha256(page))


async def test_an_evidence_bomb_is_not_read_to_its_end(trial: Trial) -> None:
    """AUD-54: at most 8 MiB are taken."""
    trial.page = bytes((8 << 20) + 1)
    opinion = await trial.judged(trial.evidence(), evidence=sha256(trial.page))
    assert opinion.verdict is Verdict.INNOCENT


async def test_a_page_that_does_not_answer_is_not_the_accuseds_nor_the_accusers_fault(trial: Trial) -> None:
    """AUD-56: the juror tries again, then abstains."""

    async def silent(url: str, most: int) -> bytes:
        trial.asked += 1
        raise Unavailable("no answer")

    trial.get = silent  # type: ignore[method-assign]
    opinion = await trial.judged(trial.evidence())
    assert opinion.verdict is Verdict.ABSTAIN
    assert trial.asked == 3


async def test_a_juror_without_the_model_abstains(trial: Trial) -> None:
    """AUD-56: it votes by what it found itself, and finds nothing."""
    trial.juror._examiner = Examiner({})
    assert (await trial.judged(trial.evidence())).verdict is Verdict.ABSTAIN


async def test_a_worker_that_calls_plain_text_unauditable_fails_those_answers(trial: Trial) -> None:
    """AUD-55: mode none is no way out where every engine could have been re-run."""
    none = {"mode": AuditMode.NONE, "why": "not today", "sampler": None}
    for epoch, plan in enumerate(trial.plans):
        trial.packages[epoch] = [
            await trial.worker.answer(c, canary_nonce(c), BEGAN, block=none) for c in plan.canaries
        ]
    opinion = await trial.judged(trial.evidence())
    assert opinion.verdict is Verdict.GUILTY


async def test_no_changed_byte_of_evidence_hurts_a_juror() -> None:
    """AUD-54: a finding or an abstention, never another exception; nothing forged convicts."""
    trial = await Trial.of(TinyWorker("honest"), epochs=1, canaries=2)
    whole = trial.evidence().encode()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        changed = whole[:place] + bytes([whole[place] ^ (1 + place % 255)]) + whole[place + 1 :]
        trial.page = changed
        opinion = await trial.judged(trial.evidence(), evidence=sha256(changed))
        assert opinion.verdict is not Verdict.GUILTY
