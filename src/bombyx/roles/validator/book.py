# SPDX-License-Identifier: Apache-2.0
"""A validator's books, over a store: plans, the answers to them, standings. Written before they are acted on (AUD-53).

Not here: decisions. Always: a plan is durable before its root goes to the chain, an answer before it is weighed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bombyx.ports import Store, Write
from bombyx.protocol.audit.case import Verdict
from bombyx.protocol.audit.eprocess import Evidence
from bombyx.protocol.audit.plan import Plan
from bombyx.protocol.audit.verdict import ResponseVerdict
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.cases import EpochEvidence
from bombyx.roles.validator.standing import Standing

PLAN, ANSWER, BUNDLE, STANDING, MANIFEST, VERDICT, VOTE, EVIDENCE, KEY, PLANT, ALARMED = (
    "validator_plan",
    "validator_answer",
    "validator_bundle",
    "validator_standing",
    "validator_manifest",
    "validator_verdict",
    "validator_vote",
    "validator_evidence",
    "validator_key",
    "validator_plant",
    "validator_alarm",
)


_ALARMED, _AT = struct.Struct(">B?BB"), struct.Struct(">QI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of one answer, as far as evidence needs it."""

    failed: bool
    counts: bool
    margins: tuple[float, ...]

    @classmethod
    def read(cls, value: bytes) -> Found:
        failed, counts, *margins = struct.unpack(f">??{(len(value) - 2) // 8}d", value)
        return cls(failed=failed, counts=counts, margins=tuple(margins))

    def into(self, evidence: Evidence) -> Evidence:
        return evidence.update(self.margins, failed=self.failed) if self.counts else evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """What opens the commitment of a sample: which answer it is a sample of, and the salt."""

    verdict: Verdict
    salt: Digest

    def encode(self) -> bytes:
        return bytes([self.verdict]) + self.salt

    @classmethod
    def read(cls, value: bytes) -> Planted:
        if len(value) == Digest.SIZE:  # written when every sample was of innocence
            return cls(verdict=Verdict.INNOCENT, salt=Digest(value))
        return cls(verdict=Verdict(value[0]), salt=Digest(value[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarmed:
    """How far other validators have heard of one worker and model (AUD-60)."""

    times: int = 0  # alarms so far
    high: bool = False  # evidence was above the bound when it was last looked at
    tries: int = 0  # of the newest alarm
    answers: tuple[tuple[int, int], ...] = ()  # epoch and index of what the newest alarm hands over
    told: tuple[Address, ...] = ()  # who has taken all of it

    def encode(self) -> bytes:
        head = _ALARMED.pack(self.times, self.high, self.tries, len(self.answers))
        return head + b"".join(_AT.pack(*at) for at in self.answers) + b"".join(self.told)

    @classmethod
    def read(cls, value: bytes) -> Alarmed:
        times, high, tries, count = _ALARMED.unpack_from(value)
        answers, told = value[_ALARMED.size :][: count * _AT.size], value[_ALARMED.size + count * _AT.size :]
        return cls(
            times=times,
            high=high,
            tries=tries,
            answers=tuple((epoch, index) for epoch, index in _AT.iter_unpack(answers)),
            told=tuple(Address(told[at : at + Address.SIZE]) for at in range(0, len(told), Address.SIZE)),
        )


class Book:
    """Rows by epoch and index, so that a plan's answers are read in its order."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- plans ---

    async def keep_plan(self, plan: Plan) -> None:
        shown = EpochEvidence(epoch=plan.epoch, salt=plan.salt, canaries=plan.canaries, packages=())
        await self._store.write([Write(PLAN, _epoch(plan.epoch), shown.encode())])

    async def plan(self, epoch: int) -> Plan | None:
        data = await self._store.read(PLAN, _epoch(epoch))
        if data is None:
            return None
        shown = EpochEvidence.decode(data)
        return Plan(epoch=shown.epoch, salt=shown.salt, canaries=shown.canaries)

    async def epochs(self) -> list[int]:
        """Those with a plan, in order."""
        return [int.from_bytes(key) for key, _ in await self._store.scan(PLAN)]

    # --- answers ---

    async def keep_answer(self, epoch: int, index: int, operator: Address, package: bytes, bundle: bytes) -> None:
        """A canary's package, and the evidence of the enclave that signed it."""
        value = bytes(operator) + sha256(bundle) + package
        await self._store.write(
            [Write(ANSWER, _epoch(epoch) + index.to_bytes(4), value), Write(BUNDLE, sha256(bundle), bundle)]
        )

    async def answers(self, epoch: int, operator: Address) -> list[tuple[int, Digest, bytes]]:
        """(index, bundle digest, package) of one worker's answers, in the plan's order."""
        rows = await self._store.scan(ANSWER, prefix=_epoch(epoch))
        found = [(int.from_bytes(key[8:]), value) for key, value in rows if value[:20] == operator]
        return [(index, Digest(value[20:52]), value[52:]) for index, value in found]

    async def bundle(self, digest: Digest) -> bytes | None:
        return await self._store.read(BUNDLE, digest)

    async def keep_manifest(self, model: Digest, manifest: bytes) -> None:
        await self._store.write([Write(MANIFEST, model, manifest)])

    async def manifest(self, model: Digest) -> bytes | None:
        return await self._store.read(MANIFEST, model)

    # --- what was seen ---

    async def standing(self, operator: Address, model: Digest) -> Standing | None:
        data = await self._store.read(STANDING, bytes(operator) + bytes(model))
        return None if data is None else Standing.decode(data)

    async def standings(self) -> list[Standing]:
        return [Standing.decode(value) for _, value in await self._store.scan(STANDING)]

    async def keep(self, standing: Standing) -> None:
        await self._store.write([Write(STANDING, bytes(standing.operator) + bytes(standing.model), standing.encode())])

    async def keep_verdict(self, epoch: int, index: int, verdict: ResponseVerdict) -> None:
        """What we found ourselves: a case is weighed from it before it is opened, without running the model again."""
        value = struct.pack(f">??{len(verdict.margins)}d", verdict.failed, verdict.counts, *verdict.margins)
        await self._store.write([Write(VERDICT, _epoch(epoch) + index.to_bytes(4), value)])

    async def verdicts(self, epoch: int) -> dict[int, Found]:
        """By index, of one epoch."""
        rows = await self._store.scan(VERDICT, prefix=_epoch(epoch))
        return {int.from_bytes(key[8:]): Found.read(value) for key, value in rows}

    # --- votes and cases ---

    async def keep_vote(self, case: int, round_: int, vote: bytes) -> None:
        """A juror's verdict and its salt, before the commitment leaves: it must be able to reveal after a restart."""
        await self._store.write([Write(VOTE, case.to_bytes(8) + round_.to_bytes(1), vote)])

    async def vote(self, case: int, round_: int) -> bytes | None:
        return await self._store.read(VOTE, case.to_bytes(8) + round_.to_bytes(1))

    async def keep_key(self, operator: Address, key: Address) -> None:
        """The registry named this receipt key as the worker's."""
        await self._store.write([Write(KEY, bytes(operator) + bytes(key), b"")])

    async def has_key(self, operator: Address, key: Address) -> bool:
        return await self._store.read(KEY, bytes(operator) + bytes(key)) is not None

    async def keep_plant(self, evidence: Digest, plant: Planted) -> None:
        """What opens a sample with a known answer, before its case is opened."""
        await self._store.write([Write(PLANT, evidence, plant.encode())])

    async def plant(self, evidence: Digest) -> Planted | None:
        value = await self._store.read(PLANT, evidence)
        return None if value is None else Planted.read(value)

    async def keep_alarmed(self, operator: Address, model: Digest, alarmed: Alarmed) -> None:
        """Before anything is handed over, so that a restart neither forgets an alarm nor raises it again."""
        await self._store.write([Write(ALARMED, bytes(operator) + bytes(model), alarmed.encode())])

    async def alarmed(self, operator: Address, model: Digest) -> Alarmed:
        value = await self._store.read(ALARMED, bytes(operator) + bytes(model))
        return Alarmed() if value is None else Alarmed.read(value)

    async def keep_evidence(self, digest: Digest, evidence: bytes) -> None:
        await self._store.write([Write(EVIDENCE, digest, evidence)])

    async def evidence(self, digest: Digest) -> bytes | None:
        return await self._store.read(EVIDENCE, digest)


def _epoch(epoch: int) -> bytes:
    return epoch.to_bytes(8)
