# SPDX-License-Identifier: Apache-2.0
"""Intel TDX quotes, versions 4 and 5: bytes and the Endorser's collateral in, `QuoteClaims` out (steps 1 to 4).

The signatures, certificates, revocation lists and TCB levels are checked by dcap-qvl under the root the policy names:
Intel's in production, a simulator's in development, the same code. Not here: what to think of the measurements.
Always: only bytes under the quote's signature become claims; the library's error texts are read, never repeated.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from typing import Any, Final

import dcap_qvl
import orjson

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.attest.claims import QuoteClaims
from bombyx.protocol.attest.policy import AppraisalPolicy, TrustedRoot
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.primitives import Instant, sha256

TECHNOLOGY: Final = "tdx"
MIN_QUOTE: Final = 1024  # bytes; header, report and signatures alone are more
MAX_QUOTE: Final = 16_384  # bytes; real quotes are 5 kB
MAX_COLLATERAL: Final = 262_144  # bytes; Intel's is 19 kB
_TEE_TDX: Final = 0x81
_HEADER: Final = 48  # bytes
_BODY_SIZES: Final = {2: 584, 3: 648}  # quote v5 body types: TD report 1.0 and 1.5
_DEBUG: Final = 0x01  # TD attributes, first byte
_COLLATERAL_FIELDS: Final = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)
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


def parse_collateral(text: bytes) -> Any:
    """Read Endorsements in dcap-qvl's QuoteCollateralV3 JSON form. Raises `MalformedMessage`."""
    if len(text) > MAX_COLLATERAL:
        raise MalformedMessage(f"Endorsements of {len(text)} bytes, at most {MAX_COLLATERAL}", rule="ATT-6.1")
    try:
        fields = orjson.loads(text)
        if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in _COLLATERAL_FIELDS):
            raise MalformedMessage("the Endorsements lack a field", peer=Peer.ENDORSER, rule="ATT-6.1")
        return dcap_qvl.QuoteCollateralV3.from_json(
            orjson.dumps({name: fields[name] for name in _COLLATERAL_FIELDS}).decode()
        )
    except ValueError:  # orjson's and dcap-qvl's errors are both
        raise MalformedMessage("the Endorsements are not JSON of the form expected", rule="ATT-6.1") from None


# CHAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The library verifies steps 2 to 4 in one go and says only where it stopped."""

    step: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The chain holds under `root`, whatever the platform's state; or the library `stopped` somewhere."""

    quote: TdxQuote
    root: TrustedRoot
    report: dict[str, Any]
    stopped: Stopped | None = None


def check_chain(quote: TdxQuote, collateral: Any, policy: AppraisalPolicy, now: Instant) -> Found[Verified]:
    """Step 2: the quote's signatures and certificates lead to a root the policy names."""
    root = _root_of(quote, policy)
    verified = _verify(quote, collateral, root, now)
    if verified.stopped is None or verified.stopped.step == 4:  # the debug bit is looked at after all signatures
        return Found(verified, f"root {root.name!r}: trust class {root.trust_class}")
    if verified.stopped.step == 2:
        raise Refused(verified.stopped.detail)
    return Found(verified, "not checked: the collateral was refused before it", Status.NOT_CHECKED)


def _root_of(quote: TdxQuote, policy: AppraisalPolicy) -> TrustedRoot:
    """The policy's root that the quote's own chain ends in; a lie here only makes the signatures fail."""
    if not policy.roots:
        raise Refused("the policy names no root: nothing passes")
    last = _last_certificate(quote)
    for root in policy.roots:
        if root.certificate == last:
            return _acceptable(root, policy)
    raise Refused(f"the chain ends in a root the policy does not name (SHA-256 {sha256(last).hex()[:16]})")


def _acceptable(root: TrustedRoot, policy: AppraisalPolicy) -> TrustedRoot:
    if not policy.may_accept(root.trust_class):
        accepted = ", ".join(sorted(policy.trust_classes)) or "none: nothing passes"
        raise Refused(f"root {root.name!r} gives trust class {root.trust_class}; the policy accepts {accepted}")
    return root


def _last_certificate(quote: TdxQuote) -> bytes:
    """In DER, unread: it is only compared."""
    pem = bytes(quote.parsed.cert_chain_pem_bytes() or b"")
    last = pem.rpartition(b"-----BEGIN CERTIFICATE-----")[2].partition(b"-----END CERTIFICATE-----")[0]
    try:
        return base64.b64decode(b"".join(last.split()), validate=True)
    except ValueError:
        raise Refused("the quote carries no readable certificate chain") from None


