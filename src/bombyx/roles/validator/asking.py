# SPDX-License-Identifier: Apache-2.0
"""What a validator needs of a client, and of other validators' pages: two narrow interfaces that `compose` fills.

Not here: any judgement. Always: a canary goes through an ordinary client, sealed and paid like any other request; what
comes back says how it went as a user would have seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.cases import PlannedCanary


class Ended(StrEnum):
    """How a canary ended. Only ANSWERED brings a package; nothing else is ever taken for a wrong answer."""

    ANSWERED = "answered"
    LOST = "lost"  # no answer, or one cut short: whose fault cannot be told, a proxy may have dropped it
    REFUSED = "refused"  # an error instead of an answer, sealed by a worker
    CHEATED = "cheated"  # the client's own checks failed: its signed words contradict what was delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came of one canary. Times in seconds, as a user sees them; None where there was no first token."""

    ended: Ended
    operator: Address | None  # who answered
    why: str
    seconds: float
    first: float | None
    output: int  # tokens
    package: bytes = field(repr=False, default=b"")  # canonical AuditPackage
    bundle: bytes = field(repr=False, default=b"")  # canonical EvidenceBundle of the enclave that signed


@dataclass(frozen=True, slots=True, kw_only=True)
class OnOffer:
    """One model as the network offers it."""

    model: Digest
    name: str
    manifest: bytes = field(repr=False)
    operators: tuple[Address, ...]


class Asker(Protocol):
    """An ordinary client of the network, made for one epoch and let go of after it.

    - `open` must give a client with a channel of its own, paid from an account that was not used before.
    - `ask` must never raise for what went wrong on the way: that is what `Heard` tells.
    """

    async def open(self) -> None: ...

    async def on_offer(self) -> tuple[OnOffer, ...]: ...

    async def ask(self, canary: PlannedCanary, nonce: bytes) -> Heard: ...

    async def close(self) -> None: ...


class Pages(Protocol):
    """Other validators' endpoints.

    - `get` must give at most `most` bytes, or raise: `Unavailable` when nobody answers within a few seconds
      or answers anything but status 200, `MalformedMessage` for a larger body.
    """

    async def get(self, url: str, most: int) -> bytes: ...


class Others(Protocol):
    """The other validators, as far as answers are handed to them (AUD-57).

    - `taking` must give those who have a stake and take answers, as of now, and never ourselves.
    - `tell` must seal the package to the key that the registry names for one of them, and raise where it was not taken.
    """

    async def taking(self) -> Sequence[Address]: ...

    async def tell(self, validator: Address, package: AuditPackage) -> None: ...
