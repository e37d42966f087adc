# SPDX-License-Identifier: Apache-2.0
"""Names and forms of the fields bombyx puts inside the seal, beside those of HTTP. No proxy ever sees them."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.wire.audit import AuditBlock
from bombyx.protocol.wire.receipt import UsageOpening

NONCE_FIELD: Final = b"bombyx-nonce"  # request: 32 bytes in hex, the client's share of every seed
CACHE_SALT_FIELD: Final = b"bombyx-cache-salt"  # request: 32 bytes in hex, fresh per conversation
META_FIELD: Final = b"bombyx-meta"  # plain request: SHA-256 of Meta in hex (SEAL-9)
NOT_AFTER_FIELD: Final = b"bombyx-not-after"  # plain request: milliseconds, decimal (SEAL-9)
CLAIMANT_FIELD: Final = b"bombyx-claimant"  # request: 20 bytes in hex, an address used once (AUD-5)
AUDIT_FIELD: Final = b"bombyx-audit"  # response trailer: the AuditBlock that auditCommitment binds (AUD-5)
USAGE_FIELD: Final = b"bombyx-usage"  # response trailer: the opening of usageCommitment (RCT-6)

Fields = tuple[tuple[bytes, bytes], ...]


def usage_trailers(opening: UsageOpening) -> Fields:
    """The closing block of an answer."""
    return ((USAGE_FIELD, base64.b64encode(opening.encode())),)


def audit_trailers(block: AuditBlock) -> Fields:
    """The other half of the closing block."""
    return ((AUDIT_FIELD, base64.b64encode(block.encode())),)


def read_audit(trailers: Fields) -> bytes | None:
    """The AuditBlock a worker put into its closing block, as it is encoded, or None when there is none."""
    value = dict(trailers).get(AUDIT_FIELD)
    return None if value is None else _base64(value, "bombyx-audit", "AUD-5")


def read_usage(trailers: Fields) -> UsageOpening | None:
    """The opening a worker put into its closing block, or None when there is none."""
    value = dict(trailers).get(USAGE_FIELD)
    if value is None:
        return None
    return UsageOpening.decode(_base64(value, "bombyx-usage", "RCT-6"))


def _base64(value: bytes, name: str, rule: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedMessage(f"{name} is not base64", peer=Peer.WORKER, rule=rule) from None
