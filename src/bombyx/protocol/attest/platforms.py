# SPDX-License-Identifier: Apache-2.0
"""The technologies known, and what differs between them in steps 5 and 6.

A new one is a file with `parse_quote`, `parse_collateral`, `check_chain`, `check_endorsements` and `check_attributes`,
and an entry here.
"""

from __future__ import annotations

from typing import Any, Final

from bombyx.protocol.attest import sgx, snp, tdx
from bombyx.protocol.attest.claims import BootClaims, QuoteClaims
from bombyx.protocol.attest.events import Event, check_events
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue
from bombyx.protocol.attest.steps import Found, Refused, Status
from bombyx.protocol.primitives import Digest

TECHNOLOGIES: Final[dict[str, Any]] = {one.TECHNOLOGY: one for one in (tdx, sgx, snp)}


def check_boot(quoted: QuoteClaims, events: tuple[Event, ...]) -> Found[BootClaims]:
    """Step 5: TDX replays its event log; the others have no runtime registers, and a log beside them proves nothing."""
    if quoted.technology == tdx.TECHNOLOGY:
        return check_events(events, dict(quoted.measurements))
    return Found(_host_data(quoted), f"{quoted.technology} has no runtime registers", Status.NOT_APPLICABLE)


def _host_data(quoted: QuoteClaims) -> BootClaims:
    """SEV-SNP: the hash of what the guest was configured with stands in the launch's host data."""
    host_data = quoted.measurement("host_data")
    return BootClaims(compose_hash=Digest(host_data) if any(host_data) else None)


def check_config_id(quoted: QuoteClaims, boot: BootClaims) -> None:
    """Step 6, TDX: dstack's first form of mr_config_id is the compose file's hash; later forms are not read.

    Without an event log there is nothing to compare, and step 5 has said so.
    """
    config = quoted.measurement("mr_config_id")
    if config[:1] == b"\x01" and boot.compose_hash is not None and config[1:33] != boot.compose_hash:
        raise Refused("mr_config_id is not the compose file's hash")


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
