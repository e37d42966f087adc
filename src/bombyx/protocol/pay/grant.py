# SPDX-License-Identifier: Apache-2.0
"""Sessions: one signature lets a MAC key speak for a channel for a while (spec PAY-9 .. PAY-11).

Not here: sealing the key to the payee (the caller does it and passes the sealed bytes), and money (`channel.py`).
Always: a counter is accepted once; a MAC authenticates a request and is never evidence of a debt, the voucher is; a
session lives in memory only, so a restart voids it and its key never reaches a disk.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from bombyx.errors import MalformedMessage, PaymentError, Peer
from bombyx.protocol.primitives import Digest, Instant, Secret, tagged_hash
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.channel import ChannelConfig, grant_digest
from bombyx.protocol.wire.request import SignedGrant
from bombyx.protocol.wire.signing import SigningKey, recover

WINDOW: Final = 256  # counters: how far a request may overtake another
KEY_SIZE: Final = 32
MAC_SIZE: Final = 32
MAX_LIFE: Final = 86_400  # seconds; a payee remembers every key hash this long, so that none opens twice
MAX_COUNTER: Final = 2**63 - 1
_TAG: Final = b"bombyx mac v1\x00"
_MASK: Final = (1 << WINDOW) - 1


def key_hash(key: Secret) -> Digest:
    """What a grant says of its key."""
    return tagged_hash("bombyx session key v1", key.reveal())


def mac(key: Secret, channel: Digest, counter: int, meta_hash: Digest, body_hash: Digest, cap: int) -> bytes:
    """HMAC-SHA256 over everything the payee is asked to do. `body_hash`: of everything after Meta in the envelope."""
    message = b"".join((_TAG, channel, counter.to_bytes(8), meta_hash, body_hash, cap.to_bytes(16)))
    return hmac.digest(key.reveal(), message, "sha256")


def sign_grant(
    config: ChannelConfig, domain: Digest, key: Secret, *, sealed_key: bytes, not_after: Instant, signer: SigningKey
) -> SignedGrant:
    """Let `key` speak for the channel to its receiver authorizer. `signer` is the payer authorizer."""
    channel = config.channel_id(domain)
    digest = grant_digest(domain, channel, config.receiver_authorizer, key_hash(key), not_after)
    return SignedGrant(
        channel=channel,
        payee=config.receiver_authorizer,
        key_hash=key_hash(key),
        not_after=not_after,
        sealed_key=sealed_key,
        signature=signer.sign(digest),
    )


def check_grant(
    grant: SignedGrant, config: ChannelConfig, domain: Digest, key: Secret, *, now: Instant, peer: Peer
) -> None:
    """Raise `PaymentError` unless `grant` lets `key` speak for the channel to us, now (PAY-9)."""
    if grant.channel != config.channel_id(domain) or grant.payee != config.receiver_authorizer:
        raise PaymentError("the grant is for another channel or payee", peer=peer, rule="PAY-9")
    if not now < grant.not_after <= now.plus(seconds=MAX_LIFE):
        raise PaymentError(f"the grant has ended or outlives {MAX_LIFE} s", peer=peer, rule="PAY-9")
    if len(key) != KEY_SIZE or key_hash(key) != grant.key_hash:
        raise PaymentError("the sealed key is not the one the grant names", peer=peer, rule="PAY-9")
    digest = grant_digest(domain, grant.channel, grant.payee, grant.key_hash, grant.not_after)
    if not signed_by(config.payer_authorizer, digest, grant.signature):
        raise PaymentError("the grant is not signed by the channel's payer authorizer", peer=peer, rule="PAY-9")


def signed_by(address: bytes, digest: Digest, signature: bytes) -> bool:
    """Whether `signature` is `address`'s over `digest`; a malformed one is nobody's."""
    try:
        return recover(digest, signature) == address
    except MalformedMessage:
        return False


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One open session at the payee: the key, the highest counter seen and the window of 256 below it."""

    key: Secret
    key_hash: Digest
    not_after: Instant
    highest: int = 0
    seen: int = 0  # bit i: counter `highest - i` was accepted

    def admit(self, counter: int, *, peer: Peer) -> Session:
        """The session after `counter`, or `PaymentError` for one that is used or too old (PAY-10)."""
        if not 1 <= counter <= MAX_COUNTER:
            raise PaymentError(f"a session counter lies in 1 .. 2^63-1, not {counter}", peer=peer, rule="PAY-10")
        if counter > self.highest:
            shift = counter - self.highest
            seen = ((self.seen << shift) & _MASK if shift < WINDOW else 0) | 1
            return Session(key=self.key, key_hash=self.key_hash, not_after=self.not_after, highest=counter, seen=seen)
        behind = self.highest - counter
        if behind >= WINDOW:
            raise PaymentError(
                f"counter {counter} is {behind} behind, the window is {WINDOW}", peer=peer, rule="PAY-10"
            )
        if self.seen >> behind & 1:
            raise PaymentError(f"counter {counter} was accepted before", peer=peer, rule="PAY-10")
        seen = self.seen | 1 << behind
        return Session(key=self.key, key_hash=self.key_hash, not_after=self.not_after, highest=self.highest, seen=seen)
