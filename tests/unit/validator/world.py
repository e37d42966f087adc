# SPDX-License-Identifier: Apache-2.0
"""A world small enough for the whole game in one process: a model of 120 tokens, workers who run it or another one.

Everything that judges is the real thing: sampler, receipts, commitments, appraisal, margins, evidence. Only the model
is small (its logits are hashes of the last three ids), and between validator and worker there is no network.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.unit.validator.court import PARAMETERS

from bombyx.adapters.simulator import SimulatedEnclave, SimulatedPlatform, development_policy
from bombyx.protocol.attest import report_data
from bombyx.protocol.attest.events import write_event_log
from bombyx.protocol.audit.asked import read_sampling
from bombyx.protocol.audit.calibration import DEFAULT
from bombyx.protocol.audit.canary import compose
from bombyx.protocol.audit.commitment import audit_commitment, ids_digest, request_digest, stream_root
from bombyx.protocol.audit.margin import Row
from bombyx.protocol.audit.sampler import choose
from bombyx.protocol.audit.seed import choice_seed, joint_root
from bombyx.protocol.audit.structure import manifest_weights
from bombyx.protocol.pay.usage import usage_commitment
from bombyx.protocol.primitives import Address, Digest, Instant, Secret, sha256
from bombyx.protocol.wire.audit import AuditBlock, AuditMode, AuditPackage
from bombyx.protocol.wire.cases import PlannedCanary
from bombyx.protocol.wire.evidence import BlockHeader, EvidenceBundle, FileDigest, Keyset, ModelManifest
from bombyx.protocol.wire.receipt import (
    ChoiceIds,
    Kind,
    Outcome,
    Receipt,
    SignedReceipt,
    UsageOpening,
    receipt_domain,
)
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.validator.asking import Ended, Heard, OnOffer
from bombyx.roles.validator.examine import Examiner, Identity, Weights, identity

VOCABULARY, END = 120, 2
BEGAN = Instant.from_seconds(PARAMETERS.epoch_start(60_000_000 // 64 * 64) + 5)  # just after a block of epochs began
MANIFEST = ModelManifest(
    v=1,
    name="tiny",
    weights=(FileDigest(name="tiny.gguf", sha256=sha256(b"weights"), size=7),),
    tokenizer=sha256(b"tokens"),
    chat_template=sha256(b"template"),
    quantisation="Q4_1",
    engine="tiny 1",
    arguments=(),
    context=4096,
    parameters=120,
    calibration=DEFAULT,
)
MODEL = MANIFEST.digest()
DOMAIN = receipt_domain(PARAMETERS.chain_id, PARAMETERS.registry)
PLATFORM = SimulatedPlatform.create(seed=b"a seed for tests, and no secret!", now=BEGAN)
POLICY = development_policy(PLATFORM)
ENDORSEMENTS = PLATFORM.endorsements(BEGAN)


def key_of(name: str) -> SigningKey:
    return SigningKey(Secret(sha256(name.encode())))


@dataclass(frozen=True)
class TinyModel:
    """`ports.Prefill`, and what a worker generates with. `weights` decides the logits; `blur` is honest rounding."""

    weights: bytes = b"good"
    blur: float = 0.0

    def logits(self, ids: Sequence[int]) -> list[float]:
        seed = sha256(self.weights, b"".join(struct.pack("<I", token) for token in ids[-3:]))
        words = b"".join(sha256(seed, bytes([block])) for block in range(VOCABULARY * 2 // 32 + 1))
        drawn = struct.unpack(f">{VOCABULARY}H", words[: 2 * VOCABULARY])
        return [6.0 * (value / 65_536) ** 4 + self.blur * ((value & 15) - 7.5) / 15 for value in drawn]

    async def render(self, path: str, body: bytes) -> tuple[int, ...]:
        return tuple(3 + byte % 100 for byte in sha256(path.encode(), body))

    async def score(self, prompt_ids: Sequence[int], output_ids: Sequence[int], *, top: int) -> tuple[Row, ...]:
        rows = []
        for place, token in enumerate(output_ids):
            logits = self.logits((*prompt_ids, *output_ids[:place]))
            ordered = sorted(enumerate(logits), key=lambda pair: (-pair[1], pair[0]))
            rank = sum(logit > logits[token] for logit in logits)
            rows.append(Row(candidates=tuple(ordered[:top]), chosen=logits[token], chosen_rank=rank))
        return tuple(rows)

    async def close(self) -> None:
        pass


GOOD = TinyModel()


def examiner() -> Examiner:
    models: dict[Identity, Weights] = {identity(MANIFEST): Weights(prefill=GOOD, ends=(END,), table=None)}
    return Examiner(models)


@dataclass
class TinyWorker:
    """Answers canaries as a worker's enclave does, as far as receipts and blocks go."""

    name: str
    model: TinyModel = field(default_factory=lambda: TinyModel(blur=0.05))
    lost: bool = False  # its proxy drops what is meant for it
    domain: Digest = DOMAIN
    seq: int = 0

    @property
    def operator(self) -> Address:
        return key_of(self.name).address

    @property
    def receipt_key(self) -> SigningKey:
        return key_of(f"{self.name} receipts")

    def bundle(self, **keyset: Any) -> bytes:
        """Evidence of its simulated enclave."""
        header = BlockHeader(number=7, hash=sha256(b"7"), parent=sha256(b"6"), timestamp=BEGAN.plus(seconds=-20))
        keys = replace(
            Keyset(
                v=1, ohttp_key_config=bytes(41), receipt_address=self.receipt_key.address, operator=self.operator,
                chain_id=PARAMETERS.chain_id, pay_authorizer=self.operator, models=(MODEL,), gpu_evidence=None,
                beacon=header.hash, not_before=BEGAN.plus(seconds=-10), not_after=BEGAN.plus(seconds=3_000),
            ),
            **keyset,
        ).encode()  # fmt: skip
        enclave = SimulatedEnclave(platform=PLATFORM, instance=sha256(self.name.encode())[:16])
        return EvidenceBundle(
            v=1, technology="tdx", quote=PLATFORM.quote(enclave.report(report_data(keys))),
            event_log=write_event_log(enclave.events), keyset=keys, gpu_evidence=None, compose=enclave.image.compose,
            manifests=(MANIFEST.encode(),), endorsements=ENDORSEMENTS, beacon_header=header,
        ).encode()  # fmt: skip

    async def answer(self, canary: PlannedCanary, nonce: bytes, at: Instant, **changes: Any) -> AuditPackage:
        made = compose(canary.seed, canary.name, canary.most)
        asked = json.loads(made.body)
        sampler = read_sampling(made.path, asked, cap=canary.most).sampler
        assert sampler is not None
        prompt = await self.model.render(made.path, made.body)
        request_hash = sha256(b"request", canary.request_id)
        seed = choice_seed(joint_root(request_hash, nonce, self.operator), 0)
        ids: list[int] = []
        while len(ids) < sampler.max_output and (not ids or ids[-1] != END):
            logits = enumerate(self.model.logits((*prompt, *ids)))
            ids.append(choose(logits, sampler, seed=seed, position=len(ids), counts=Counter(ids)))
        finish = "stop" if ids[-1] == END else "length"
        salt = sha256(b"salt", canary.request_id)
        usage = UsageOpening(
            v=1, input=len(prompt), cached_input=0, output=len(ids),
            choices=(ChoiceIds(ids=tuple(ids), finish=finish),), verified=True, note="",
        )  # fmt: skip
        block = AuditBlock(
            v=1, mode=AuditMode.SEEDED, why="", request=request_digest(made.path, made.body), claimant=Address.zero(),
            weights=manifest_weights(MANIFEST), tokenizer=sha256(b"tokens"), template=sha256(b"template"),
            engine=MANIFEST.engine, sampler=sampler, nonce=nonce, beacon=Digest.zero(), prompt_ids=ids_digest(prompt),
            prompt_count=len(prompt), stream_root=stream_root(salt, ids),
        )  # fmt: skip
        block = replace(block, **changes.get("block", {}))
        self.seq += 1
        receipt = Receipt(
            kind=Kind.FINAL, request_id=canary.request_id, request_hash=request_hash, response_hash=Digest.zero(),
            model=MODEL, price_sheet=Digest.zero(), operator=self.operator, frames=1, input_units=len(prompt),
            cached_units=0, output_units=len(ids), charge=1, usage_commitment=usage_commitment(salt, usage),
            audit_commitment=audit_commitment(salt, block, usage), outcome=Outcome.COMPLETE, seq=self.seq,
            started_at=at, finished_at=at, previous=Digest.zero(),
        )  # fmt: skip
        return AuditPackage(
            v=1, receipt=SignedReceipt.sign(receipt, self.domain, self.receipt_key), salt=salt, usage=usage.encode(),
            block=block.encode(), path=made.path, body=made.body,
        )  # fmt: skip


@dataclass
class TinyAsker:
    """The client of one epoch: its proxy gives each canary to the first candidate that is there."""

    workers: dict[Address, TinyWorker]
    clock: Any

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def on_offer(self) -> tuple[OnOffer, ...]:
        return (OnOffer(model=MODEL, name="tiny", manifest=MANIFEST.encode(), operators=tuple(self.workers)),)

    async def ask(self, canary: PlannedCanary, nonce: bytes) -> Heard:
        worker = next((self.workers[who] for who in canary.candidates if not self.workers[who].lost), None)
        if worker is None:
            return Heard(ended=Ended.LOST, operator=None, why="cut", seconds=1.0, first=None, output=0)
        package = await worker.answer(canary, nonce, self.clock.now())
        return Heard(
            ended=Ended.ANSWERED, operator=worker.operator, why="", seconds=1.0, first=0.2, output=20,
            package=package.encode(), bundle=worker.bundle(),
        )  # fmt: skip
