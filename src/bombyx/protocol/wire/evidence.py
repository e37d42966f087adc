# SPDX-License-Identifier: Apache-2.0
"""What a worker's enclave says of itself: Keyset, ModelManifest, EvidenceBundle (RFC 9334 Evidence; spec ATT).

Not here: any judgement. `protocol/attest` appraises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.audit import Calibration
from bombyx.protocol.wire.codec import Message

MAX_KEYSET_LIFE: Final = 7_200  # seconds from its beacon; the protocol's cap, no policy raises it (ATT-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyset(Message):
    """The keys one enclave made for one period. `report_data` of the quote is bound to its canonical bytes (ATT-2)."""

    TAG: ClassVar[int] = 27001
    MAX_SIZE: ClassVar[int] = 16_384

    v: int
    ohttp_key_config: bytes  # application/ohttp-keys (RFC 9458 section 3): 0x647a first, 0x0020 second
    receipt_address: Address  # signs receipts; made at boot
    operator: Address  # the registered operator this enclave works for
    chain_id: int
    pay_authorizer: Address  # receiverAuthorizer of the worker's channels
    models: tuple[Digest, ...]  # digests of the ModelManifests served
    gpu_evidence: Digest | None
    beacon: Digest  # hash of a recent block: freshness without a nonce per client
    not_before: Instant
    not_after: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest(Message):
    """One file of a model: its name within the model and the SHA-256 of its bytes."""

    TAG: ClassVar[int] = 27014
    name: str
    sha256: Digest
    size: int  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest(Message):
    """What a model *is*. Its digest is the model's identity on chain, in Meta and in receipts (ATT-4)."""

    TAG: ClassVar[int] = 27003
    MAX_SIZE: ClassVar[int] = 262_144

    v: int
    name: str  # what applications call it
    weights: tuple[FileDigest, ...]
    tokenizer: Digest | None  # of the TokenTable; none: output ids cannot be checked
    chat_template: Digest | None
    quantisation: str
    engine: str  # name and build, e.g. "llama.cpp b11549"
    arguments: tuple[str, ...]
    context: int  # tokens
    parameters: int  # rough count, for people; 0 when unknown
    calibration: Calibration | None = None  # none: answers can be checked, but nothing is held against a worker (AUD)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader(Message):
    """The block whose hash is a keyset's beacon: shows, offline, when the beacon was (ATT-8)."""

    TAG: ClassVar[int] = 27015
    number: int
    hash: Digest
    parent: Digest
    timestamp: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceBundle(Message):
    """Everything needed to appraise one enclave, offline, by anyone, later (ATT-5)."""

    TAG: ClassVar[int] = 27002

    v: int
    technology: str  # "tdx" or "snp": how to parse `quote`; the trust class is computed, never stated
    quote: bytes
    event_log: bytes  # JSON list of TCG-like events (dstack format)
    keyset: bytes  # canonical Keyset, byte for byte as hashed into report_data
    gpu_evidence: bytes | None
    compose: bytes  # preimage of the compose hash in the event log
    manifests: tuple[bytes, ...]  # canonical ModelManifests, in the keyset's order
    endorsements: bytes  # JSON, dcap-qvl QuoteCollateralV3 form; may be empty
    beacon_header: BlockHeader | None
