# SPDX-License-Identifier: Apache-2.0
"""How another provider's report is verified and shown by `bombyx verify`: a table a part, one line a step, or JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final, NamedTuple

from bombyx.cli.files import read_bytes
from bombyx.cli.output import print_json, print_rows
from bombyx.errors import ConfigError
from bombyx.protocol.attest import (
    AppraisalPolicy,
    Archive,
    AtHand,
    Examination,
    Outcome,
    Report,
    Status,
    Step,
    Verdict,
    examine,
    recognise,
)
from bombyx.protocol.primitives import Instant

EXIT_CODES: Final = {Verdict.VERIFIED: 0, Verdict.REFUSED: 1, Verdict.UNDECIDED: 3}


class Options(NamedTuple):
    """What the command line may add to the file."""

    nonce: str | None
    report_data: str | None
    endorsements: list[Path]
    tokens: list[Path]
    jwks: Path | None
    rims: list[Path]
    ocsp: list[Path]
    only: str | None
    strict: bool
    json: bool


def verify_report(data: bytes, policy: AppraisalPolicy, now: Instant, given: Options) -> int:
    """Examine, show, and say with which code to exit."""
    report, at_hand = opened(data)
    examination = examine(chosen(report, given.only), policy, now=now, at_hand=_with(at_hand, given))
    if given.json:
        print_json(as_dict(examination))
    else:
        _show(examination)
    code = EXIT_CODES[examination.verdict]
    gaps = any(has_gaps(outcome.steps) for outcome in examination.outcomes)
    return EXIT_CODES[Verdict.UNDECIDED] if given.strict and code == 0 and gaps else code


def has_gaps(steps: tuple[Step, ...]) -> bool:
    """Whether any line, or a part of one, was not checked."""
    return any(step.status is Status.NOT_CHECKED or str(Status.NOT_CHECKED) in step.detail for step in steps)


def opened(data: bytes) -> tuple[Report, AtHand]:
    """The report in a file, and what an archive carries beside it."""
    found, at_hand = recognise(data), AtHand()
    if isinstance(found, Archive):
        at_hand, found = found.at_hand(), recognise(found.report)
    if not isinstance(found, Report):
        raise ConfigError("an archive holds a provider's report; a bundle is verified as it is")
    return found, at_hand


def chosen(report: Report, only: str | None) -> Report:
    """Only the part of this name, when one is asked for."""
    if only is None:
        return report
    parts = tuple(part for part in report.parts if part.name == only)
    if not parts:
        raise ConfigError(f"no part {only!r}; there are: {', '.join(part.name for part in report.parts)}")
    return dataclasses.replace(report, parts=parts, chosen=True)


def _with(at_hand: AtHand, given: Options) -> AtHand:
    return dataclasses.replace(
        at_hand,
        endorsements=(*(read_bytes(file) for file in given.endorsements), *at_hand.endorsements),
        tokens=tuple(read_bytes(file) for file in given.tokens) or at_hand.tokens,
        jwks=read_bytes(given.jwks) if given.jwks else at_hand.jwks,
        rims=(*(read_bytes(file) for file in given.rims), *at_hand.rims),
        ocsp=(*(read_bytes(file) for file in given.ocsp), *at_hand.ocsp),
        nonce=at_hand.nonce if given.nonce is None else hexed(given.nonce, "--nonce", 32),
        report_data=None if given.report_data is None else hexed(given.report_data, "--report-data", 32, 64),
    )


def hexed(text: str, option: str, *sizes: int) -> bytes:
    """Hex of one of these sizes. Raises `ConfigError`."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) not in sizes:
        raise ConfigError(f"{option} takes hex of {' or '.join(str(size) for size in sizes)} bytes")
    return value


def as_dict(examination: Examination) -> dict[str, Any]:
    """For programs. `passed` is true only when everything was verified."""
    return {
        "passed": examination.verdict is Verdict.VERIFIED,
        "verdict": str(examination.verdict),
        "form": examination.form,
        "parts": [_part(outcome) for outcome in examination.outcomes],
    }


def _part(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "verdict": str(outcome.verdict),
        "why": outcome.why,
        "trust_class": outcome.trust_class,
        "until_ms": outcome.until,
        "keys": dict(outcome.keys),
        "claims": claims_of(outcome),
        "steps": [dataclasses.asdict(step) for step in outcome.steps],
    }


def claims_of(outcome: Outcome) -> dict[str, Any] | None:
    """What the signatures prove, in hex; None when they prove nothing."""
    if outcome.claims is None:
        return None
    quote, boot = outcome.claims.quote, outcome.claims.boot
    return {
        "format": quote.format,
        "platform": quote.platform,
        "tcb_status": quote.tcb_status,
        "advisories": quote.advisories,
        "measurements": {name: value.hex() for name, value in quote.measurements},
        "report_data": quote.report_data.hex(),
        "compose_hash": boot.compose_hash.hex() if boot.compose_hash else None,
        "app_id": boot.app_id.hex(),
        "instance_id": boot.instance_id.hex(),
        "os_image_hash": boot.os_image_hash.hex(),
        "key_provider": boot.key_provider.decode("utf-8", "replace"),
        "gpus": outcome.claims.gpus,
        "reference_value": outcome.claims.reference_value,
    }


def _show(examination: Examination) -> None:
    for outcome in examination.outcomes:
        print_rows([(f"{outcome.name}: {outcome.verdict}",)])
        print_rows([(str(step.number), step.name, str(step.status), step.detail) for step in outcome.steps])
        print_rows([(f"  {line}",) for line in _proven(outcome)])
        print_rows([("",)])
    print_rows([(f"{examination.form}: {examination.verdict}",)])
    print_rows([(f"  {outcome.name}: {outcome.why}",) for outcome in examination.outcomes])


def _proven(outcome: Outcome) -> list[str]:
    lines = [f"{what}: {value}" for what, value in outcome.keys]
    return lines + [f"GPU: {line}" for line in (outcome.claims.gpus if outcome.claims else ())]
