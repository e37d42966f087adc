# SPDX-License-Identifier: Apache-2.0
"""The steps of another provider's report that differ from a bundle's: what is read, at hand, bound and fresh (ATT-13).

Not here: the order of the steps and the verdict (`examine.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest import dcap, snp
from bombyx.protocol.attest.claims import BootClaims, QuoteClaims
from bombyx.protocol.attest.events import Event, parse_event_log
from bombyx.protocol.attest.gpu import GpuClaims
from bombyx.protocol.attest.guest import check_guest
from bombyx.protocol.attest.mr_config import check_config_id
from bombyx.protocol.attest.platforms import check_boot, described, matching
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue
from bombyx.protocol.attest.report import AtHand, Part
from bombyx.protocol.attest.roots import TrustClass
from bombyx.protocol.attest.steps import Found, NotEnough, Refused, Status
from bombyx.protocol.primitives import Digest, Instant, sha256

_EMPTY: Final = ReferenceValue(name="none", trust_class=TrustClass.SIMULATED, compose_hash=Digest.zero())


def read_part(part: Part, technology: Any) -> Found[tuple[Any, tuple[Event, ...] | None]]:
    """Step 1."""
    if technology is None:
        raise MalformedMessage("evidence of a technology this version does not know", rule="ATT-6.1")
    events = None if part.event_log is None else parse_event_log(part.event_log)
    detail = f"{part.technology} quote of {len(part.quote)} bytes"
    return Found((technology.parse_quote(part.quote), events), detail)


@dataclass(frozen=True, slots=True)
class Collateral:
    """The Endorsements for one platform, out of those at hand."""

    technology: Any
    name: str
    at_hand: tuple[bytes, ...]

    def check_chain(self, quote: Any, policy: AppraisalPolicy, now: Instant) -> Found[Any]:
        """Step 2."""
        if not policy.roots:
            raise Refused("the policy names no root: nothing passes")
        platform = "" if self.name == snp.TECHNOLOGY else dcap.platform_of(quote)
        fitting = [raw for raw in self.at_hand if _fits(raw, platform, self.name)]
        if not fitting and platform:
            dcap.check_without_endorsements(quote, now)
        if not fitting:
            raise NotEnough(f"not checked: no Endorsements for this {self.name} platform {platform}".rstrip())
        found: Found[Any] = self.technology.check_chain(
            quote, self.technology.parse_collateral(fitting[0]), policy, now
        )
        return found


def _fits(raw: bytes, platform: str, technology: str) -> bool:
    """By what the Endorsements say of themselves, which only picks them: the signatures decide."""
    try:
        fields = orjson.loads(raw)
        if technology == "snp":
            return "certificates" in fields
        info = orjson.loads(fields["tcb_info"])
        return bool(info["fmspc"].lower() == platform and info["id"].lower() == technology)
    except (ValueError, KeyError, TypeError, AttributeError):
        return technology == "snp" and raw.lstrip().startswith(b"-----BEGIN")


def check_events_of(part: Part, quoted: QuoteClaims, events: tuple[Event, ...] | None) -> Found[BootClaims]:
    """Step 5."""
    if events is None and part.technology == "tdx":
        return Found(BootClaims(), "not checked: no event log", Status.NOT_CHECKED)
    return check_boot(quoted, events or (), part.config)


def check_reference(
    part: Part,
    quote: Any,
    quoted: QuoteClaims,
    boot: BootClaims,
    policy: AppraisalPolicy,
    now: Instant,
    compose: bytes | None,
) -> Found[ReferenceValue]:
    """Step 6: nothing said contradicts what was measured; and it is an image the policy names."""
    compose = compose if compose is not None else part.compose
    if compose is not None and boot.compose_hash is not None and sha256(compose) != boot.compose_hash:
        raise Refused("the compose file shown is not the one that was measured")
    findings = (check_config_id(quoted, boot, part.config), *check_guest(part.guest, quote, quoted, boot, now))
    for name, value in part.said:
        measured = _measured(name, quoted, boot)
        if measured and value != measured:
            raise Refused(f"the report says another {name} than was measured")
    if not policy.reference_values:
        found = boot.compose_hash or quoted.measurements[0][1][:16].hex()
        matched = f"not checked: the policy names no Reference Value; found {found}"
        return described(Found(_EMPTY, matched, Status.NOT_CHECKED), *findings)
    return described(matching(quoted, boot, policy), *findings)


def _measured(name: str, quoted: QuoteClaims, boot: BootClaims) -> bytes:
    boots: dict[str, bytes | None] = {
        "compose_hash": boot.compose_hash,
        "app_id": boot.app_id,
        "instance_id": boot.instance_id,
    }
    boots |= {"os_image_hash": boot.os_image_hash, "key_provider": boot.key_provider}
    return (boots.get(name) or b"") if name in boots else quoted.measurement(name)


def check_binding(part: Part, quoted: QuoteClaims, at_hand: AtHand) -> Found[None]:
    """Step 7."""
    binding, data = part.binding, quoted.report_data
    if at_hand.report_data is not None and data != at_hand.report_data.ljust(64, b"\0"):
        raise Refused("the quote's report data is not the one expected")
    if binding is None:
        if at_hand.report_data is None:
            detail = f"not checked: a bare quote binds what its report data says, {data.hex()[:32]}..."
            return Found(None, detail, Status.NOT_CHECKED)
        return Found(None, "report data is the one expected")
    if binding.expected != data:
        raise Refused(f"the quote's report data is not {binding.scheme} of what the report shows")
    if binding.faults:
        raise Refused(binding.faults[0])
    return Found(
        None, "; ".join((f"{binding.scheme}: {', '.join(what for what, _ in binding.keys)}", *binding.checked))
    )


def check_nonce(part: Part, at_hand: AtHand) -> Found[None]:
    """Step 8: report_data, verified in step 7, holds the nonce we asked with."""
    nonce = part.binding.nonce if part.binding else None
    if nonce is None:
        if at_hand.report_data is not None:
            return Found(None, "the report data expected was ours to choose")
        return Found(None, "not checked: nothing in it answers a nonce", Status.NOT_CHECKED)
    if at_hand.nonce is None:
        return Found(None, "not checked: nobody said which nonce was asked; it may be old", Status.NOT_CHECKED)
    if nonce != at_hand.nonce:
        raise Refused("made for another nonce than the one asked: a replay, or an answer to somebody else")
    return Found(None, "answers the nonce asked")


def class_of(quoted: QuoteClaims, gpus: GpuClaims) -> TrustClass:
    if not gpus.genuine:
        return TrustClass.SIMULATED
    return TrustClass.TDX_GPU if gpus.lines and quoted.trust_class is TrustClass.TDX else quoted.trust_class


def check_window(quoted: QuoteClaims, gpus: GpuClaims, now: Instant) -> Found[Instant]:
    """Step 10: until when what vouches for it vouches."""
    until = min(one for one in (quoted.endorsed_until, gpus.until) if one is not None)
    if until <= now:
        raise Refused("what vouches for it has run out")
    return Found(until, f"vouched for until {until.seconds} (Unix seconds)")
