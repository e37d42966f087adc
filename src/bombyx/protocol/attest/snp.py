# SPDX-License-Identifier: Apache-2.0
"""AMD SEV-SNP attestation reports: bytes and the chip's certificates in, `QuoteClaims` out (steps 1 to 4).

Not here: what to think of the measurement. AMD rates no firmware level; the policy's root names the least it accepts,
without which the platform's status is `Unrated`, not `UpToDate`.
Always: only bytes under the report's signature become claims; the chip and its firmware levels in the certificate are
those in the report. Layouts: AMD 56860 (SEV-SNP ABI), table 22; AMD 57230 (VCEK), sections 2 and 3.
"""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass
from typing import Any, Final

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from bombyx.errors import MalformedMessage, Peer
from bombyx.protocol.attest.claims import QuoteClaims
from bombyx.protocol.attest.dcap import acceptable
from bombyx.protocol.attest.policy import AppraisalPolicy, TrustedRoot
from bombyx.protocol.attest.roots import TrustClass, trust_class_of
from bombyx.protocol.attest.steps import Found, Refused
from bombyx.protocol.attest.x509chain import Chain, check_p384, der, load_chain, load_pem_chain
from bombyx.protocol.attest.x509chain import check_chain as check_links
from bombyx.protocol.primitives import Instant, sha256

