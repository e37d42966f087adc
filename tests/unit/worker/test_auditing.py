# SPDX-License-Identifier: Apache-2.0
"""What a worker says of an answer that can be re-run, and of one that cannot."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.audit.blocks import ASKED, BODY, CAP, CLAIMANT, IDS, MANIFEST, NONCE, PROMPT, SALT, SENT, USAGE

from bombyx.ports import EngineAudit, EngineChunk, EngineUsage
from bombyx.protocol.audit.asked import CHAT, read_sampling
from bombyx.protocol.audit.commitment import IdChain, mark_line
from bombyx.protocol.audit.seed import joint_root
from bombyx.protocol.audit.structure import check_block
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal.opening import OpenedRequest
from bombyx.protocol.wire.audit import AuditMode
from bombyx.roles.worker.asked import Asked
from bombyx.roles.worker.auditing import NO_ENGINE, NO_TABLE, AnswerAudit

REQUEST_HASH, OPERATOR = Digest(b"\x0a" * 32), Address(b"\x0b" * 20)


def audit(manifest: Any = MANIFEST) -> AnswerAudit:
    opened = cast(OpenedRequest, SimpleNamespace(salt=SALT, request_hash=REQUEST_HASH))
    asked = Asked(path=CHAT, stream=True, body=BODY, client_nonce=NONCE, claimant=CLAIMANT)
    return AnswerAudit(opened, asked, manifest, OPERATOR)


def said(**changes: Any) -> EngineUsage:
    sampler = read_sampling(CHAT, ASKED, cap=CAP).sampler
    assert sampler is not None
    honest = EngineUsage(
        input=len(PROMPT),
        cached_input=0,
        output=len(IDS),
        ids=(IDS,),
        finish=("stop",),
        verified=True,
        note="",
        audit=EngineAudit(prompt_ids=PROMPT, sampler=sampler, engine=""),
    )
    return replace(honest, **changes)


def test_the_seed_is_nobodys_choice() -> None:
    """AUD-1: made of the sealed request, the client's nonce and our address; the worker adds nothing of its own."""
    assert audit().ask.root == joint_root(REQUEST_HASH, NONCE, OPERATOR)
    assert audit().ask == audit().ask


@pytest.mark.parametrize("context", [4096, 50, 0])
def test_an_honest_block_passes_the_clients_checks(context: int) -> None:
    """AUD-5, AUD-7: also where prompt and answer fill the model's context, and where the engine has no name."""
    manifest = replace(MANIFEST, context=context)
    block = audit(manifest).block(said(), USAGE)
    assert block.mode is AuditMode.SEEDED
    check_block(block, USAGE, SENT, manifest, salt=SALT)


@pytest.mark.parametrize(
    ("usage", "opening", "manifest", "why"),
    [
        (said(audit=None), USAGE, MANIFEST, NO_ENGINE),
        (said(audit=None, audit_why="`tools` is not covered"), USAGE, MANIFEST, "`tools` is not covered"),
        (said(), replace(USAGE, verified=False, note="lost ids"), MANIFEST, "lost ids"),
        (said(), USAGE, replace(MANIFEST, weights=()), NO_TABLE),
        (said(), USAGE, replace(MANIFEST, tokenizer=None), NO_TABLE),
    ],
)
def test_what_cannot_be_re_run_says_why(usage: EngineUsage, opening: Any, manifest: Any, why: str) -> None:
    """AUD-5: and still names request, nonce and claimant."""
    block = audit(manifest).block(usage, opening)
    assert (block.mode, block.why) == (AuditMode.NONE, why)
    check_block(block, opening, SENT, manifest, salt=SALT)


def test_marks_follow_the_event_that_completes_a_step_and_never_the_end() -> None:
    """AUD-6: whatever number of ids comes at a time; those of other choices do not count."""
    made, chain = audit(), IdChain(SALT)
    ids = tuple(range(70))
    assert made.marked(EngineChunk(data=b"data: a\n\n", ids=((0, ids[:31]), (1, ids)))).data == b"data: a\n\n"
    first = made.marked(EngineChunk(data=b"data: b\n\n", ids=((0, ids[31:32]),)))
    last = made.marked(EngineChunk(data=b"data: [DONE]\n\n", ids=((0, ids[32:]),)))
    marks = [mark_line(count, head) for count, head in chain.take(ids)]
    assert first.data == b"data: b\n\n" + marks[0]
    assert last.data == marks[1] + b"data: [DONE]\n\n"
    assert len(marks) == 2
