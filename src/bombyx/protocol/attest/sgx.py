# SPDX-License-Identifier: Apache-2.0
"""Intel SGX quotes, version 3: bytes in, `QuoteClaims` out (steps 1 and 4; 2 and 3 are `dcap.py`'s).

Not here: what to think of the measurements.
Always: only bytes under the quote's signature become claims; an SGX quote never gives the class `tdx`, though one root
vouches for both. Layout: Intel SGX ECDSA Quote Library Reference, appendix A.4.
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

TECHNOLOGY: Final = "sgx"
MIN_QUOTE: Final = 1020  # bytes; header, report and signatures alone are more
MAX_QUOTE: Final = 16_384  # bytes; real quotes are 4.6 kB
_HEADER, _REPORT = 48, 384  # bytes
_ATTRIBUTES: Final = 48
_DEBUG: Final = 0x02  # attributes, first byte
_FIELDS: Final = (("mrenclave", 64, 32), ("mrsigner", 128, 32), ("isv_prod_id", 256, 2), ("isv_svn", 258, 2))
_REPORT_DATA: Final = 320

# PARSE


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxQuote:
    """A quote taken apart, nothing of it verified."""

    raw: bytes
    body: bytes  # the enclave's report
    parsed: Any  # dcap-qvl's view of the same bytes

    @property
    def technology(self) -> str:
        return TECHNOLOGY

    @property
    def debug(self) -> bool:
        return bool(self.body[_ATTRIBUTES] & _DEBUG)


def parse_quote(raw: bytes) -> SgxQuote:
    """Read a v3 SGX quote. Raises `MalformedMessage`."""
    if not MIN_QUOTE <= len(raw) <= MAX_QUOTE:
        raise MalformedMessage(f"quote of {len(raw)} bytes, expected {MIN_QUOTE} .. {MAX_QUOTE}", rule="ATT-6.1")
    version, _, tee = struct.unpack_from("<HHI", raw)
    if (version, tee) != (3, 0):
        raise MalformedMessage("not an SGX quote of version 3", rule="ATT-6.1")
    end = _HEADER + _REPORT
    signature_end = end + 4 + int.from_bytes(raw[end : end + 4], "little")
    if signature_end > len(raw) or any(raw[signature_end:]) or not _framed(raw[end + 4 : signature_end]):
        raise MalformedMessage("the quote's length is not what it says", rule="ATT-6.1")
    try:
        parsed = dcap_qvl.parse_quote(raw)
    except ValueError:
        raise MalformedMessage("the quote cannot be parsed", rule="ATT-6.1") from None
    return SgxQuote(raw=raw, body=raw[_HEADER:end], parsed=parsed)


def _framed(auth: bytes) -> bool:
    """Signature, key, quoting enclave's report and signature; then type 5, the PCK chain, exactly to the end."""
    authentication = 128 + 384 + 64
    at = authentication + 2 + int.from_bytes(auth[authentication : authentication + 2], "little")
    kind, size = int.from_bytes(auth[at : at + 2], "little"), int.from_bytes(auth[at + 2 : at + 6], "little")
    return kind == 5 and at + 6 + size == len(auth)


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
    if not isinstance(quote, SgxQuote):
        raise Refused("not an SGX quote")
    body = quote.body
    return QuoteClaims(
        technology=TECHNOLOGY,
        format=f"{verified.simulated}sgx quote v3",
        root=verified.root.name,
        trust_class=verified.trust_class,
        tcb_status=report["tcb"]["status"],
        advisories=tuple(report["tcb"]["advisory_ids"]),
        platform=str(quote.parsed.fmspc()),
        debug=quote.debug,
        measurements=tuple((name, body[at : at + size]) for name, at, size in _FIELDS),
        report_data=body[_REPORT_DATA : _REPORT_DATA + 64],
        endorsed_until=Instant(report["earliest_expiration_date"] * 1000),
    )
