# SPDX-License-Identifier: Apache-2.0
"""What one receipt must say before anybody pays for it, and what two may not say at once (spec RCT-1 .. RCT-10).

Proxy and client run the same checks on the same bytes; `trail.py` adds the order of an answer's receipts, `usage.py`
what only the client can see. Not here: whether an answer is good (the validators' part).

Always: a receipt that passes costs exactly price x units, at most the cap, for exactly the frames at hand; whatever
does not pass is the worker's fault, and its error carries the signed receipt as proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from bombyx.errors import Equivocation, MalformedMessage, PaymentError, Peer, ReceiptError
from bombyx.protocol.pay.price import charge, price_of
from bombyx.protocol.primitives import Address, Digest, RequestId
from bombyx.protocol.quick import quick
from bombyx.protocol.wire.market import ModelPrice, PriceSheet
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt

ZERO: Final = Digest.zero()
_BOUND: Final = ("request_id", "request_hash", "model", "price_sheet", "operator")


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the receipts of one answer must agree with: the request, the worker appraised for it, the price agreed."""

    domain: Digest  # receipt_domain(chain id, registry)
    receipt_address: Address  # of the attested keyset
    operator: Address
    request_id: RequestId
    request_hash: Digest
    model: Digest
    price_sheet: Digest
    price: ModelPrice
    grain: int
    max_input: int  # units
    max_output: int  # units
    cap: int  # most the worker may charge, before commission

    @classmethod
    def of(
        cls,
        sheet: PriceSheet,
        *,
        domain: Digest,
        receipt_address: Address,
        request_id: RequestId,
        request_hash: Digest,
        model: Digest,
        max_input: int,
        max_output: int,
        cap: int,
    ) -> Self:
        """From the worker's price sheet, as Meta named it by digest."""
        return cls(
            domain=domain,
            receipt_address=receipt_address,
            operator=sheet.operator,
            request_id=request_id,
            request_hash=request_hash,
            model=model,
            price_sheet=sheet.digest(),
            price=price_of(sheet, model),
            grain=sheet.grain,
            max_input=max_input,
            max_output=max_output,
            cap=cap,
        )


def check_receipt(
    signed: SignedReceipt, expected: Expectation, *, frames: int, response_hash: Digest, size: int
) -> Receipt:
    """The receipt, if it is true of `frames` DATA payloads of `size` bytes together that hash to `response_hash`."""
    receipt = signed.receipt
    _check_binding(signed, expected)
    if receipt.frames != frames or receipt.response_hash != (response_hash if frames else ZERO):
        raise _blame(signed, "RCT-3", f"the receipt is for {receipt.frames} other frames than the {frames} delivered")
    _check_units(signed, expected, size)
    _check_charge(signed, expected)
    _check_signer(signed, expected)  # last, as it is the dearest
    return receipt


def _check_signer(signed: SignedReceipt, expected: Expectation) -> None:
    try:
        signer = signed.signer(expected.domain)
    except (MalformedMessage, OverflowError):
        raise _blame(signed, "RCT-1", "nobody can have signed this receipt") from None
    if signer != expected.receipt_address:
        raise _blame(signed, "RCT-1", f"signed by {signer}, the attested key is {expected.receipt_address}")


def _check_binding(signed: SignedReceipt, expected: Expectation) -> None:
    found = signed.receipt
    if (
        found.request_id == expected.request_id
        and found.request_hash == expected.request_hash
        and found.model == expected.model
        and found.price_sheet == expected.price_sheet
        and found.operator == expected.operator
    ):
        return
    name = next(name for name in _BOUND if getattr(found, name) != getattr(expected, name))
    raise _blame(
        signed, "RCT-2", f"the receipt's {name} is {getattr(found, name)!r}, expected {getattr(expected, name)!r}"
    )


def _check_units(signed: SignedReceipt, expected: Expectation, size: int) -> None:
    receipt, grain = signed.receipt, expected.grain
    counts = read, cached, written = (receipt.input_units, receipt.cached_units, receipt.output_units)
    if read % grain or cached % grain or written % grain or cached > read:
        raise _blame(signed, "RCT-4", f"units {counts} are not cached <= input in multiples of {grain}")
    if read > expected.max_input or written > expected.max_output:
        raise _blame(
            signed, "RCT-4", f"units {counts} are above the caps {expected.max_input} and {expected.max_output}"
        )
    # A token shows in the stream as at least one byte; one grain of slack for ids that stand for none.
    if written > size + grain:
        raise _blame(signed, "RCT-4", f"{written} output units in {size} bytes")


def _check_charge(signed: SignedReceipt, expected: Expectation) -> None:
    receipt = signed.receipt
    try:
        due = charge(expected.price, receipt.input_units, receipt.cached_units, receipt.output_units)
    except (PaymentError, ValueError):
        raise _blame(signed, "RCT-5", "the receipt's units have no price") from None
    if receipt.charge != due or receipt.charge > expected.cap:
        raise _blame(signed, "RCT-5", f"charge {receipt.charge}, units cost {due}, the cap is {expected.cap}")
    if receipt.charge and (not receipt.frames or receipt.outcome is Outcome.REFUSED):
        raise _blame(signed, "RCT-9", f"charge {receipt.charge} for nothing delivered")
    if (receipt.kind is Kind.FINAL) is (receipt.outcome is Outcome.RUNNING):
        raise _blame(signed, "RCT-8", f"a {receipt.kind.name} receipt with outcome {receipt.outcome.name}")


def _blame(signed: SignedReceipt, rule: str, message: str) -> ReceiptError:
    return ReceiptError(message, peer=Peer.WORKER, rule=rule, proof=signed)


def find_equivocation(a: SignedReceipt, b: SignedReceipt, domain: Digest) -> Equivocation | None:
    """The proof that one key said two things of one answer, if these two receipts are one (RCT-10).

    Only this is: same key and request hash, and two differing finals, or two differing checkpoints of equal `frames`.
    """
    x, y = a.receipt, b.receipt
    if x == y or x.request_hash != y.request_hash or x.kind is not y.kind:
        return None
    if x.kind is Kind.CHECKPOINT and x.frames != y.frames:
        return None
    try:
        if a.signer(domain) != b.signer(domain):
            return None
    except (MalformedMessage, OverflowError):
        return None
    what = "two finals" if x.kind is Kind.FINAL else f"two checkpoints of {x.frames} frames"
    return Equivocation(f"{what} of one answer differ", peer=Peer.WORKER, rule="RCT-10", proof=(a, b))
