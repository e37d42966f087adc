# SPDX-License-Identifier: Apache-2.0
"""What a receipt's `auditCommitment` binds, and the hash chain that rides in the stream (spec AUD-5, AUD-6).

    auditCommitment = sha256(TAG || claim || content)      two SHA-256 with fixed places: a contract can follow them
    claim           = sha256(TAG || claimant)              who may claim a refund, without saying anything else
    content         = tagged(label, salt, AuditBlock, UsageOpening)

The chain fixes the output ids while they are made: nobody can choose them once it is known what is audited.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from bombyx.protocol.primitives import Address, Digest, sha256, tagged_hash
from bombyx.protocol.wire.audit import AuditBlock, AuditMode
from bombyx.protocol.wire.receipt import UsageOpening

AUDIT_TAG: Final = sha256(b"bombyx audit v2")
CLAIM_TAG: Final = sha256(b"bombyx claim v1")
CHAIN_STEP: Final = 32  # tokens
MAX_WHY: Final = 200  # characters
NOBODY: Final = Address.zero()
_ZERO: Final = Digest.zero()
MARK: Final = b": bombyx-ids "  # an SSE comment inside the sealed stream, after every 32nd token of choice 0


def request_digest(path: str, body: bytes) -> Digest:
    """The application's request, as the enclave opened it."""
    return sha256(path.encode(), b"\x00", body)


def ids_digest(ids: Sequence[int]) -> Digest:
    return sha256(pack_ids(ids))


def pack_ids(ids: Sequence[int]) -> bytes:
    """uint32, little-endian, one after another."""
    return struct.pack(f"<{len(ids)}I", *ids)


def claim_leaf(claimant: Address) -> Digest:
    return sha256(CLAIM_TAG, claimant)


def audit_content(salt: bytes, block: bytes, usage: bytes) -> Digest:
    """What nobody can guess without the salt. `block` and `usage` are canonical."""
    return tagged_hash("bombyx audit content v1", salt, block, usage)


def audit_commitment(salt: bytes, block: AuditBlock, usage: UsageOpening) -> Digest:
    """What stands in the final receipt."""
    return sha256(AUDIT_TAG, claim_leaf(block.claimant), audit_content(salt, block.encode(), usage.encode()))


def unauditable(
    why: str, *, request: Digest = _ZERO, claimant: Address = NOBODY, nonce: bytes = b"", root: Digest = _ZERO
) -> AuditBlock:
    """The block of an answer that cannot be re-run."""
    return AuditBlock(
        v=1,
        mode=AuditMode.NONE,
        why=why[:MAX_WHY] or "not said",
        request=request,
        claimant=claimant,
        weights=_ZERO,
        tokenizer=_ZERO,
        template=_ZERO,
        engine="",
        sampler=None,
        nonce=nonce,
        beacon=_ZERO,
        prompt_ids=_ZERO,
        prompt_count=0,
        stream_root=root,
    )


class IdChain:
    """The chain over the ids of choice 0. `take` ids as they come; `marks` are due inside the stream."""

    def __init__(self, salt: bytes) -> None:
        self._head = _link(salt, ())
        self._waiting: list[int] = []
        self.count = 0  # ids the head covers

    def take(self, ids: Sequence[int]) -> tuple[tuple[int, Digest], ...]:
        """(ids covered, head) for every step these complete."""
        self._waiting.extend(ids)
        marks = []
        while len(self._waiting) >= CHAIN_STEP:
            self._step(self._waiting[:CHAIN_STEP])
            del self._waiting[:CHAIN_STEP]
            marks.append((self.count, self._head))
        return tuple(marks)

    def root(self) -> Digest:
        """The head over everything taken; the last step may be shorter."""
        return _link(self._head, self._waiting) if self._waiting else self._head

    def _step(self, ids: Sequence[int]) -> None:
        self._head = _link(self._head, ids)
        self.count += len(ids)


def _link(before: bytes, ids: Sequence[int]) -> Digest:
    return tagged_hash("bombyx ids v1", before, pack_ids(ids))


def stream_root(salt: bytes, ids: Sequence[int]) -> Digest:
    """The chain's last head, from all ids at once."""
    chain = IdChain(salt)
    chain.take(ids)
    return chain.root()


def mark_line(count: int, head: Digest) -> bytes:
    """One step of the chain, as it stands in a stream: readers of server-sent events skip comments."""
    return MARK + b"%d %s\n\n" % (count, head.hex().encode())
