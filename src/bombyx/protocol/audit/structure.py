# SPDX-License-Identifier: Apache-2.0
"""What can be checked of an auditable answer without running anything: free, at the client and at a Verifier (AUD-7).

Not here: the text (`TokenTable.relation`), the billed count (RCT-6), and whether the tokens are the model's (that takes
a prefill). Always: whatever is wrong is `ReceiptError`, the worker's fault, and names what.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from bombyx.errors import MalformedMessage, Peer, ReceiptError
from bombyx.protocol.audit.asked import read_sampling
from bombyx.protocol.audit.commitment import audit_commitment, request_digest, stream_root
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.audit import AuditBlock, AuditMode
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.receipt import Receipt, UsageOpening
from bombyx.protocol.wire.tokens import Relation

FINISHES = ("stop", "length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the checker knows of the request by itself. `cap`: Meta's output tokens; None where it has no Meta."""

    path: str
    body: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    claimant: Address
    cap: int | None


def open_block(receipt: Receipt, *, salt: bytes, block: bytes, usage: UsageOpening) -> AuditBlock:
    """The block, if it is what the receipt commits to. Raises `ReceiptError`."""
    try:
        opened = AuditBlock.decode(block)
    except MalformedMessage:
        raise _blame("the closing block opens no audit block", "AUD-5") from None
    if opened.v != 1 or audit_commitment(salt, opened, usage) != receipt.audit_commitment:
        raise _blame("the audit block is not what the receipt commits to", "AUD-5")
    return opened


def check_block(block: AuditBlock, usage: UsageOpening, sent: Sent, manifest: ModelManifest, *, salt: bytes) -> None:
    """Every structural rule that needs neither text nor vocabulary. Raises `ReceiptError`."""
    if block.request != request_digest(sent.path, sent.body):
        raise _blame("the answer was made for another request than was sent", "AUD-7")
    if block.claimant != sent.claimant or block.nonce != sent.nonce:
        raise _blame("the block names another nonce or claimant than was sent", "AUD-7")
    if block.mode is AuditMode.NONE:
        return
    _check_model(block, manifest)
    _check_sampler(block, usage, sent, manifest)
    if not usage.verified:
        raise _blame("an auditable answer without verified ids", "AUD-7")
    if block.stream_root != stream_root(salt, usage.choices[0].ids if usage.choices else ()):
        raise _blame("the hash chain does not end in the opened ids", "AUD-6")
    if block.prompt_count != usage.input:
        raise _blame(f"{block.prompt_count} prompt ids, {usage.input} billed", "AUD-7")


def check_finish(
    block: AuditBlock, usage: UsageOpening, relations: Sequence[Relation], specials: Sequence[Set[int]]
) -> None:
    """Why each choice ended, against its ids. `specials`: of each choice, the ids that stand for no text.

    Without the model nobody can tell which special token ends a generation; but what ended one choice may stand in no
    other place, and a choice that stopped by itself ends with one.
    """
    sampler = block.sampler
    if sampler is None:
        return
    ends: set[int] = set()
    for choice, relation, special in zip(usage.choices, relations, specials, strict=True):
        if choice.finish not in FINISHES:
            raise _blame("a finish reason that auditable answers do not have", "AUD-7")
        if choice.finish == "length" and len(choice.ids) != sampler.max_output:
            raise _blame(f"cut at its length with {len(choice.ids)} of {sampler.max_output} tokens", "AUD-7")
        if choice.finish == "stop" and relation is not Relation.CUT_AT_STOP:
            if not choice.ids or choice.ids[-1] not in special:
                raise _blame("stopped without an end token and without a stop string", "AUD-7")
            ends.add(choice.ids[-1])
        if len(choice.ids) > sampler.max_output:
            raise _blame("more tokens than the sampler block allows", "AUD-7")
    check_ends(usage, ends)


def check_ends(usage: UsageOpening, ends: Set[int]) -> None:
    """Nothing follows an end of generation. A Verifier knows the model's `ends`."""
    for choice in usage.choices:
        if any(token in ends for token in choice.ids[:-1]):
            raise _blame("tokens follow an end of generation", "AUD-7")


def most_output(asked: int, context: int, prompt: int) -> int:
    """What a choice may have at most: prompt and answer share the context, where the manifest names one."""
    return min(asked, max(0, context - prompt)) if context else asked


def manifest_weights(manifest: ModelManifest) -> Digest:
    """One digest over all weight files, in the manifest's order."""
    return sha256(*(file.sha256 for file in manifest.weights))


def _check_model(block: AuditBlock, manifest: ModelManifest) -> None:
    zero = Digest.zero()
    claimed = (block.weights, block.tokenizer, block.template)
    if claimed != (manifest_weights(manifest), manifest.tokenizer or zero, manifest.chat_template or zero):
        raise _blame("the block names other weights, tokenizer or template than the manifest", "AUD-7")
    if block.engine != manifest.engine:
        raise _blame("the block names another engine than the manifest", "AUD-7")


def _check_sampler(block: AuditBlock, usage: UsageOpening, sent: Sent, manifest: ModelManifest) -> None:
    sampler = block.sampler
    assert sampler is not None
    # Without Meta the cap is unknown: then the worker's limit may be anything up to what the body says.
    cap = sent.cap if sent.cap is not None else sampler.max_output * len(usage.choices)
    asked = read_sampling(sent.path, _object(sent.body), cap=cap)
    if asked.sampler is None or asked.choices != len(usage.choices):
        raise _blame("called auditable although the request is not covered", "AUD-3")
    wanted = most_output(asked.sampler.max_output, manifest.context, block.prompt_count)
    if sampler.max_output != wanted:
        raise _blame(f"made for {sampler.max_output} output tokens, not the {wanted} asked for", "AUD-7")
    same = ("algorithm", "temperature_e6", "top_p_e6", "top_k", "presence_e6", "frequency_e6", "seed_source", "stop")
    for name in same:
        if getattr(sampler, name) != getattr(asked.sampler, name):
            raise _blame(f"another `{name}` than was asked for", "AUD-7")


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _blame(message: str, rule: str) -> ReceiptError:
    return ReceiptError(message, peer=Peer.WORKER, rule=rule)
