# SPDX-License-Identifier: Apache-2.0
"""One answer's receipts in their order (spec RCT-3, RCT-7, RCT-8). Proxy and client keep one for each open request.

Cheap per frame: the caller's hash chain is one SHA-256, this file only remembers it. A receipt may trail its frame by
up to 256 frames (signing happens beside the stream), never precede it.

Always: frames, units, charge and seq never fall from one receipt to the next; each names its predecessor; one final,
nothing after it. `charge` is what may be agreed to: that of the last receipt whose frames are at hand.
"""

from __future__ import annotations

from array import array
from typing import Final

from bombyx.errors import Peer, ReceiptError
from bombyx.protocol.pay.receipts import ZERO, Expectation, check_receipt, find_equivocation
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.wire.receipt import Kind, Receipt, SignedReceipt

LAG: Final = 256  # frames a receipt may come late
_GROWING: Final = ("frames", "input_units", "cached_units", "output_units", "charge", "finished_at")


class ReceiptTrail:
    """Feed frames by `delivered` and receipts by `receive`, in the order they came."""

    __slots__ = ("_hashes", "_sizes", "expected", "final", "frames", "last", "size")

    def __init__(self, expected: Expectation) -> None:
        self.expected = expected
        self.frames = 0
        self.size = 0
        self.last: SignedReceipt | None = None
        self.final: SignedReceipt | None = None
        # Of the last frames, packed: 40 bytes each, as a proxy holds thousands of streams. Frame 0 is "nothing yet".
        self._hashes = bytearray(ZERO)
        self._sizes = array("Q", (0,))

    @property
    def charge(self) -> Amount:
        """The worker's charge that may be agreed to so far; nothing without a receipt."""
        return Amount(self.last.receipt.charge if self.last else 0)

    def delivered(self, response_hash: Digest, size: int) -> None:
        """One more DATA payload of `size` bytes; `response_hash` is the chain after it."""
        if self.final is not None:
            raise ReceiptError("a frame after the final receipt", peer=Peer.WORKER, rule="RCT-8", proof=self.final)
        self.frames += 1
        self.size += size
        self._hashes += response_hash
        self._sizes.append(self.size)
        if len(self._sizes) == 2 * LAG:
            del self._hashes[: LAG * Digest.SIZE], self._sizes[:LAG]

    def receive(self, signed: SignedReceipt) -> Receipt:
        """Check one receipt against what was delivered and what came before. Raises `ReceiptError`, `Equivocation`."""
        if self.final is not None:
            clash = find_equivocation(self.final, signed, self.expected.domain)
            raise clash or _blame(signed, "RCT-8", "a receipt after the final one")
        mark = self._mark(signed.receipt.frames)
        if mark is None:
            raise _blame(
                signed, "RCT-3", f"the receipt is for {signed.receipt.frames} frames, {self.frames} were delivered"
            )
        if signed.receipt.kind is Kind.FINAL and signed.receipt.frames != self.frames:
            raise _blame(signed, "RCT-3", f"the final is for {signed.receipt.frames} of {self.frames} frames")
        receipt = check_receipt(
            signed, self.expected, frames=signed.receipt.frames, response_hash=mark[0], size=mark[1]
        )
        self._check_order(signed)
        self.last = signed
        if receipt.kind is Kind.FINAL:
            self.final = signed
        return receipt

    def _mark(self, frames: int) -> tuple[Digest, int] | None:
        """(response hash, size) after so many frames; None where they are not there yet, or no longer."""
        back = self.frames - frames
        if not 0 <= back < LAG:
            return None
        place = len(self._sizes) - 1 - back
        at = place * Digest.SIZE
        return Digest(self._hashes[at : at + Digest.SIZE]), self._sizes[place]

    def _check_order(self, signed: SignedReceipt) -> None:
        new = signed.receipt
        if self.last is None:
            if new.previous != ZERO:
                raise _blame(signed, "RCT-7", "the first receipt names a predecessor")
            return
        clash = find_equivocation(self.last, signed, self.expected.domain)
        if clash is not None:
            raise clash
        old = self.last.receipt
        if new.previous != old.typed_digest(self.expected.domain):
            raise _blame(signed, "RCT-7", "the receipt does not name its predecessor")
        fallen = [name for name in _GROWING if getattr(new, name) < getattr(old, name)]
        if fallen or new.seq <= old.seq or new.started_at != old.started_at:
            raise _blame(signed, "RCT-7", f"{', '.join(fallen) or 'seq or start'} went backwards")


def _blame(signed: SignedReceipt, rule: str, message: str) -> ReceiptError:
    return ReceiptError(message, peer=Peer.WORKER, rule=rule, proof=signed)
