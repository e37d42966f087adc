# SPDX-License-Identifier: Apache-2.0
"""What a case before the jury is made of: planned canaries, and the evidence an accuser serves (spec AUD-50 ..).

Not here: whether any of it holds (`protocol/audit/jury.py`); it is an accuser's word until then. Packages and bundles
stay bytes: each is read, and bounded, by itself, so that one that is not what it should be spoils no other.

Always: a plan is shown whole, in its order, or its root does not come out; no user's words are in here, canaries alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from bombyx.protocol.primitives import Address, Digest, RequestId
from bombyx.protocol.wire.codec import Message

MAX_CANARIES: Final = 256  # of one plan: 64 whole plans and a worker's answers fit into one case
MAX_EPOCHS: Final = 64  # of one case


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCanary(Message):
    """One canary, as fixed before its epoch. Its request body follows from `seed`, `name` and `most` (AUD-51)."""

    TAG: ClassVar[int] = 27080
    MAX_SIZE: ClassVar[int] = 1_024

    index: int
    request_id: RequestId
    candidates: tuple[Address, ...]  # whom it is sealed to: one, as ordinary clients do for a share, or several
    model: Digest
    name: str  # what an application calls the model
    seed: Digest
    most: int  # tokens of the answer, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEvidence(Message):
    """One epoch: the whole plan, opened, and the accused operator's answers in its order.

    A canary that another candidate answered, or nobody, has no package: it counts as passed."""

    TAG: ClassVar[int] = 27081
    MAX_SIZE: ClassVar[int] = 8 << 20

    epoch: int
    salt: Digest  # keeps a root of few canaries from being guessed while the epoch runs
    canaries: tuple[PlannedCanary, ...]
    packages: tuple[bytes, ...]  # canonical AuditPackages; a canary without one counts as passed


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEvidence(Message):
    """What one validator shows of one worker and model, over consecutive epochs. Named on chain by its digest."""

    TAG: ClassVar[int] = 27082
    MAX_SIZE: ClassVar[int] = 8 << 20

    v: int
    accuser: Address
    accused: Address
    model: Digest
    manifest: bytes  # canonical ModelManifest of `model`
    epochs: tuple[EpochEvidence, ...]
    bundles: tuple[bytes, ...]  # canonical EvidenceBundles: which enclave signed
