# SPDX-License-Identifier: Apache-2.0
"""`bombyx audit`: was one answer really made by the model it was paid as? Judged here, with the weights at hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.output import print_json, print_rows
from bombyx.compose.auditing import Kept, dispute, hand_over, kept, rerun
from bombyx.config import NetworkDescriptor, state_home
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import Address


def audit(
    receipt: Annotated[str, typer.Argument(help="request id, the beginning of one, or `last`")] = "last",
    state: Annotated[Path | None, typer.Option(help="the client's folder")] = None,
    network: Annotated[Path | None, typer.Option(help="network descriptor, for --opt-in")] = None,
    model_file: Annotated[
        Path | None, typer.Option(help="GGUF file to judge with; default: the packaged model")
    ] = None,
    opt_in: Annotated[
        str | None, typer.Option(help="hand the answer, prompt included, to this validator's enclave")
    ] = None,
    to_all: Annotated[
        bool, typer.Option("--dispute", help="hand the answer, prompt included, to every validator's enclave")
    ] = False,
    threads: Annotated[int, typer.Option(help="threads of re-running", min=1)] = 1,
    context: Annotated[int, typer.Option(help="tokens of prompt and answer together", min=256)] = 4_096,
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Judge one kept answer. Exit code 0: it passes (or is grey), 3: it fails; one answer alone convicts nobody."""
    facts, failed = asyncio.run(_audit(receipt, state, network, model_file, opt_in, to_all, threads, context))
    if json:
        print_json(facts)
    else:
        print_rows([(name, str(value)) for name, value in facts.items()])
    raise typer.Exit(3 if failed else 0)


async def _audit(
    receipt: str,
    state: Path | None,
    network: Path | None,
    model_file: Path | None,
    opt_in: str | None,
    to_all: bool,
    threads: int,
    context: int,
) -> tuple[dict[str, Any], bool]:
    held = await kept(state or state_home() / "client", receipt)
    if opt_in is not None:
        return await hand_over(held, NetworkDescriptor.load(network), _address(opt_in)), False
    if to_all:
        return await dispute(held, NetworkDescriptor.load(network)), False
    verdict = await rerun(held, model_file, context=context, threads=threads)
    return _facts(held, verdict), verdict.failed


def _facts(held: Kept, verdict: ResponseVerdict) -> dict[str, Any]:
    return {
        "request_id": held.request_id,
        "worker": str(held.package.receipt.receipt.operator),
        "model": held.manifest.name,
        "verdict": str(verdict.verdict),
        "tokens": verdict.tokens,
        "mean_margin": round(verdict.mean_margin, 5),
        "max_margin": round(verdict.max_margin, 4),
        "outside": verdict.outside,
        "counts_as_evidence": verdict.counts,
        "why": "; ".join(verdict.reasons) or "as an honest answer",
    }


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no address of 20 bytes") from None
