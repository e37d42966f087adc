# SPDX-License-Identifier: Apache-2.0
"""What makes one answer one that can be re-run: its seed, the marks in its stream, its audit block (spec AUD-1 .. 6).

Not here: how tokens are chosen (the engine) and what a receipt commits to (`notary.py`).

Always: the seed is made of the sealed request, the client's nonce and our own address, and of nothing we choose; an
answer the engine cannot vouch for says `none`, and why.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bombyx.ports import AuditAsk, EngineAudit, EngineChunk, EngineUsage
from bombyx.protocol.audit.commitment import IdChain, ids_digest, mark_line, request_digest, stream_root, unauditable
from bombyx.protocol.audit.seed import NO_BEACON, joint_root
from bombyx.protocol.audit.structure import manifest_weights, most_output
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.seal.opening import OpenedRequest
from bombyx.protocol.wire.audit import AuditBlock, AuditMode, SamplerBlock
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.receipt import UsageOpening
from bombyx.roles.worker.asked import Asked

NO_ENGINE: Final = "this engine's answers cannot be re-run"
NO_TABLE: Final = "the model's manifest names no weights or no token table"
_DONE: Final = b"data: [DONE]"


class AnswerAudit:
    """One answer's."""

    def __init__(self, opened: OpenedRequest, asked: Asked, manifest: ModelManifest, operator: Address) -> None:
        self._salt = opened.salt
        self._asked = asked
        self._manifest = manifest
        self._chain = IdChain(opened.salt)
        self._root = joint_root(opened.request_hash, asked.client_nonce, operator)

    @property
    def ask(self) -> AuditAsk:
        """What the engine needs to know."""
        return AuditAsk(root=self._root)

    def marked(self, chunk: EngineChunk) -> EngineChunk:
        """A chunk of a stream with the marks its ids complete; before the end of the stream, never after it."""
        ids = [token for choice, tokens in chunk.ids if choice == 0 for token in tokens]
        marks = b"".join(mark_line(count, head) for count, head in self._chain.take(ids)) if ids else b""
        if not marks:
            return chunk
        data = marks + chunk.data if _DONE in chunk.data else chunk.data + marks
        return replace(chunk, data=data)

    def block(self, usage: EngineUsage, opening: UsageOpening) -> AuditBlock:
        """What the closing block says. `opening` is what is billed."""
        asked, manifest = self._asked, self._manifest
        request = request_digest(asked.path, asked.body)
        root = stream_root(self._salt, opening.choices[0].ids if opening.choices else ())
        why = self._why_not(usage, opening)
        if usage.audit is None or why:
            return unauditable(why, request=request, claimant=asked.claimant, nonce=asked.client_nonce, root=root)
        return AuditBlock(
            v=1,
            mode=AuditMode.SEEDED,
            why="",
            request=request,
            claimant=asked.claimant,
            weights=manifest_weights(manifest),
            tokenizer=manifest.tokenizer or Digest.zero(),
            template=manifest.chat_template or Digest.zero(),
            engine=usage.audit.engine or manifest.engine,  # a server's adapter knows no name of its own
            sampler=self._sampler(usage.audit),
            nonce=asked.client_nonce,
            beacon=NO_BEACON,
            prompt_ids=ids_digest(usage.audit.prompt_ids),
            prompt_count=len(usage.audit.prompt_ids),
            stream_root=root,
        )

    def _sampler(self, audit: EngineAudit) -> SamplerBlock:
        """A server cuts an answer where the model's context ends, and does not say so beforehand."""
        limit = most_output(audit.sampler.max_output, self._manifest.context, len(audit.prompt_ids))
        return replace(audit.sampler, max_output=limit)

    def _why_not(self, usage: EngineUsage, opening: UsageOpening) -> str:
        if usage.audit is None:
            return usage.audit_why or NO_ENGINE
        if not opening.verified:
            return opening.note or "usage unverified"
        return NO_TABLE if not self._manifest.weights or self._manifest.tokenizer is None else ""
