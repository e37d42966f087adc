# SPDX-License-Identifier: Apache-2.0
"""A validator's plan of canaries for one epoch: its leaves, and whom to ask how often (spec AUD-50).

An accuser who shows only its bad canaries breaks the statistics. So the plan's Merkle root stands on chain before the
epoch, and a case shows all of it. Chance comes in as bytes; nothing here sends.

Always: leaves are in the order of `index`, which counts from 0; a plan asks nobody it was not given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.audit.merkle import merkle_root
from bombyx.protocol.primitives import Address, Digest, RequestId, sha256, tagged_hash
from bombyx.protocol.wire.cases import MAX_CANARIES, PlannedCanary

BASIS_POINTS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One worker and model to ask, how often within the epoch, and at most how many tokens each.

    `others` offer the same model: a canary that is not for the target alone is sealed to some of them, too.
    """

    operator: Address
    model: Digest
    name: str
    canaries: int
    most: int
    others: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a validator asks in one epoch, and the salt that hides it until it is shown."""

    epoch: int
    salt: Digest
    canaries: tuple[PlannedCanary, ...]

    @property
    def root(self) -> Digest:
        return plan_root(self.salt, self.canaries)


def make_plan(epoch: int, targets: Sequence[Target], secret: bytes, *, k: int, single_bps: int) -> Plan:
    """The plan that `secret` (32 fresh random bytes) gives, its targets in no order.

    `single_bps` of 10 000 canaries are for their target alone; the others have `k` candidates, as ordinary requests do:
    a worker that behaved whenever it is alone would be seen in company (MKT-4).
    """
    turns = [(turn, target) for target in targets for turn in range(target.canaries)]
    order = sorted(turns, key=lambda one: tagged_hash("bombyx canary order v1", secret, _of(one[1], one[0])))
    canaries = tuple(
        _planned(index, target, secret, k if _below(secret, index, BASIS_POINTS) >= single_bps else 1)
        for index, (_, target) in enumerate(order[:MAX_CANARIES])
    )
    return Plan(epoch=epoch, salt=tagged_hash("bombyx canary salt v1", secret), canaries=canaries)


def plan_root(salt: Digest, canaries: Sequence[PlannedCanary]) -> Digest:
    """What is committed. Raises `MalformedMessage` for a plan whose order is not its numbering."""
    if not canaries or len(canaries) > MAX_CANARIES:
        raise MalformedMessage(f"a plan of {len(canaries)} canaries", peer=Peer.VALIDATOR, rule="AUD-50")
    if any(canary.index != place for place, canary in enumerate(canaries)):
        raise MalformedMessage("a plan out of its order", peer=Peer.VALIDATOR, rule="AUD-50")
    return merkle_root([leaf(salt, canary) for canary in canaries])


def leaf(salt: Digest, canary: PlannedCanary) -> Digest:
    return tagged_hash("bombyx canary leaf v1", salt, canary.encode())


def _planned(index: int, target: Target, secret: bytes, k: int) -> PlannedCanary:
    own = tagged_hash("bombyx canary seed v1", secret, index.to_bytes(4))
    others = sorted(set(target.others) - {target.operator}, key=lambda other: sha256(own, other))
    return PlannedCanary(
        index=index,
        request_id=RequestId(tagged_hash("bombyx canary request v1", secret, index.to_bytes(4))[:16]),
        candidates=(target.operator, *others[: k - 1]),
        model=target.model,
        name=target.name,
        seed=own,
        most=target.most,
    )


def _below(secret: bytes, index: int, bound: int) -> int:
    return int.from_bytes(tagged_hash("bombyx canary share v1", secret, index.to_bytes(4))[:8]) % bound


def _of(target: Target, turn: int) -> bytes:
    return bytes(target.operator) + bytes(target.model) + turn.to_bytes(4)
