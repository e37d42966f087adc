# SPDX-License-Identifier: Apache-2.0
"""Hold a proxy's directory against the chain's registry: does it hide, invent or misname workers (spec MKT-9)?

Not here: evidence (`protocol/attest`). This only says which offers are worth fetching evidence for, and what is odd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bombyx.protocol.primitives import Address, Digest, Instant
from bombyx.protocol.wire.market import Directory, Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryReport:
    """`fit`: offers worth appraising. `invented`: not in the registry. `hidden`: registered for the model, not listed.

    A hidden worker may just be linked elsewhere; many hidden ones, or a change in who is hidden, is what alarms.
    """

    fit: tuple[Offer, ...]
    invented: tuple[Address, ...]
    hidden: tuple[Address, ...]
    expired: tuple[Address, ...]


def compare_directory(
    directory: Directory, registered: Mapping[Address, tuple[Digest, ...]], model: Digest | None, now: Instant
) -> DirectoryReport:
    """`registered` maps each worker operator on chain to the models it registered; `model` None means any."""
    fit: dict[Address, Offer] = {}
    invented: list[Address] = []
    expired: list[Address] = []
    for offer in directory.offers:
        serves = model is None or model in offer.models
        if offer.operator not in registered or not set(offer.models) <= set(registered[offer.operator]):
            invented.append(offer.operator)
        elif offer.not_after <= now:
            expired.append(offer.operator)
        elif serves and _newer(offer, fit.get(offer.operator)):
            fit[offer.operator] = offer
    listed = {offer.operator for offer in directory.offers}
    hidden = [who for who, models in registered.items() if who not in listed and (model is None or model in models)]
    return DirectoryReport(
        fit=tuple(fit.values()), invented=tuple(invented), hidden=tuple(hidden), expired=tuple(expired)
    )


def _newer(offer: Offer, known: Offer | None) -> bool:
    return known is None or offer.not_after > known.not_after