TECHNOLOGY: Final = "snp"
REPORT_SIZE: Final = 1184  # bytes
MAX_ENDORSEMENTS: Final = 65_536  # bytes; VCEK, ASK and ARK are 5 kB
_SIGNED: Final = 0x2A0
_ECDSA_P384_SHA384: Final = 1
_DEBUG: Final = 1 << 19  # guest policy
_CPUID_TURIN: Final = 0x1A  # family from which on the firmware levels are laid out otherwise
_FIELDS: Final = (
    ("measurement", 0x90, 48),
    ("host_data", 0xC0, 32),
    ("id_key_digest", 0xE0, 48),
    ("author_key_digest", 0x110, 48),
    ("family_id", 0x10, 16),
    ("image_id", 0x20, 16),
)
_OID: Final = "1.3.6.1.4.1.3704.1"
_LEVELS: Final = {"bootloader": ("3.1", 0), "tee": ("3.2", 1), "snp": ("3.3", 6), "microcode": ("3.8", 7)}
_LEVELS_TURIN: Final = {
    "fmc": ("3.9", 0),
    "bootloader": ("3.1", 1),
    "tee": ("3.2", 2),
    "snp": ("3.3", 3),
    "microcode": ("3.8", 7),
}
KDS_NAMES: Final = {"fmc": "fmcSPL", "bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}

# PARSE


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """A report taken apart, nothing of it verified."""

    raw: bytes

    @property
    def technology(self) -> str:
        return TECHNOLOGY

    @property
    def version(self) -> int:
        return int.from_bytes(self.raw[:4], "little")

    @property
    def debug(self) -> bool:
        return bool(int.from_bytes(self.raw[8:16], "little") & _DEBUG)

    @property
    def turin(self) -> bool:
        return self.version >= 3 and self.raw[0x188] >= _CPUID_TURIN

    @property
    def chip_id(self) -> bytes:
        return self.raw[0x1A0 : 0x1A0 + (8 if self.turin else 64)]

    def levels(self) -> dict[str, int]:
        """The firmware levels the report speaks for (reported TCB)."""
        tcb = self.raw[0x180:0x188]
        return {name: tcb[at] for name, (_, at) in (_LEVELS_TURIN if self.turin else _LEVELS).items()}


def parse_quote(raw: bytes) -> SnpReport:
    """Read a report of version 2 or later. Raises `MalformedMessage`."""
    if len(raw) != REPORT_SIZE:
        raise MalformedMessage(f"SEV-SNP report of {len(raw)} bytes, expected {REPORT_SIZE}", rule="ATT-6.1")
    version, algorithm = (int.from_bytes(raw[at : at + 4], "little") for at in (0, 0x34))
    if not 2 <= version <= 5 or algorithm != _ECDSA_P384_SHA384:
        raise MalformedMessage("not a SEV-SNP report of version 2 to 5 signed with P-384", rule="ATT-6.1")
    if any(raw[_SIGNED + 144 :]) or any(raw[_SIGNED + 48 : _SIGNED + 72]) or any(raw[_SIGNED + 120 : _SIGNED + 144]):
        raise MalformedMessage("bytes after the report's signature", rule="ATT-6.1")
    return SnpReport(raw=raw)


def families(report: SnpReport) -> tuple[str, ...]:
    """The processor families the report may come from, as AMD's service names them; old reports do not say."""
    if report.turin:
        return ("Turin",)
    if report.version < 3:
        return ("Milan", "Genoa")
    return ("Genoa",) if report.raw[0x189] >= 0x10 else ("Milan",)


def der_of_pem(pem: bytes) -> tuple[bytes, ...]:
    """Certificates out of concatenated PEM. Raises `MalformedMessage`."""
    return tuple(der(one) for one in load_pem_chain(pem, "SEV-SNP", longest=4))


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEndorsements:
    """VCEK (or VLEK), ASK, ARK; and AMD's revocation list where it is at hand."""

    chain: Chain
    crl: x509.CertificateRevocationList | None


def parse_collateral(text: bytes) -> SnpEndorsements:
    """Read `{"certificates": [base64 DER, leaf first], "crl": base64}`, or PEM. Raises `MalformedMessage`."""
    if len(text) > MAX_ENDORSEMENTS:
        raise MalformedMessage(f"Endorsements of {len(text)} bytes, at most {MAX_ENDORSEMENTS}", rule="ATT-6.1")
    if text.lstrip().startswith(b"-----BEGIN"):
        return SnpEndorsements(chain=load_pem_chain(text, "SEV-SNP", longest=4), crl=None)
    try:
        fields = orjson.loads(text)
        certificates = [base64.b64decode(one, validate=True) for one in fields["certificates"]]
        crl = fields.get("crl")
        parsed = None if crl is None else x509.load_der_x509_crl(base64.b64decode(crl, validate=True))
    except (ValueError, TypeError, KeyError, AttributeError, x509.InvalidVersion):
        raise MalformedMessage("the Endorsements are not certificates of the form expected", rule="ATT-6.1") from None
    return SnpEndorsements(chain=load_chain(certificates, "SEV-SNP", longest=4), crl=parsed)


def write_collateral(certificates: tuple[bytes, ...], crl: bytes | None = None) -> bytes:
    """The JSON form of DER certificates, leaf first."""
    fields: dict[str, Any] = {"certificates": [base64.b64encode(one).decode() for one in certificates]}
    return orjson.dumps(fields if crl is None else {**fields, "crl": base64.b64encode(crl).decode()})


# CHAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The signatures hold under `root`."""

    quote: SnpReport
    root: TrustedRoot
    endorsements: SnpEndorsements
    until: Instant
    now: Instant


def check_chain(
    quote: SnpReport, collateral: SnpEndorsements, policy: AppraisalPolicy, now: Instant
) -> Found[Verified]:
    """Step 2: the report is signed by a chip whose chain leads to a root the policy names."""
    root = _root_of(collateral.chain, policy)
    until = check_links(collateral.chain, "the chip", now)
    raw = quote.raw
    r, s = (int.from_bytes(raw[at : at + 72], "little") for at in (_SIGNED, _SIGNED + 72))
    check_p384(collateral.chain[0], r, s, raw[:_SIGNED], "the signature over the SEV-SNP report")
    verified = Verified(quote=quote, root=root, endorsements=collateral, until=until, now=now)
    return Found(verified, f"root {root.name!r}: trust class {_class_of(root)}")


def _class_of(root: TrustedRoot) -> TrustClass:
    return trust_class_of(root.certificate, TECHNOLOGY)


def _root_of(chain: Chain, policy: AppraisalPolicy) -> TrustedRoot:
    if not policy.roots:
        raise Refused("the policy names no root: nothing passes")
    last = der(chain[-1])
    for root in policy.roots:
        if root.certificate == last:
            return acceptable(root, TECHNOLOGY, policy)
    raise Refused(f"the chain ends in a root the policy does not name (SHA-256 {sha256(last).hex()[:16]})")


# CLAIMS


def check_endorsements(verified: Verified) -> Found[QuoteClaims]:
    """Step 3: chip and firmware levels are the certificate's, nothing is revoked, the levels are enough."""
    _check_chip(verified)
    until, revocation = _check_revocation(verified)
    claims = _claims(verified, until)
    accepted = verified.root.tcb_statuses
    if claims.tcb_status not in accepted:
        wanted = ", ".join(sorted(accepted)) or "none: nothing passes"
        raise Refused(f"the platform's TCB status is {claims.tcb_status}, the policy accepts {wanted}")
    levels = " ".join(f"{name} {level}" for name, level in verified.quote.levels().items())
    return Found(claims, f"{claims.tcb_status} ({levels}){revocation}")


def _check_chip(verified: Verified) -> None:
    leaf = verified.endorsements.chain[0]
    chip = _extension(leaf, "4")
    if chip is not None and chip[-len(verified.quote.chip_id) :] != verified.quote.chip_id:
        raise Refused("the certificate is another chip's")
    if chip is None and _extension(leaf, "5") is None:  # a VLEK names a cloud provider instead of a chip
        raise Refused("the certificate names neither a chip nor a provider")
    layout = _LEVELS_TURIN if verified.quote.turin else _LEVELS
    for name, level in verified.quote.levels().items():
        said = _extension(leaf, layout[name][0])
        if said is None or said[-1] != level:
            raise Refused(f"the certificate is for another {name} level than the report's {level}")


def _extension(certificate: x509.Certificate, suffix: str) -> bytes | None:
    """The raw value: a DER INTEGER for levels (its last byte counts: they are below 256), bare or OCTETs for ids."""
    try:
        found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(f"{_OID}.{suffix}")).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return found.value or None if isinstance(found, x509.UnrecognizedExtension) else None


