# SPDX-License-Identifier: Apache-2.0
"""One answer's receipt as this client keeps it, with all that is needed to check it again, offline, by anyone.

`Proof` is that as one file: the kept receipt, the Evidence bundle of the worker that signed, its price sheet and
its model's manifest. It holds no prompt and no answer; the opened usage (exact counts, output ids) stays out of it
unless asked for.

Always: `verify` recomputes everything it says; what it cannot check it names (spec CLI-8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from bombyx.errors import AttestationError, BombyxError, MalformedMessage, ReceiptError
from bombyx.protocol.attest import AppraisalPolicy, appraise
from bombyx.protocol.pay.price import charge, price_of, with_commission
from bombyx.protocol.pay.usage import open_usage
from bombyx.protocol.primitives import Address, Digest, Instant, sha256, tagged_hash
from bombyx.protocol.wire.codec import Message
from bombyx.protocol.wire.evidence import EvidenceBundle, Keyset, ModelManifest
from bombyx.protocol.wire.market import PriceSheet
from bombyx.protocol.wire.receipt import Kind, SignedReceipt, receipt_domain
from bombyx.protocol.wire.request import Meta

ZERO: Final = Digest.zero()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReceipt(Message):
    """What is stored of one answered request. `receipts`: its checkpoints in order, the final one last."""

    TAG: ClassVar[int] = 27040
    MAX_SIZE: ClassVar[int] = 4 << 20

    v: int
    at: Instant
    path: str
    receipts: tuple[SignedReceipt, ...]
    meta: bytes  # canonical Meta
    wrap: Digest  # SHA-256 of the chosen wrap
    body: Digest  # SHA-256 of the sealed body
    input: int  # exact counts, as the final frame opened them
    cached_input: int
    output: int
    verified: bool  # the enclave checked the engine's counts against the output ids
    note: str
    salt: bytes  # opens usageCommitment; empty unless openings are kept
    usage: bytes  # canonical UsageOpening; empty unless openings are kept: its output ids spell the answer
    bundle: Digest
    chain_id: int
    registry: Address
    trust_class: str
    paid: int  # with commission
    proxy: Address
    text: str  # how the text was held against the billed ids
    audit: str  # whether it can be re-run: "seeded", or "none" and why
    outcome: str  # "complete", "refused", "cut", "cheated"
    fault: str  # what went wrong, if anything

    @property
    def last(self) -> SignedReceipt | None:
        return self.receipts[-1] if self.receipts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof(Message):
    """A kept receipt and what it stands on, in one file."""

    TAG: ClassVar[int] = 27041
    MAX_SIZE: ClassVar[int] = 8 << 20

    v: int
    kept: KeptReceipt
    bundle: bytes
    price_sheet: bytes


NO_CHAIN: Final = "not checked: the policy requires a chain to confirm registry and beacon, and none is asked offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of a verification: `ok` True, False, or None for "not checked"."""

    name: str
    ok: bool | None
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def verify(proof: Proof, *, policy: AppraisalPolicy | None) -> tuple[Check, ...]:
    """Check a proof offline. With `policy`, its evidence is appraised as of the receipt's time."""
    checks: list[Check] = []

    def run(name: str, check: Callable[[], str | None]) -> None:
        try:
            detail = check()
        except BombyxError as error:
            checks.append(Check(name=name, ok=False, detail=str(error)))
        else:
            checks.append(Check(name=name, ok=None if detail is None else True, detail=detail or "not checked"))

    kept = proof.kept
    run("evidence bundle is the one named", lambda: _same(sha256(proof.bundle), kept.bundle, "bundle"))
    run("evidence appraised", lambda: _appraised(proof, policy))
    if policy is not None and policy.require_chain:
        checks.append(Check(name="registry and beacon", ok=None, detail=NO_CHAIN))
    run("signed by the attested receipt key", lambda: _signed(proof))
    run("receipts follow one another", lambda: _linked(kept))
    run("receipt names the request", lambda: _request(kept))
    run("price sheet and charge", lambda: _charge(proof))
    run("model manifest", lambda: _model(proof))
    run("usage opening", lambda: _usage(proof))
    return tuple(checks)


def passed(checks: tuple[Check, ...]) -> bool:
    """No check failed, and there was at least one that passed."""
    return all(check.ok is not False for check in checks) and any(check.ok for check in checks)


