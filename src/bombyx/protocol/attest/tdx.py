# SPDX-License-Identifier: Apache-2.0
"""Intel TDX quotes, versions 4 and 5: bytes in, `QuoteClaims` out (steps 1 and 4; 2 and 3 are `dcap.py`'s).

Not here: what to think of the measurements.
Always: only bytes under the quote's signature become claims.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import dcap_qvl

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import dcap
from bombyx.protocol.attest.claims import QuoteClaims
from bombyx.protocol.attest.dcap import Verified, check_chain, parse_collateral
from bombyx.protocol.attest.steps import Found, Refused
from bombyx.protocol.primitives import Instant

__all__ = ["check_attributes", "check_chain", "check_endorsements", "parse_collateral", "parse_quote"]

TECHNOLOGY: Final = "tdx"
MIN_QUOTE: Final = 1024  # bytes; header, report and signatures alone are more
MAX_QUOTE: Final = 16_384  # bytes; real quotes are 5 kB
_TEE_TDX: Final = 0x81
_HEADER: Final = 48  # bytes
_BODY_SIZES: Final = {2: 584, 3: 648}  # quote v5 body types: TD report 1.0 and 1.5
_DEBUG: Final = 0x01  # TD attributes, first byte
_TD_FIELDS: Final = (  # (name, offset, size) in a TD report, the same in 1.0 and 1.5
    ("mrtd", 136, 48),
    ("mr_config_id", 184, 48),
    ("mr_owner", 232, 48),
    ("mr_owner_config", 280, 48),
    ("rtmr0", 328, 48),
    ("rtmr1", 376, 48),
    ("rtmr2", 424, 48),
    ("rtmr3", 472, 48),
)
_USER_DATA: Final = slice(28, 48)  # of the header
_TD_ATTRIBUTES: Final = 120
_REPORT_DATA: Final = 520

# PARSE


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxQuote:
    """A quote taken apart, nothing of it verified."""

    raw: bytes
    version: int
    body: bytes  # the TD report
    parsed: Any  # dcap-qvl's view of the same bytes

    @property
    def technology(self) -> str:
        return TECHNOLOGY

    @property
    def report_data(self) -> bytes:
        return self.body[_REPORT_DATA : _REPORT_DATA + 64]

    @property
    def user_data(self) -> bytes:
        """What the quoting enclave wrote into the header, under the quote's signature: some platforms' identity."""
        return self.raw[_USER_DATA]

    @property
    def debug(self) -> bool:
        return bool(self.body[_TD_ATTRIBUTES] & _DEBUG)


def parse_quote(raw: bytes) -> TdxQuote:
    """Read a v4 or v5 TDX quote. Raises `MalformedMessage`."""
    if not MIN_QUOTE <= len(raw) <= MAX_QUOTE:
        raise MalformedMessage(f"quote of {len(raw)} bytes, expected {MIN_QUOTE} .. {MAX_QUOTE}", rule="ATT-6.1")
    version, _, tee = struct.unpack_from("<HHI", raw)
    if version not in (4, 5) or tee != _TEE_TDX:
        raise MalformedMessage("not a TDX quote of version 4 or 5", rule="ATT-6.1")
    start, size = _body_of(raw, version)
    end = start + size
    signature_end = end + 4 + int.from_bytes(raw[end : end + 4], "little")
    if signature_end > len(raw) or any(raw[signature_end:]):  # devices pad with zeros
        raise MalformedMessage("the quote's length is not what it says", rule="ATT-6.1")
    if not _framed(raw[end + 4 : signature_end]):  # the library does not look
        raise MalformedMessage(
            "the quote is not certified by a PCK certificate chain of the length it says", rule="ATT-6.1"
        )
    try:
        parsed = dcap_qvl.parse_quote(raw)
    except ValueError:
        raise MalformedMessage("the quote cannot be parsed", rule="ATT-6.1") from None
    return TdxQuote(raw=raw, version=version, body=raw[start:end], parsed=parsed)


def _framed(auth: bytes) -> bool:
    """Certification data of type 6 (a QE report) with type 5 (the PCK chain) in it, both reaching exactly to the end.

    Intel's quote format, A.3.8 to A.3.11.
    """
    outer = 128  # past signature and attestation key
    authentication = outer + 6 + 384 + 64  # past the quoting enclave's report and its signature
    inner = authentication + 2 + int.from_bytes(auth[authentication : authentication + 2], "little")
    return all(
        int.from_bytes(auth[at : at + 2], "little") == kind
        and at + 6 + int.from_bytes(auth[at + 2 : at + 6], "little") == len(auth)
        for at, kind in ((outer, 6), (inner, 5))
    )


def _body_of(raw: bytes, version: int) -> tuple[int, int]:
    if version == 4:
        return _HEADER, _BODY_SIZES[2]
    kind, size = struct.unpack_from("<HI", raw, _HEADER)
    if _BODY_SIZES.get(kind) != size:
        raise MalformedMessage("the quote's body type is not a TD report's", rule="ATT-6.1")
    return _HEADER + 6, size


# CLAIMS


def check_endorsements(verified: Verified) -> Found[QuoteClaims | None]:
    """Step 3."""
    return dcap.check_endorsements(verified, _claims)


def check_attributes(verified: Verified, claims: QuoteClaims | None) -> Found[QuoteClaims]:
    """Step 4: debug off. The library looks too; the bit is read again here, from the signed bytes."""
    if claims is None or claims.debug:
        raise Refused("the debug attribute is set: the host reads this enclave's memory")
    return Found(claims, f"{claims.format}, debug off")


def _claims(verified: Verified) -> QuoteClaims:
    quote, report = verified.quote, verified.report
    if not isinstance(quote, TdxQuote):
        raise Refused("not a TDX quote")
    body = quote.body
    return QuoteClaims(
        technology=TECHNOLOGY,
        format=f"{verified.simulated}tdx quote v{quote.version}",
        root=verified.root.name,
        trust_class=verified.trust_class,
        tcb_status=report["tcb"]["status"],
        advisories=tuple(report["tcb"]["advisory_ids"]),
        platform=str(quote.parsed.fmspc()),
        debug=quote.debug,
        measurements=tuple((name, body[at : at + size]) for name, at, size in _TD_FIELDS),
        report_data=quote.report_data,
        endorsed_until=Instant(report["earliest_expiration_date"] * 1000),
    )
