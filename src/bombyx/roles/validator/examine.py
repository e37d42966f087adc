# SPDX-License-Identifier: Apache-2.0
"""Judges one answer: opens what its receipt binds, checks its structure, re-runs it once (spec AUD-55, JDG).

The same for a validator's own canaries, for a juror, for an answer whose client opted in, and for `bombyx audit`.

Always: an answer that its worker signed and whose structure is wrong fails without a model; what its worker did not
sign is nobody's answer, and raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bombyx.errors import BadRequest, MalformedMessage, Peer, ReceiptError, Unavailable
from bombyx.ports import Prefill
from bombyx.protocol.audit.commitment import ids_digest
from bombyx.protocol.audit.margin import needed
from bombyx.protocol.audit.seed import choice_seed, joint_root, root_of
from bombyx.protocol.audit.structure import (
    Sent,
    check_block,
    check_ends,
    manifest_weights,
    open_block,
)
from bombyx.protocol.audit.verdict import Grade, ResponseVerdict, broken, judge, scored_ids
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.audit import AuditBlock, AuditMode, AuditPackage, Calibration
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.receipt import ChoiceIds, UsageOpening
from bombyx.protocol.wire.tokens import TokenTable

Identity = tuple[Digest, Digest | None, Digest | None]  # weights, tokenizer, chat template

_ORDER: Final = (Grade.PASS, Grade.GREY, Grade.FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model at hand: what reads it, and what its tokenizer says of its ids."""

    prefill: Prefill = field(repr=False)
    ends: tuple[int, ...]  # end-of-generation ids, the one that ends a turn first
    table: TokenTable | None = field(repr=False)


def identity(manifest: ModelManifest) -> Identity:
    """What must agree for rows to mean anything."""
    return manifest_weights(manifest), manifest.tokenizer, manifest.chat_template


class Examiner:
    """Over the models at hand. Holds nothing of what it judges. Jury duty has a deadline, so it goes first."""

    def __init__(self, models: dict[Identity, Weights]) -> None:
        self._models = models
        self._duties = 0
        self._calm = asyncio.Event()
        self._calm.set()

    @asynccontextmanager
    async def first(self) -> AsyncIterator[None]:
        """Everybody who only waits for `calm` waits until this is over."""
        self._duties += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._duties -= 1
            if not self._duties:
                self._calm.set()

    async def calm(self) -> None:
        """Until nothing urgent is judged."""
        await self._calm.wait()

    def knows(self, manifest: ModelManifest) -> bool:
        return identity(manifest) in self._models

    async def examine(self, package: AuditPackage, manifest: ModelManifest) -> ResponseVerdict:
        """The verdict on one answer. Raises `MalformedMessage` for a package whose receipt does not bind it,
        `Unavailable` without the model or its calibration."""
        model = self._models.get(identity(manifest))
        if model is None or manifest.calibration is None:
            raise Unavailable(f"no weights or no calibration of {manifest.name!r} here", rule="AUD-55")
        usage, block = opened(package)
        sent = Sent(path=package.path, body=package.body, nonce=block.nonce, claimant=block.claimant, cap=None)
        try:
            check_block(block, usage, sent, manifest, salt=package.salt)
            if block.mode is AuditMode.NONE:
                return broken(f"the worker says it cannot be re-run: {block.why[:80]}")
            check_ends(usage, set(model.ends))
        except ReceiptError as error:
            return broken(error.message)
        try:
            prompt = await model.prefill.render(package.path, package.body)
        except BadRequest as error:
            return broken(f"called auditable, and is not: {error.message}")
        if len(prompt) != block.prompt_count or ids_digest(prompt) != block.prompt_ids:
            return broken("made from another prompt than was sent")
        return await self._rerun(package, usage, block, model, manifest.calibration, prompt)

    async def _rerun(
        self,
        package: AuditPackage,
        usage: UsageOpening,
        block: AuditBlock,
        model: Weights,
        calibration: Calibration,
        prompt: Sequence[int],
    ) -> ResponseVerdict:
        """One prefill for each choice."""
        receipt, sampler = package.receipt.receipt, block.sampler
        assert sampler is not None  # it is not of mode NONE
        joint = joint_root(receipt.request_hash, block.nonce, receipt.operator, block.beacon)
        root = root_of(_object(package.body), joint)
        verdicts = []
        for place, choice in enumerate(usage.choices):
            ids = scored_ids(
                choice.ids, finish=choice.finish, ends=model.ends, stopped_by_text=_by_text(choice, block, model)
            )
            top = needed(sampler, calibration, len(ids))
            rows = await model.prefill.score(prompt, ids, top=top)
            verdicts.append(judge(rows, ids, sampler=sampler, seed=choice_seed(root, place), calibration=calibration))
        return _together(verdicts)


def opened(package: AuditPackage) -> tuple[UsageOpening, AuditBlock]:
    """Usage and block, if the signed receipt binds both. Raises `MalformedMessage`: its bearer made it up."""
    receipt = package.receipt.receipt
    try:
        usage = UsageOpening.decode(package.usage)
        return usage, open_block(receipt, salt=package.salt, block=package.block, usage=usage)
    except (MalformedMessage, ReceiptError) as error:
        raise MalformedMessage(
            f"a package that its receipt does not bind: {error.message}", peer=Peer.VALIDATOR, rule="AUD-55"
        ) from None


def _by_text(choice: ChoiceIds, block: AuditBlock, model: Weights) -> bool:
    """Whether one of the request's stop strings ended this choice, as its own ids spell it."""
    stops = block.sampler.stop if block.sampler is not None else ()
    if not stops or choice.finish != "stop":
        return False
    if model.table is None:
        return True
    text = model.table.detokenise(choice.ids)
    return any(stop.encode() in text for stop in stops)


def _together(verdicts: Sequence[ResponseVerdict]) -> ResponseVerdict:
    """Several choices of one answer: as bad as the worst of them, and every token counts."""
    if len(verdicts) == 1:
        return verdicts[0]
    if not verdicts:
        return broken("an answer without choices")
    worst = max(verdicts, key=lambda one: _ORDER.index(one.verdict))
    tokens = sum(one.tokens for one in verdicts)
    return replace(
        worst,
        tokens=tokens,
        mean_margin=sum(one.mean_margin * one.tokens for one in verdicts) / max(1, tokens),
        max_margin=max(one.max_margin for one in verdicts),
        outside=sum(one.outside for one in verdicts),
        margins=tuple(margin for one in verdicts for margin in one.margins),
        reasons=tuple(dict.fromkeys(reason for one in verdicts for reason in one.reasons)),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
