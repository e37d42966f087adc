# SPDX-License-Identifier: Apache-2.0
"""Turns an answer and what became of it into the record that is kept. Values in, a value out."""

from __future__ import annotations

from dataclasses import dataclass

from bombyx.protocol.primitives import Address, Instant, sha256
from bombyx.roles.client.answer import Answer, Terms, Verdict
from bombyx.roles.client.kept import KeptReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Where receipts may be judged."""

    chain_id: int
    registry: Address


def kept_of(
    terms: Terms,
    answer: Answer,
    *,
    chain: Chain,
    at: Instant,
    outcome: str,
    paid: int,
    fault: str,
    verdict: Verdict | None,
    openings: bool,
) -> KeptReceipt:
    """`answer` must know its candidate. Without a verdict, counts are zero and the text is unchecked."""
    candidate, sealed = answer.candidate, terms.sealed
    assert candidate is not None
    usage = verdict.usage if verdict else None
    place = sealed.meta.candidates.index(candidate.id)
    return KeptReceipt(
        v=1,
        at=at,
        path=terms.asked.path,
        receipts=tuple(answer.receipts),
        meta=sealed.meta_bytes,
        wrap=sha256(sealed.wraps[place] if sealed.wraps else b""),
        body=sha256(sealed.body),
        input=usage.input if usage else 0,
        cached_input=usage.cached_input if usage else 0,
        output=usage.output if usage else 0,
        verified=usage.verified if usage else False,
        note=usage.note if usage else "",
        salt=verdict.salt if verdict and openings else b"",
        usage=usage.encode() if usage and openings else b"",
        bundle=candidate.offer.bundle,
        chain_id=chain.chain_id,
        registry=chain.registry,
        trust_class=str(candidate.result.trust_class),
        paid=paid,
        proxy=sealed.meta.proxy,
        text=verdict.text if verdict else "unchecked",
        audit=verdict.audit if verdict else "none (the answer did not pass)",
        outcome=outcome,
        fault=fault[:500],
    )