def _final(kept: KeptReceipt) -> SignedReceipt:
    if kept.last is None:
        raise ReceiptError("this request got no receipt", rule="CLI-8")
    return kept.last


def _same(found: Digest, wanted: Digest, what: str) -> str:
    if found != wanted:
        raise ReceiptError(f"the {what} is {found!r}, the receipt names {wanted!r}", rule="CLI-8")
    return str(found)


def _keyset(proof: Proof) -> Keyset:
    return Keyset.decode(EvidenceBundle.decode(proof.bundle).keyset)


def _appraised(proof: Proof, policy: AppraisalPolicy | None) -> str | None:
    if policy is None:
        return None
    at = _final(proof.kept).receipt.started_at
    result = appraise(proof.bundle, policy.offline(), now=at)
    if str(result.trust_class) != proof.kept.trust_class:
        raise AttestationError(
            f"trust class {result.trust_class}, kept as {proof.kept.trust_class}", steps=result.steps, rule="CLI-8"
        )
    return f"trust class {result.trust_class}, as of {at}"


def _signed(proof: Proof) -> str:
    kept, keyset = proof.kept, _keyset(proof)
    _final(kept)
    if kept.chain_id != keyset.chain_id:
        raise ReceiptError("the keyset is for another chain", rule="CLI-8")
    domain = receipt_domain(kept.chain_id, kept.registry)
    for signed in kept.receipts:
        if signed.signer(domain) != keyset.receipt_address or signed.receipt.operator != keyset.operator:
            raise ReceiptError("a receipt is not signed by the attested key", rule="RCT-1", proof=signed)
    return f"{len(kept.receipts)} receipts by {keyset.receipt_address}"


def _linked(kept: KeptReceipt) -> str:
    domain = receipt_domain(kept.chain_id, kept.registry)
    previous, frames = ZERO, 0
    for place, signed in enumerate(kept.receipts):
        receipt = signed.receipt
        final = receipt.kind is Kind.FINAL
        if receipt.previous != previous or receipt.frames < frames or (final and place + 1 != len(kept.receipts)):
            raise ReceiptError("the receipts do not follow one another", rule="RCT-7", proof=signed)
        previous, frames = receipt.typed_digest(domain), receipt.frames
    return f"{frames} frames"


def _request(kept: KeptReceipt) -> str:
    meta = Meta.decode(kept.meta)
    digest = tagged_hash("bombyx request v1", sha256(kept.meta), kept.wrap, kept.body)
    receipt = _final(kept).receipt
    if receipt.request_hash != digest or receipt.request_id != meta.request_id or receipt.model != meta.model:
        raise ReceiptError("the receipt is of another request", rule="RCT-2")
    return str(digest)


def _charge(proof: Proof) -> str:
    sheet, kept = PriceSheet.decode(proof.price_sheet), proof.kept
    receipt = _final(kept).receipt
    _same(sheet.digest(), receipt.price_sheet, "price sheet")
    due = charge(price_of(sheet, receipt.model), receipt.input_units, receipt.cached_units, receipt.output_units)
    paid = with_commission(receipt.charge, Meta.decode(kept.meta).commission_bps)
    if due != receipt.charge or kept.paid > paid:
        raise ReceiptError(f"charge {receipt.charge}, units cost {int(due)}; {kept.paid} was paid", rule="RCT-5")
    return f"worker {receipt.charge}, paid {kept.paid}"


def _model(proof: Proof) -> str:
    model = _final(proof.kept).receipt.model
    for data in EvidenceBundle.decode(proof.bundle).manifests:
        if sha256(data) == model:
            return ModelManifest.decode(data).name
    raise ReceiptError("the attested enclave does not serve the model of the receipt", rule="RCT-2")


def _usage(proof: Proof) -> str | None:
    kept = proof.kept
    if not kept.usage:
        return None
    grain = PriceSheet.decode(proof.price_sheet).grain
    usage = open_usage(_final(kept).receipt, salt=kept.salt, opening=kept.usage, grain=grain)
    return f"input {usage.input}, cached {usage.cached_input}, output {usage.output}; text {kept.text}"


def decode_proof(data: bytes) -> Proof:
    """Raises `MalformedMessage` for a file that is not one."""
    if len(data) > Proof.MAX_SIZE:
        raise MalformedMessage(f"a proof of {len(data)} bytes, at most {Proof.MAX_SIZE}", rule="CLI-8")
    return Proof.decode(data)