def _verify(quote: TdxQuote, collateral: Any, root: TrustedRoot, now: Instant) -> Verified:
    verifier = dcap_qvl.QuoteVerifier(root.certificate)
    try:
        claims = verifier.verify_with_policy(
            quote.raw, collateral, now.seconds, dcap_qvl.QuotePolicy.claims_only(now.seconds)
        )
        return Verified(quote=quote, root=root, report=orjson.loads(claims.to_json()))
    except ValueError as error:
        stopped = _stopped(str(error) + _cause(quote, collateral, root, now))
        return Verified(quote=quote, root=root, report={}, stopped=stopped)


def _cause(quote: TdxQuote, collateral: Any, root: TrustedRoot, now: Instant) -> str:
    """The same refusal in the library's older call, which tells the cause as well."""
    try:
        dcap_qvl.verify_with_root_ca(quote.raw, collateral, root.certificate, now.seconds)
    except ValueError as error:
        return str(error)
    return ""


_STOPS: Final = (  # (what the library's text holds, step, what we say)
    ("Debug mode", 4, "the debug attribute is set: the host reads this enclave's memory"),
    ("CertRevoked", 3, "a certificate in the chain is revoked"),
    ("CrlExpired", 3, "a certificate revocation list has expired"),
    ("CertExpired", 3, "a certificate in the chain has expired"),
    ("CertNotValidYet", 3, "a certificate in the chain is not valid yet"),
    ("in the future", 3, "the collateral was issued in the future"),
    ("expired", 3, "the collateral has expired"),
    ("TCB status is invalid: Revoked", 3, "the platform's TCB status is Revoked"),
    ("TCB level", 3, "the platform matches no TCB level of its collateral"),
    ("TCB status", 3, "the platform's TCB status is not acceptable"),
    ("FMSPC mismatch", 3, "the collateral is for another kind of platform"),
    ("Fmspc mismatch", 3, "the collateral is for another kind of platform"),
    ("ISV enclave report signature", 2, "the signature over the TD report does not verify"),
    ("QE report hash mismatch", 2, "the attestation key is not the quoting enclave's"),
    ("qe_report", 2, "the signature over the quoting enclave's report does not verify"),
    ("tcb_info in quote_collateral", 2, "the signature over the TCB info does not verify"),
    ("qe_identity in quote_collateral", 2, "the signature over the quoting enclave's identity does not verify"),
    ("CrlSignature", 2, "a revocation list is not signed by the chain's authority"),
    ("certificate chain", 2, "a certificate does not chain to the root"),
)


def _stopped(text: str) -> Stopped:
    for needle, step, detail in _STOPS:
        if needle in text:
            return Stopped(step=step, detail=detail)
    return Stopped(step=2, detail="the quote does not verify under this root")


# CLAIMS


def check_endorsements(verified: Verified) -> Found[QuoteClaims | None]:
    """Step 3: in date, not revoked, and in a state the policy accepts under this root."""
    if verified.stopped is not None:
        if verified.stopped.step == 3:
            raise Refused(verified.stopped.detail, peer=Peer.ENDORSER)
        return Found(None, "not checked: refused for a later step first", Status.NOT_CHECKED)
    claims = _claims(verified)
    accepted = verified.root.tcb_statuses
    if claims.tcb_status not in accepted:
        wanted = ", ".join(sorted(accepted)) or "none: nothing passes"
        raise Refused(f"the platform's TCB status is {claims.tcb_status}, the policy accepts {wanted}")
    return Found(claims, claims.tcb_status + "".join(f" {advisory}" for advisory in claims.advisories))


def check_attributes(verified: Verified, claims: QuoteClaims | None) -> Found[QuoteClaims]:
    """Step 4: debug off. The library looks too; the bit is read again here, from the signed bytes."""
    if claims is None or claims.debug:
        raise Refused("the debug attribute is set: the host reads this enclave's memory")
    return Found(claims, f"{claims.format}, debug off")


def _format(verified: Verified) -> str:
    simulated = "simulated " if verified.root.trust_class is TrustClass.SIMULATED else ""
    return f"{simulated}tdx quote v{verified.quote.version}"


def _claims(verified: Verified) -> QuoteClaims:
    body, report = verified.quote.body, verified.report
    return QuoteClaims(
        technology=TECHNOLOGY,
        format=_format(verified),
        root=verified.root.name,
        trust_class=verified.root.trust_class,
        tcb_status=report["tcb"]["status"],
        advisories=tuple(report["tcb"]["advisory_ids"]),
        platform=str(verified.quote.parsed.fmspc()),
        debug=verified.quote.debug,
        measurements=tuple((name, body[at : at + size]) for name, at, size in _TD_FIELDS),
        report_data=body[_REPORT_DATA : _REPORT_DATA + 64],
        endorsed_until=Instant(report["earliest_expiration_date"] * 1000),
    )
