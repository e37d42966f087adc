# SPDX-License-Identifier: Apache-2.0
"""The technologies known, and what differs between them in steps 5 and 6.

A new one is a file with `parse_quote`, `parse_collateral`, `check_chain`, `check_endorsements` and `check_attributes`,
and an entry here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from bombyx.protocol.attest import mr_config, sgx, snp, tdx
from bombyx.protocol.attest.claims import BootClaims, QuoteClaims
from bombyx.protocol.attest.events import Event, check_events
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.primitives import Digest

TECHNOLOGIES: Final[dict[str, Any]] = {one.TECHNOLOGY: one for one in (tdx, sgx, snp)}


def check_boot(quoted: QuoteClaims, events: tuple[Event, ...], document: bytes | None = None) -> Found[BootClaims]:
    """Step 5: TDX replays its event log; the others have no runtime registers, and a log beside them proves nothing."""
    if quoted.technology == tdx.TECHNOLOGY:
        return check_events(events, dict(quoted.measurements))
    boot, detail = _host_data(quoted, document), f"{quoted.technology} has no runtime registers"
    return Found(boot, detail, Status.NOT_APPLICABLE)


def _host_data(quoted: QuoteClaims, document: bytes | None) -> BootClaims:
    """SEV-SNP: the launch's host data is the hash of a configuration document, or of the compose file itself."""
    data = quoted.measurement("host_data")
    if document is not None and data:
        if mr_config.host_data(document) != data:
            raise Refused("the configuration document shown is not the one in the host data")
        return mr_config.parse_document(document).boot()
    return BootClaims(compose_hash=Digest(data) if any(data) else None)


def described(matched: Found[ReferenceValue], *findings: Finding | None) -> Found[ReferenceValue]:
    """Step 6's line: what matched, what else was found to hold, and what was not checked."""
    told = [one for one in findings if one is not None]
    gaps = [one.detail for one in told if not one.done]
    text = "; ".join((matched.detail, *(one.detail for one in told if one.done)))
    return replace(matched, detail=text + (f"; not checked: {', '.join(gaps)}" if gaps else ""))


def matching(quoted: QuoteClaims, boot: BootClaims, policy: AppraisalPolicy) -> Found[ReferenceValue]:
    """The first Reference Value that the evidence equals."""
    for reference in policy.reference_values:
        same_code = reference.compose_hash in (None, boot.compose_hash)
        same_image = all(quoted.measurement(name) == value for name, value in reference.measurements)
        if reference.trust_class is quoted.trust_class and same_code and same_image:
            return Found(reference, f"Reference Value {reference.name!r}")
    if not policy.reference_values:
        raise Refused("the policy names no Reference Value: nothing passes")
    found = (
        f"compose hash {boot.compose_hash}" if boot.compose_hash else f"measurement {quoted.measurements[0][1].hex()}"
    )
    raise Refused(f"{found} with these measurements is no Reference Value of the policy")
