# SPDX-License-Identifier: Apache-2.0
"""What an auditable answer says of itself, so that anyone who holds it can re-run it (spec AUD).

`AuditBlock` travels inside the seal, beside the `UsageOpening`; the receipt's `auditCommitment` binds both. An
`AuditPackage` is everything a Verifier needs to judge one answer. Real numbers are whole millionths (`_e6`): no float
is ever hashed.

Not here: any judgement, nor what a seed is made of (`protocol/audit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.receipt import SignedReceipt

ALGORITHM: Final = "gumbel-splitmix64-v1"
MILLION: Final = 1_000_000
MAX_TOP_K: Final = 64  # engines give that many candidates per position at a fair price (vLLM: prompt_logprobs)
MAX_TEMPERATURE_E6: Final = 2 * MILLION  # as OpenAI bounds it
MAX_PENALTY_E6: Final = 2 * MILLION
MAX_STOPS: Final = 16  # stop strings; OpenAI takes 4
MAX_STOP: Final = 1_024  # bytes of all of them


class AuditMode(StrEnum):
    """Whether an answer can be re-run. NONE says why in `AuditBlock.why`."""

    SEEDED = ALGORITHM
    NONE = "none"


class SeedSource(StrEnum):
    """Who chose the noise. Only JOINT answers count for or against a worker in a sequential test."""

    JOINT = "joint"  # client's nonce, worker's address and the sealed request together: nobody alone
    APPLICATION = "application"  # the application's own `seed`
    GREEDY = "greedy"  # temperature 0: there is no noise


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerBlock(Message):
    """How the next token was chosen, in normative order: penalties, top_k, temperature, top_p, noise (AUD-4)."""

    TAG: ClassVar[int] = 27060
    algorithm: str
    temperature_e6: int
    top_p_e6: int
    top_k: int  # 1 .. 64
    presence_e6: int
    frequency_e6: int
    max_output: int  # tokens of one choice after which the worker had to stop
    seed_source: SeedSource
    stop: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.temperature_e6 <= MAX_TEMPERATURE_E6 or not 0 < self.top_p_e6 <= MILLION:
            raise ValueError("temperature lies in 0 .. 2, top_p above 0 and at most 1")
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k lies in 1 .. {MAX_TOP_K}")
        if max(self.presence_e6, self.frequency_e6) > MAX_PENALTY_E6:
            raise ValueError("penalties lie in 0 .. 2")
        if len(self.stop) > MAX_STOPS or sum(len(word.encode()) for word in self.stop) > MAX_STOP:
            raise ValueError("too many stop strings, or too long")
        if (self.seed_source is SeedSource.GREEDY) != (self.temperature_e6 == 0):
            raise ValueError("an answer is greedy exactly at temperature 0")

    @property
    def penalised(self) -> bool:
        """Do earlier tokens of the answer change the logits?"""
        return bool(self.presence_e6 or self.frequency_e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(Message):
    """What honest re-execution of this model looks like on one engine family: the numbers verdicts rest on (AUD)."""

    TAG: ClassVar[int] = 27061
    MAX_SIZE: ClassVar[int] = 1_024

    family: str  # engine family it was measured with, e.g. "llama.cpp/cpu"
    m0_e6: int  # bound on the honest mean of clipped margins
    core_e6: int  # rivals come from the nucleus this much smaller
    outer_e6: int  # a token is outside only beyond the nucleus this much larger
    outer_k: int  # and beyond top_k plus this
    clip_e6: int
    hard_e6: int  # one margin above it fails the answer
    mean_fail_e6: int
    min_tokens: int  # below it no mean is judged
    p0_e6: int  # bound on the honest share of failed answers
    responses: int  # honest answers it rests on
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditBlock(Message):
    """What was fixed when an answer was made. In mode `none` everything but `why` may be empty (AUD-5)."""

    TAG: ClassVar[int] = 27062
    MAX_SIZE: ClassVar[int] = 8_192

    v: int
    mode: AuditMode
    why: str
    request: Digest  # SHA-256(path, NUL, body as opened)
    claimant: Address  # where a refund for this answer goes: a fresh address of the client's, or zero
    weights: Digest
    tokenizer: Digest
    template: Digest
    engine: str
    sampler: SamplerBlock | None
    nonce: bytes  # the client's share of the seed
    beacon: Digest
    prompt_ids: Digest  # SHA-256 over the ids as uint32, little-endian
    prompt_count: int
    stream_root: Digest  # head of the hash chain over choice 0's output ids

    def __post_init__(self) -> None:
        if (self.mode is AuditMode.SEEDED) != (self.sampler is not None):
            raise ValueError("an answer has a sampler exactly when it can be audited")
        if (self.mode is AuditMode.NONE) != bool(self.why):
            raise ValueError("an answer says why exactly when it cannot be audited")
        if len(self.nonce) > 32:
            raise ValueError("a nonce of at most 32 bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPackage(Message):
    """Everything a Verifier needs to judge one answer. It holds the prompt: its maker decides who gets it."""

    TAG: ClassVar[int] = 27063
    MAX_SIZE: ClassVar[int] = 8 << 20

    v: int
    receipt: SignedReceipt
    salt: bytes  # the chosen wrap's Export
    usage: bytes  # canonical UsageOpening
    block: bytes  # canonical AuditBlock
    path: str
    body: bytes

    def __repr__(self) -> str:
        return f"<audit package, {len(self.body)} bytes of request>"
