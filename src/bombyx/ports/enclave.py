# SPDX-License-Identifier: Apache-2.0
"""What an enclave says of itself, and where its endorsements come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What the hardware (or its simulator) says: the quote's bytes and the event log that explains its RTMRs."""

    technology: str
    quote: bytes
    event_log: bytes
    compose: bytes


class EvidenceSource(Protocol):
    """The enclave's own attestation device.

    - Must put exactly `report_data` (64 bytes) into the quote.
    - `gpu` gives GPU evidence for `nonce`, or None where the image cannot open a GPU.
    """

    async def quote(self, report_data: bytes) -> Quote: ...

    async def gpu(self, nonce: bytes) -> bytes | None: ...


class EndorsementSource(Protocol):
    """Where a Verifier gets what vouches for the hardware (RFC 9334: Endorser).

    - Must return bytes exactly as the Endorser signed them.
    - Must raise `Unavailable` when it cannot answer; never a stale default.
    """

    async def endorsements(self, quote: bytes) -> bytes: ...
