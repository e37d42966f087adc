# SPDX-License-Identifier: Apache-2.0
"""The enclave's secrets: made fresh at boot, never derived, sealed or exported (spec ATT-1, ATT-2).

The receipt key, the payment authorizer and the payment HPKE key live as long as the process; the HPKE keys that
requests are sealed to live for one period and are dropped by the monotonic clock, which the host cannot turn back.
Python cannot overwrite what it held: dropping the last reference is all that is promised here, the enclave's memory
encryption does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bombyx.errors import KeyConfigError
from bombyx.protocol.primitives import Digest, Secret
from bombyx.protocol.seal.hpke import Kem, Randomness
from bombyx.protocol.seal.ohttp import GatewayKey
from bombyx.protocol.seal.replay import ReplayGuard
from bombyx.protocol.wire.evidence import Keyset
from bombyx.protocol.wire.signing import SigningKey

KEMS: Final = (Kem.MLKEM768_X25519, Kem.X25519)  # in the order clients shall prefer them
PAY_KEY_ID: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BootKeys:
    """Secrets of one boot."""

    receipt: SigningKey
    pay_authorizer: SigningKey
    pay_gateway: GatewayKey

    @classmethod
    def make(cls, randomness: Randomness) -> BootKeys:
        return cls(
            receipt=new_signing_key(randomness),
            pay_authorizer=new_signing_key(randomness),
            pay_gateway=GatewayKey.generate(PAY_KEY_ID, Kem.X25519, randomness),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The keys requests are sealed to, for one period, and all that vouches for them."""

    gateways: tuple[GatewayKey, ...] = field(repr=False)
    replays: ReplayGuard = field(repr=False)
    keyset: Keyset
    bundle: bytes = field(repr=False)  # canonical EvidenceBundle
    bundle_digest: Digest
    made_at: float  # monotonic seconds
    erase_at: float

    @property
    def candidates(self) -> tuple[Digest, ...]:
        return tuple(gateway.config.candidate_id() for gateway in self.gateways)


class Keyring:
    """Periods that may still open requests, the newest last."""

    __slots__ = ("_next_id", "_periods")

    def __init__(self) -> None:
        self._periods: list[Period] = []
        self._next_id = 1

    @property
    def current(self) -> Period | None:
        return self._periods[-1] if self._periods else None

    def new_gateways(self, randomness: Randomness) -> tuple[GatewayKey, ...]:
        """Keys for a period to come. Ids differ from those of the periods still held (RFC 9458 section 3)."""
        made = []
        for kem in KEMS:
            made.append(GatewayKey.generate(self._next_id, kem, randomness))
            self._next_id = self._next_id % 255 + 1
        return tuple(made)

    def add(self, period: Period) -> None:
        self._periods.append(period)

    def erase(self, monotonic: float) -> int:
        """Drop every period whose time is over; how many."""
        kept = [period for period in self._periods if period.erase_at > monotonic]
        gone, self._periods = len(self._periods) - len(kept), kept
        return gone

    def holding(self, candidates: tuple[Digest, ...], monotonic: float) -> tuple[Period, Digest]:
        """The period, and which of the `candidates` it is. Raises `KeyConfigError` when none is ours (any more)."""
        self.erase(monotonic)
        for period in reversed(self._periods):
            for candidate in candidates:
                if candidate in period.candidates:
                    return period, candidate
        raise KeyConfigError("sealed to a key this worker does not hold", rule="SEAL-10")


def new_signing_key(randomness: Randomness) -> SigningKey:
    """A secp256k1 key; a draw outside the curve's order (2^-128) is drawn again."""
    while True:
        try:
            return SigningKey(Secret(randomness.bytes(32)))
        except ValueError:
            continue
