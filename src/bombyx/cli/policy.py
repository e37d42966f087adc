# SPDX-License-Identifier: Apache-2.0
"""`bombyx policy`: appraisal policies in sentences, presets to start from, and Reference Values out of evidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from bombyx.cli.examined import opened
from bombyx.cli.files import named_policy, read_bytes
from bombyx.cli.moments import moment
from bombyx.cli.output import print_json, print_rows
from bombyx.config import NetworkDescriptor, default_descriptor_path
from bombyx.errors import AttestationError, ConfigError
from bombyx.protocol.attest import (
    PRESETS,
    AppraisalPolicy,
    Claims,
    ReferenceValue,
    Verdict,
    examine,
    explain_policy,
    missing,
    policy_to_toml,
)

app = typer.Typer(help="What evidence is accepted: appraisal policies.", no_args_is_help=True)
NamedArgument = Annotated[str, typer.Argument(help=f"a TOML file, or a preset: {', '.join(PRESETS)}")]


@app.command()
def explain(
    named: Annotated[str, typer.Argument(help="a TOML file or a preset; default: the running network's policy")] = "",
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say in sentences what a policy accepts, and what it lacks. Exit code 3 when nothing could pass."""
    policy = named_policy(named or _running())
    if json:
        print_json(
            {"lines": [{"subject": a, "text": b} for a, b in explain_policy(policy)], "missing": missing(policy)}
        )
    else:
        print_rows(explain_policy(policy))
    raise typer.Exit(3 if missing(policy) else 0)


def _running() -> Path:
    if not default_descriptor_path().exists():
        raise ConfigError(f"no network runs here: name a policy file or a preset ({', '.join(PRESETS)})")
    return NetworkDescriptor.load().policy


@app.command()
def show(named: NamedArgument) -> None:
    """Print a policy as TOML, to start your own from."""
    typer.echo(policy_to_toml(named_policy(named)), nl=False)


@app.command()
def pin(
    file: Annotated[Path, typer.Argument(help="evidence whose signatures verify")],
    policy: Annotated[str, typer.Option(help="policy to add to: a TOML file or a preset")] = "production-tdx-h100",
    at: Annotated[str | None, typer.Option(help="as of this time: Unix seconds or ISO 8601; default: now")] = None,
    endorsements: Annotated[list[Path] | None, typer.Option(help="Intel collateral or AMD certificates")] = None,
) -> None:
    """Print a policy that names the images found in this evidence as Reference Values.

    This trusts what is there today. Compare the hashes with what the provider publishes before you use it.
    """
    base = dataclasses.replace(named_policy(policy), reference_values=())
    report, at_hand = opened(read_bytes(file))
    extra = tuple(read_bytes(one) for one in endorsements or [])
    at_hand = dataclasses.replace(at_hand, endorsements=(*extra, *at_hand.endorsements))
    examined = examine(report, base, now=moment(at), at_hand=at_hand)
    refused = next((one for one in examined.outcomes if one.verdict is Verdict.REFUSED), None)
    if refused is not None:
        raise AttestationError(f"{refused.name}: {refused.why}", steps=refused.steps)
    values = tuple(_reference(one.name, one.claims) for one in examined.outcomes if one.claims is not None)
    if not values:
        raise AttestationError("nothing in this evidence could be verified: are the Endorsements missing?")
    typer.echo(policy_to_toml(_with(base, values)), nl=False)


def _with(base: AppraisalPolicy, values: tuple[ReferenceValue, ...]) -> AppraisalPolicy:
    """One Reference Value an image, though several parts run it; that of the part with GPUs wins."""
    images = {(one.compose_hash, one.measurements): one for one in sorted(values, key=lambda one: one.gpu)}
    return dataclasses.replace(base, reference_values=tuple(images.values()))


def _reference(name: str, claims: Claims) -> ReferenceValue:
    """The measured start of the machine, and the compose file; RTMR3 holds what differs from boot to boot."""
    known = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "measurement", "mrenclave", "mrsigner")
    return ReferenceValue(
        name=name,
        trust_class=claims.quote.trust_class,
        compose_hash=claims.boot.compose_hash,
        measurements=tuple((key, value) for key, value in sorted(claims.quote.measurements) if key in known),
        gpu=bool(claims.gpus),
    )
