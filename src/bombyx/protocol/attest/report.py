# SPDX-License-Identifier: Apache-2.0
"""Another provider's evidence in one common form: a `Report` of `Part`s, each with at most one quote.

Not here: reading any provider's bytes (`phala.py`, `near.py`, `bare.py`, found by `recognise.py`), nor any judgement
(`examine.py`). A new provider is one file that makes a `Report`.
Always: what stands in a `Part` is what its sender says; nothing of it is verified.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bombyx.protocol.attest.guest import NOTHING_SAID, GuestInfo

NONCE_SIZE: Final = 32  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What the quote's report data must be, by the provider's scheme, for the keys and the nonce the report shows."""

    scheme: str  # for people
    expected: bytes  # 64 bytes
    keys: tuple[tuple[str, str], ...]  # (what, value) of everything bound
    nonce: bytes | None = None
    faults: tuple[str, ...] = ()  # what contradicts itself within the report
    checked: tuple[str, ...] = ()  # what was found to hold on the way


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One enclave's evidence."""

    name: str
    technology: str = ""  # tdx, sgx or snp; empty: no quote, GPU evidence or tokens alone
    quote: bytes = field(default=b"", repr=False)
    event_log: bytes | None = field(default=None, repr=False)
    compose: bytes | None = field(default=None, repr=False)
    binding: Binding | None = None
    said: tuple[tuple[str, bytes], ...] = ()  # unsigned copies of measured values: they must not contradict
    gpu_evidence: bytes | None = field(default=None, repr=False)
    gpu_nonce: bytes | None = None
    gpu_expected: int | None = None  # how many GPUs the report says it opens; None: it does not say
    serves: bool = True  # runs the model, so that a policy's GPU is required of it
    config: bytes | None = field(default=None, repr=False)  # dstack's configuration document (`mr_config.py`)
    guest: GuestInfo = NOTHING_SAID  # what its agent says of itself
    switches: bool = False  # NVSwitch evidence came with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One answer of a provider: all its parts must convince."""

    form: str  # for people: which provider's form was recognised
    parts: tuple[Part, ...]
    tokens: bytes = field(default=b"", repr=False)  # NVIDIA tokens that came with it
    chosen: bool = False  # the reader picked these parts; otherwise one that serves the model must be among them


@dataclass(frozen=True, slots=True, kw_only=True)
class AtHand:
    """What the verifier has beside the report."""

    endorsements: tuple[bytes, ...] = ()  # Intel's collateral in JSON, AMD's certificates; one a platform
    tokens: tuple[bytes, ...] = ()  # NVIDIA's, in the order of the parts with GPUs
    jwks: bytes = b""
    rims: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()
    nonce: bytes | None = None  # the one we asked with
    report_data: bytes | None = None  # what a bare quote must hold
    compose: bytes | None = None
