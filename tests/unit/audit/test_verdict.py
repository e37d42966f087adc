# SPDX-License-Identifier: Apache-2.0
"""Verdicts on answers and findings on workers; calibrations and their files; how many answers are audited."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import MalformedMessage
from bombyx.protocol.audit.calibration import DEFAULT, calibrate, from_json, to_json, upper_bound
from bombyx.protocol.audit.case import Verdict
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.margin import Margin, Row
from bombyx.protocol.audit.rate import FLOOR, adapted, rate, selected
from bombyx.protocol.audit.verdict import SLASH, Grade, broken, find, judge, scored_ids, taken_in, weigh
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.audit import ALGORITHM, SamplerBlock, SeedSource

GREEDY = SamplerBlock(
    algorithm=ALGORITHM,
    temperature_e6=0,
    top_p_e6=1_000_000,
    top_k=50,
    presence_e6=0,
    frequency_e6=0,
    max_output=64,
    seed_source=SeedSource.GREEDY,
    stop=(),
)
END = 2


def made(*values: float, outside: int = 0) -> list[Margin]:
    return [Margin(value=value, outside=place < outside) for place, value in enumerate(values)]


def greedy_row(best: int, lead: float, chosen: float) -> Row:
    ranked = ((best, lead), *((1_000 + n, -9.0) for n in range(60)))
    return Row(candidates=ranked, chosen=chosen, chosen_rank=0 if chosen == lead else 1)


def test_an_honest_answer_passes() -> None:
    """JDG-5: hundredths of a logit, here and there."""
    assert weigh(made(*[0.0] * 60, 0.2, 0.3), DEFAULT).verdict is Grade.PASS


def test_attack_one_replaced_token_fails_the_answer() -> None:
    """JDG-5: a single margin above the hard limit, or a token that could not be drawn."""
    assert weigh(made(*[0.0] * 200, 2.5), DEFAULT).verdict is Grade.FAIL
    assert weigh(made(*[0.0] * 200, outside=1), DEFAULT).verdict is Grade.FAIL


def test_attack_a_smaller_quantisation_fails_by_its_mean() -> None:
    """JDG-5: no token is far off, all of them a little."""
    found = weigh(made(*([0.0] * 12 + [0.8] * 4) * 4), DEFAULT)
    assert found.verdict is Grade.FAIL
    assert found.mean_margin == pytest.approx(0.2)


def test_a_short_answer_is_not_judged_by_its_mean() -> None:
    """JDG-5: an honest answer of 18 tokens had a mean of 0.047."""
    assert weigh(made(*[0.0] * 16, 0.3, 0.6), DEFAULT).verdict is Grade.GREY


def test_no_token_within_the_hard_limit_fails_an_answer_alone() -> None:
    """JDG-5: one margin of 1.22 among 32 tokens has a mean of 0.031, and an honest worker had it."""
    assert weigh(made(*[0.0] * 31, 1.22), DEFAULT).verdict is Grade.GREY
    assert weigh(made(*[0.0] * 30, 1.22, 1.22), DEFAULT).verdict is Grade.FAIL


def test_an_odd_answer_is_grey_and_grey_is_not_failed() -> None:
    """JDG-5: grey raises attention and enters the e-process as passed."""
    found = weigh(made(*[0.0] * 60, 1.5), DEFAULT)
    assert found.verdict is Grade.GREY
    assert not found.failed


def test_attack_an_early_stop_is_judged_at_the_token_that_is_missing() -> None:
    """JDG-4: finish "stop" without an emitted end is scored as if the end had been emitted."""
    ids = scored_ids((7, 8), finish="stop", ends=(END, 0), stopped_by_text=False)
    assert ids == (7, 8, END)
    rows = [greedy_row(7, 5.0, 5.0), greedy_row(8, 5.0, 5.0), greedy_row(9, 5.0, -6.0)]
    assert judge(rows, ids, sampler=GREEDY, seed=0, calibration=DEFAULT).failed
    for finish, by_text, output in (("length", False, (7, 8)), ("stop", True, (7, 8)), ("stop", False, (7, END))):
        assert scored_ids(output, finish=finish, ends=(END, 0), stopped_by_text=by_text) == output


def test_rows_that_do_not_fit_the_ids_are_refused() -> None:
    """JDG-1: one row an id."""
    with pytest.raises(ValueError):
        judge([], (1,), sampler=GREEDY, seed=0, calibration=DEFAULT)


def test_an_answer_with_the_applications_own_seed_is_checked_and_not_counted() -> None:
    """JDG-12: who chose the noise alone could have chosen it to accuse."""
    verdict = weigh(made(*[0.9] * 64), DEFAULT, counts=False)
    evidence = Evidence.none(DEFAULT)
    assert verdict.failed
    assert taken_in(evidence, verdict) == evidence
    assert taken_in(evidence, replace(verdict, counts=True)) != evidence


def test_attack_one_terrible_answer_convicts_nobody() -> None:
    """JDG-15: nothing is slashed on one token, or on one answer of one token each way wrong."""
    once = taken_in(Evidence.none(DEFAULT), weigh(made(*[0.0] * 63, 30.0), DEFAULT))
    assert find(once) is Verdict.INNOCENT
    assert find(taken_in(Evidence.none(DEFAULT), broken("text"))) is Verdict.INNOCENT


def test_attack_one_answer_of_another_model_convicts_nobody() -> None:
    """JDG-15: a million to one from one answer is a reason to look again, not a conviction; the third one is."""
    foreign, evidence = weigh(made(*([0.0] * 3 + [0.9]) * 40), DEFAULT), Evidence.none(DEFAULT)
    found = []
    for _ in range(3):
        evidence = taken_in(evidence, foreign)
        found.append((evidence.peak >= SLASH, find(evidence)))
    assert found == [(True, Verdict.ABSTAIN), (True, Verdict.ABSTAIN), (True, Verdict.GUILTY)]


def test_a_worker_that_always_swaps_is_found_guilty_in_a_few_answers() -> None:
    """JDG-15: and in between a juror abstains."""
    evidence, findings = Evidence.none(DEFAULT), []
    for _ in range(6):
        evidence = taken_in(evidence, weigh(made(*([0.0] * 6 + [0.6, 0.4]) * 4), DEFAULT))
        findings.append(find(evidence))
    assert findings[-1] is Verdict.GUILTY
    assert findings == sorted(findings, key=[Verdict.INNOCENT, Verdict.ABSTAIN, Verdict.GUILTY].index)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_the_bound_follows_the_worst_honest_configuration() -> None:
    """JDG-6: twice its mean; and p0 never below what the number of answers supports."""
    quiet, noisy = weigh(made(*[0.0] * 63, 0.0), DEFAULT), weigh(made(*[0.0] * 63, 0.64), DEFAULT)
    found = calibrate({"one": [quiet] * 50, "two": [noisy] * 50}, DEFAULT)
    assert found.m0_e6 == pytest.approx(20_000, abs=1)
    assert (found.responses, found.tokens) == (100, 6_400)
    assert found.p0_e6 == pytest.approx(29_513, rel=0.01)  # 0 of 100 bounds a share by 2.95 %


def test_nothing_measured_is_no_calibration() -> None:
    """JDG-6: empty means no."""
    with pytest.raises(ValueError):
        calibrate({}, DEFAULT)


@pytest.mark.parametrize(("hits", "tries", "bound"), [(0, 59, 0.0495), (0, 2_000, 0.001497), (3, 100, 0.0757)])
def test_the_upper_bound_is_clopper_and_pearsons(hits: int, tries: int, bound: float) -> None:
    """JDG-6: tables agree."""
    assert upper_bound(hits, tries) == pytest.approx(bound, rel=0.01)


def test_a_calibration_file_comes_back() -> None:
    """JDG-7."""
    assert from_json(to_json(DEFAULT)) == DEFAULT


@pytest.mark.parametrize(
    "change",
    [{"m0_e6": 0}, {"m0_e6": 999_999}, {"p0_e6": 0}, {"clip_e6": 0}, {"hard_e6": 1}, {"m0_e6": 0.5}, {"family": 3},
     {"min_tokens": 0}, {"more": 1}, {"core_e6": -1}, {"tokens": True}],
)  # fmt: skip
def test_attack_a_calibration_that_would_excuse_or_break_everything(change: dict[str, object]) -> None:
    """JDG-7: refused with the rule; a judge never divides by nothing."""
    with pytest.raises(MalformedMessage, match="JDG-7"):
        from_json(json.dumps(asdict(DEFAULT) | change))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_calibration(data: bytes) -> None:
    """JDG-7."""
    with pytest.raises(MalformedMessage):
        from_json(data)


# --- how many --------------------------------------------------------------------------------------------------------


def test_at_the_rate_honesty_pays_as_well_as_cheating() -> None:
    """JDG-21: the smallest share at which a cheat gains nothing."""
    p = rate(0.004, 1.0, detection=0.9, fee=0.01, stake=50, floor=0.0)
    honest, cheat = 0.01 - 0.004, (1 - p * 0.9) * (0.01 + 1.0) - p * 0.9 * 50
    assert cheat == pytest.approx(honest)
    assert rate(0.004, 0.0, detection=0.9, fee=0.01, stake=500) == FLOOR
    assert rate(1, 0, detection=0.5, fee=0, stake=0) == 1.0


def test_new_and_suspected_workers_are_audited_more() -> None:
    """JDG-22: and the extra goes away with a record."""
    assert adapted(0.05, audits=0, log10_evidence=0) > 0.5
    assert adapted(0.05, audits=500, log10_evidence=-4) == pytest.approx(0.05)
    assert adapted(0.05, audits=500, log10_evidence=3) == pytest.approx(0.5)
    assert adapted(0.05, audits=500, log10_evidence=30) == 1.0
    assert adapted(0.05, audits=500, log10_evidence=5_000) == 1.0  # months of canaries against one cheat


def test_the_lottery_is_the_beacons() -> None:
    """JDG-23: the same for everybody, another for another beacon, and of the share it should have."""
    beacon, receipts = sha256(b"block"), [sha256(bytes([n % 256, n // 256])) for n in range(4_000)]
    drawn = [receipt for receipt in receipts if selected(beacon, receipt, 0.05)]
    assert 140 < len(drawn) < 260
    assert drawn != [receipt for receipt in receipts if selected(sha256(b"next"), receipt, 0.05)]
    assert not any(selected(beacon, receipt, 0.0) for receipt in receipts)
    assert all(selected(beacon, receipt, 1.0) for receipt in receipts[:50])
