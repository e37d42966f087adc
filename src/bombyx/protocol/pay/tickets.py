# SPDX-License-Identifier: Apache-2.0
"""A claim that anybody may present: a voucher, and the receiver authorizer's signature on claiming it (spec PAY-26).

With it a watchtower needs no key of the payee's: it can pay the payee, and nobody else, what the payee signed for.
Tickets travel as JSON; every parser here is bounded and raises `MalformedMessage`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bombyx.errors import MalformedMessage
from bombyx.protocol.pay.grant import signed_by
from bombyx.protocol.pay.view import Claim
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.wire.channel import ChannelConfig, claim_batch_digest, voucher_digest
from bombyx.protocol.wire.signing import SigningKey

MAX_TICKETS: Final = 100_000
MAX_TEXT: Final = 128 << 20  # characters; a ticket has about 900
MAX_SIGNATURE: Final = 1_024  # bytes, as the contract takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One channel's claim and the authorization to present it. Made by `sign_ticket`; checked by `check_ticket`."""

    claim: Claim
    authorization: bytes


def sign_ticket(claim: Claim, domain: Digest, authorizer: SigningKey) -> Ticket:
    return Ticket(claim=claim, authorization=authorizer.sign(_digest(claim, domain)))


def check_ticket(ticket: Ticket, domain: Digest) -> Digest:
    """The channel it claims from. Raises `MalformedMessage` for one the chain would refuse whatever its state."""
    claim = ticket.claim
    channel = claim.config.channel_id(domain)
    if claim.total_claimed > claim.ceiling:
        raise MalformedMessage("a ticket claims more than its voucher gives", rule="PAY-26")
    if not signed_by(claim.config.payer_authorizer, voucher_digest(domain, channel, claim.ceiling), claim.signature):
        raise MalformedMessage("a ticket's voucher is not its payer's", rule="PAY-26")
    if not signed_by(claim.config.receiver_authorizer, _digest(claim, domain), ticket.authorization):
        raise MalformedMessage("a ticket is not signed by its receiver authorizer", rule="PAY-26")
    return channel


def _digest(claim: Claim, domain: Digest) -> Digest:
    return claim_batch_digest(domain, [(claim.config.channel_id(domain), claim.ceiling, claim.total_claimed)])


def tickets_to_json(tickets: Iterable[Ticket]) -> str:
    return json.dumps({"version": 1, "tickets": [_row(ticket) for ticket in tickets]}, indent=1)


def tickets_from_json(text: str) -> tuple[Ticket, ...]:
    """Read, not yet checked. Raises `MalformedMessage`."""
    if len(text) > MAX_TEXT:
        raise MalformedMessage("a file of tickets above the limit", rule="PAY-26")
    try:
        raw = json.loads(text)
        rows = raw["tickets"]
        if raw["version"] != 1 or not isinstance(rows, list) or len(rows) > MAX_TICKETS:
            raise ValueError
        return tuple(_ticket(row) for row in rows)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise MalformedMessage("not a file of tickets", rule="PAY-26") from None


def _row(ticket: Ticket) -> dict[str, str]:
    claim = ticket.claim
    return {
        "config": claim.config.encode().hex(),
        "ceiling": str(int(claim.ceiling)),
        "total_claimed": str(int(claim.total_claimed)),
        "voucher": claim.signature.hex(),
        "authorization": ticket.authorization.hex(),
    }


def _ticket(row: dict[str, Any]) -> Ticket:
    voucher, authorization = bytes.fromhex(row["voucher"]), bytes.fromhex(row["authorization"])
    if max(len(voucher), len(authorization)) > MAX_SIGNATURE:
        raise ValueError
    claim = Claim(
        config=ChannelConfig.decode(bytes.fromhex(row["config"])),
        ceiling=Amount(int(row["ceiling"])),
        signature=voucher,
        total_claimed=Amount(int(row["total_claimed"])),
    )
    return Ticket(claim=claim, authorization=authorization)
