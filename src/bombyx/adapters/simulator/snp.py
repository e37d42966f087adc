# SPDX-License-Identifier: Apache-2.0
"""A simulated SEV-SNP chip and its maker: reports in AMD's format, and its certificates, under a root of its own.

Not hardware: it protects from nobody who can read the seed, and no verifier calls it anything but `simulated`.
AMD's authorities sign with RSA-PSS, whose salt is random; these sign with P-384, so that every byte follows from the
seed. Layouts: AMD 56860, table 22; AMD 57230, section 3.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Final

from bombyx.adapters.simulator.p384 import Signer, revocation_list, signer
from bombyx.protocol.attest.snp import write_collateral
from bombyx.protocol.primitives import Instant, Secret

_OID: Final = "1.3.6.1.4.1.3704.1"
_LEVELS: Final = {"3.1": 0, "3.2": 1, "3.3": 6, "3.8": 7}  # extension: byte of the firmware levels
LEVELS: Final = bytes([9, 0, 0, 0, 0, 0, 23, 72])


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpGuest:
    """What the (simulated) chip reports of one guest."""

    measurement: bytes = hashlib.sha384(b"bombyx simulated snp guest").digest()
    host_data: bytes = bytes(32)
    report_data: bytes = bytes(64)
    debug: bool = False
    version: int = 3


@dataclass(frozen=True, kw_only=True)
class SimulatedSnp:
    """One chip at one firmware level."""

    seed: Secret
    created: Instant
    levels: bytes = LEVELS
    certified: bytes = field(default=LEVELS)  # the levels its certificate names
    chip: bytes = hashlib.sha512(b"bombyx simulated snp chip").digest()

    @functools.cached_property
    def root(self) -> Signer:
        return signer(self.seed.reveal(), "Simulated ARK", self.created)

    @functools.cached_property
    def authority(self) -> Signer:
        return signer(self.seed.reveal(), "Simulated SEV", self.created, self.root)

    @functools.cached_property
    def vcek(self) -> Signer:
        certified = tuple((f"{_OID}.{name}", bytes([2, 1, self.certified[at]])) for name, at in _LEVELS.items())
        chip = ((f"{_OID}.4", hashlib.sha512(b"bombyx simulated snp chip").digest()),)
        name = "Simulated VCEK"
        return signer(self.seed.reveal(), name, self.created, self.authority, ca=False, extensions=certified + chip)

    @property
    def root_certificate(self) -> bytes:
        """DER. Named in a policy, it gives the trust class `simulated`."""
        return self.root.root

    def report(self, guest: SnpGuest) -> bytes:
        """A signed report over `guest`."""
        body = bytearray(0x2A0)
        body[0x00:0x04] = guest.version.to_bytes(4, "little")
        body[0x08:0x10] = (1 << 16 | 1 << 17 | guest.debug << 19).to_bytes(8, "little")
        body[0x34:0x38] = (1).to_bytes(4, "little")
        for at in (0x38, 0x180, 0x1E0, 0x1F0):  # current, reported, committed, launch
            body[at : at + 8] = self.levels
        body[0x50:0x90] = guest.report_data.ljust(64, b"\0")
        body[0x90:0xC0] = guest.measurement
        body[0xC0:0xE0] = guest.host_data
        body[0x188:0x18B] = bytes([0x19, 0x11, 0x01])  # family, model, stepping of a Genoa
        body[0x1A0:0x1E0] = self.chip
        r, s = self.vcek.sign(bytes(body))
        return bytes(body) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(512 - 144)

    def endorsements(self, now: Instant, *, days: int = 30, revoked: tuple[int, ...] = ()) -> bytes:
        """What AMD's service would answer at `now`: the chain, leaf first, and the root's revocation list."""
        return write_collateral(self.vcek.der(), revocation_list(self.root, at=now, days=days, revoked=revoked))
