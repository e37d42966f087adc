# SPDX-License-Identifier: Apache-2.0
"""Intel's way of vouching (DCAP), shared by TDX and SGX: collateral, certificate chains, TCB levels (steps 2 and 3).

The signatures, certificates, revocation lists and TCB levels are checked by dcap-qvl under the root the policy names:
Intel's in production, a simulator's in development, the same code. Not here: the quotes' layouts (`tdx.py`, `sgx.py`).
Always: the library's error texts are read, never repeated.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import dcap_qvl
import orjson

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.attest.claims import QuoteClaims
from bombyx.protocol.attest.policy import AppraisalPolicy, TrustedRoot
from bombyx.protocol.attest.roots import TrustClass, trust_class_of
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.attest.x509chain import check_chain as check_links
from bombyx.protocol.attest.x509chain import load_pem_chain
from bombyx.protocol.primitives import Instant, sha256

MAX_COLLATERAL: Final = 262_144  # bytes; Intel's is 19 kB
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

# PARSE


class Quote(Protocol):
    """A quote taken apart by its own technology's file."""

    @property
    def raw(self) -> bytes: ...
    @property
    def parsed(self) -> Any:
        """dcap-qvl's view of the same bytes."""

    @property
    def technology(self) -> str: ...


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

    quote: Quote
    root: TrustedRoot
    report: dict[str, Any]
    stopped: Stopped | None = None

    @property
    def trust_class(self) -> TrustClass:
        return trust_class_of(self.root.certificate, self.quote.technology)

    @property
    def simulated(self) -> str:
        return "simulated " if self.trust_class is TrustClass.SIMULATED else ""


def check_chain(quote: Quote, collateral: Any, policy: AppraisalPolicy, now: Instant) -> Found[Verified]:
    """Step 2: the quote's signatures and certificates lead to a root the policy names."""
    root = _root_of(quote, policy)
    verified = _verify(quote, collateral, root, now)
    if verified.stopped is None or verified.stopped.step == 4:  # the debug bit is looked at after all signatures
        return Found(verified, f"root {root.name!r}: trust class {verified.trust_class}")
    if verified.stopped.step == 2:
        raise Refused(verified.stopped.detail)
    return Found(verified, "not checked: the collateral was refused before it", Status.NOT_CHECKED)


def _root_of(quote: Quote, policy: AppraisalPolicy) -> TrustedRoot:
    """The policy's root that the quote's own chain ends in; a lie here only makes the signatures fail."""
    if not policy.roots:
        raise Refused("the policy names no root: nothing passes")
    last = _last_certificate(quote)
    for root in policy.roots:
        if root.certificate == last:
            return acceptable(root, quote.technology, policy)
    raise Refused(f"the chain ends in a root the policy does not name (SHA-256 {sha256(last).hex()[:16]})")


def platform_of(quote: Quote) -> str:
    """The kind of platform (FMSPC), read from a certificate nobody verified: it only picks the Endorsements."""
    try:
        return str(quote.parsed.fmspc()).lower()
    except ValueError:
        raise Refused("the quote's certificate cannot be read") from None


def check_without_endorsements(quote: Quote, now: Instant) -> None:
    """What can be said of a quote for whose platform nothing is at hand: its own chain holds, or it is refused."""
    pem = bytes(quote.parsed.cert_chain_pem_bytes() or b"").rstrip(b"\0")
    check_links(load_pem_chain(pem, "the quote", longest=4), "the platform", now)


def acceptable(root: TrustedRoot, technology: str, policy: AppraisalPolicy) -> TrustedRoot:
    """`root`, if what it can give for this technology is something the policy accepts."""
    given = trust_class_of(root.certificate, technology)
    if not policy.may_accept(given):
        accepted = ", ".join(sorted(policy.trust_classes)) or "none: nothing passes"
        raise Refused(f"root {root.name!r} gives trust class {given}; the policy accepts {accepted}")
    return root


def _last_certificate(quote: Quote) -> bytes:
    """In DER, unread: it is only compared."""
    pem = bytes(quote.parsed.cert_chain_pem_bytes() or b"")
    last = pem.rpartition(b"-----BEGIN CERTIFICATE-----")[2].partition(b"-----END CERTIFICATE-----")[0]
    try:
        return base64.b64decode(b"".join(last.split()), validate=True)
    except ValueError:
        raise Refused("the quote carries no readable certificate chain") from None


def _verify(quote: Quote, collateral: Any, root: TrustedRoot, now: Instant) -> Verified:
    verifier = dcap_qvl.QuoteVerifier(root.certificate)
    try:
        claims = verifier.verify_with_policy(
            quote.raw, collateral, now.seconds, dcap_qvl.QuotePolicy.claims_only(now.seconds)
        )
        return Verified(quote=quote, root=root, report=orjson.loads(claims.to_json()))
    except ValueError as error:
        stopped = _stopped(str(error) + _cause(quote, collateral, root, now))
        return Verified(quote=quote, root=root, report={}, stopped=stopped)


def _cause(quote: Quote, collateral: Any, root: TrustedRoot, now: Instant) -> str:
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


def check_endorsements(verified: Verified, claims_of: Callable[[Verified], QuoteClaims]) -> Found[QuoteClaims | None]:
    """Step 3: in date, not revoked, and in a state the policy accepts under this root."""
    if verified.stopped is not None:
        if verified.stopped.step == 3:
            raise Refused(verified.stopped.detail, peer=Peer.ENDORSER)
        return Found(None, "not checked: refused for a later step first", Status.NOT_CHECKED)
    claims = claims_of(verified)
    accepted = verified.root.tcb_statuses
    if claims.tcb_status not in accepted:
        wanted = ", ".join(sorted(accepted)) or "none: nothing passes"
        raise Refused(f"the platform's TCB status is {claims.tcb_status}, the policy accepts {wanted}")
    return Found(claims, claims.tcb_status + "".join(f" {advisory}" for advisory in claims.advisories))