def _check_revocation(verified: Verified) -> tuple[Instant, str]:
    crl, chain = verified.endorsements.crl, verified.endorsements.chain
    if crl is None:
        return verified.until, "; not checked: no revocation list"
    moment = dt.datetime.fromtimestamp(verified.now.seconds, tz=dt.UTC)
    try:
        signed = crl.issuer == chain[-1].subject and crl.is_signature_valid(chain[-1].public_key())  # type: ignore[arg-type]
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        signed = False
    if not signed:
        raise Refused("the revocation list is not signed by the chain's root", peer=Peer.ENDORSER)
    ends = crl.next_update_utc
    if ends is None or not crl.last_update_utc <= moment <= ends:
        raise Refused("the revocation list is out of date", peer=Peer.ENDORSER)
    if any(crl.get_revoked_certificate_by_serial_number(one.serial_number) is not None for one in chain[:-1]):
        raise Refused("a certificate in the chain is revoked", peer=Peer.ENDORSER)
    return min(verified.until, Instant(int(ends.timestamp()) * 1000)), ""


def check_attributes(verified: Verified, claims: QuoteClaims) -> Found[QuoteClaims]:
    """Step 4: debug off, by the guest policy the chip enforces."""
    if verified.quote.debug:
        raise Refused("the guest policy allows debugging: the host reads this enclave's memory")
    return Found(claims, f"{claims.format}, debug off")


def _status(verified: Verified) -> str:
    if not verified.root.minimum_tcb:
        return "Unrated"
    levels = verified.quote.levels()
    enough = all(levels.get(name, -1) >= least for name, least in verified.root.minimum_tcb)
    return "UpToDate" if enough else "OutOfDate"


def _claims(verified: Verified, until: Instant) -> QuoteClaims:
    raw, given = verified.quote.raw, _class_of(verified.root)
    simulated = "simulated " if given is TrustClass.SIMULATED else ""
    return QuoteClaims(
        technology=TECHNOLOGY,
        format=f"{simulated}sev-snp report v{verified.quote.version}",
        root=verified.root.name,
        trust_class=given,
        tcb_status=_status(verified),
        advisories=(),
        platform=verified.quote.chip_id.hex()[:16],
        debug=verified.quote.debug,
        measurements=tuple((name, raw[at : at + size]) for name, at, size in _FIELDS),
        report_data=raw[0x50:0x90],
        endorsed_until=until,
    )
