# SPDX-License-Identifier: Apache-2.0
"""An answer's audit block, opened and held against what was sent, billed and streamed (spec AUD-5 .. AUD-7).

No I/O and no model: what takes a model is a Verifier's. Always: a block that lies is the worker's fault; an answer that
cannot be re-run is good all the same, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bombyx.errors import Peer, ReceiptError
from bombyx.protocol.audit.commitment import IdChain
from bombyx.protocol.audit.structure import Sent, check_block, check_finish, open_block
from bombyx.protocol.primitives import Digest
from bombyx.protocol.seal.fields import Fields, read_audit
from bombyx.protocol.wire.audit import AuditBlock, AuditMode, AuditPackage, SeedSource
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.receipt import SignedReceipt, UsageOpening
from bombyx.protocol.wire.tokens import Relation, TokenTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What one answer's block is checked with."""

    receipt: SignedReceipt
    salt: bytes = field(repr=False)
    usage: UsageOpening = field(repr=False)
    sent: Sent = field(repr=False)
    manifest: ModelManifest
    marks: Sequence[tuple[int, Digest]] = field(repr=False)


def open_audit(opened: Opened, trailers: Fields, relations: Sequence[Relation], table: TokenTable | None) -> AuditBlock:
    """The block, once all of it was checked. Raises `ReceiptError`."""
    data = read_audit(trailers)
    if data is None:
        raise _blame("the closing block holds no audit block", "AUD-5")
    usage, sent, manifest = opened.usage, opened.sent, opened.manifest
    block = open_block(opened.receipt.receipt, salt=opened.salt, block=data, usage=usage)
    check_block(block, usage, sent, manifest, salt=opened.salt)
    if usage.choices:
        _check_marks(opened)
    if block.mode is AuditMode.SEEDED:
        if table is None or len(relations) != len(usage.choices):
            raise _blame("called auditable, but its text cannot be held against its ids", "AUD-7")
        specials = [{token for token in choice.ids if table.is_special(token)} for choice in usage.choices]
        check_finish(block, usage, relations, specials)
    return block


def shown(block: AuditBlock) -> str:
    """In a few words, for people."""
    if block.sampler is None:
        return f"none ({block.why})"
    whose = {SeedSource.APPLICATION: ", the application's seed", SeedSource.GREEDY: ", greedy"}
    return "seeded" + whose.get(block.sampler.seed_source, "")


def package(opened: Opened, block: AuditBlock) -> AuditPackage:
    """Everything a Verifier needs. It holds the prompt: whoever gets it can read that."""
    return AuditPackage(
        v=1,
        receipt=opened.receipt,
        salt=opened.salt,
        usage=opened.usage.encode(),
        block=block.encode(),
        path=opened.sent.path,
        body=opened.sent.body,
    )


def _check_marks(opened: Opened) -> None:
    """Whole answers have no marks; a stream has every one."""
    if not opened.marks:
        return
    chain = IdChain(opened.salt)
    if list(chain.take(opened.usage.choices[0].ids)) != list(opened.marks):
        raise _blame("the marks in the stream are not of the ids that were opened", "AUD-6")


def _blame(message: str, rule: str) -> ReceiptError:
    return ReceiptError(message, peer=Peer.WORKER, rule=rule)
