# SPDX-License-Identifier: Apache-2.0
"""Signing receipts with the attested key, in one unbroken count (spec RCT-1 .. RCT-7).

Always: `seq` counts up by one per receipt key, over all links and requests; a receipt is written before it is sent;
each names its predecessor within its answer; nothing that derives from content leaves without the wrap's salt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bombyx.ports import Store, Write
from bombyx.protocol.audit.commitment import audit_commitment
from bombyx.protocol.pay.retention import Retention
from bombyx.protocol.pay.usage import usage_commitment
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId
from bombyx.protocol.seal.opening import OpenedRequest
from bombyx.protocol.wire.audit import AuditBlock
from bombyx.protocol.wire.receipt import Kind, Outcome, Receipt, SignedReceipt
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.worker.meter import Bill

RECEIPTS: Final = "worker_receipts"  # receipt address || seq -> SignedReceipt
RECEIPT_TIMES: Final = "worker_receipt_time"  # when it was signed || that key, so that the oldest can be forgotten
RUNNING: Final = "worker_running"  # request id -> its newest checkpoint, until its end
FINISHED: Final = "worker_finished"  # request id -> when it ended, ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What had been handed to the link when a receipt was made."""

    frames: int
    response_hash: Digest


class Notary:
    """The receipt key and its counter. One for the life of the process."""

    def __init__(self, key: SigningKey, domain: Digest, operator: Address, store: Store, retention: Retention) -> None:
        self.domain = domain
        self.operator = operator
        self._key = key
        self._store = store
        self._retention = retention
        self._seq = 0

    @property
    def address(self) -> Address:
        """Of the receipt key."""
        return self._key.address

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def sign(self, receipt: Receipt) -> SignedReceipt:
        return SignedReceipt.sign(receipt, self.domain, self._key)

    def rows(self, signed: SignedReceipt, now: Instant) -> list[Write]:
        key = bytes(self._key.address) + signed.receipt.seq.to_bytes(8)
        rows = [Write(table=RECEIPTS, key=key, value=signed.encode())]
        index = self._retention.note(key, now)
        return rows if index is None else [*rows, Write(table=RECEIPT_TIMES, key=index, value=b"")]

    async def load(self) -> None:
        """Know what earlier boots kept."""
        self._retention.load([key for key, _ in await self._store.scan(RECEIPT_TIMES)])

    async def forget(self, now: Instant) -> int:
        """Drop receipts nobody is owed any more (RCT-11); how many."""
        gone = self._retention.prune(now)
        rows = [Write(table=RECEIPT_TIMES, key=index, value=None) for index, _ in gone]
        if gone:
            await self._store.write([*rows, *(Write(table=RECEIPTS, key=key, value=None) for _, key in gone)])
        return len(gone)

    async def write(self, rows: Sequence[Write]) -> None:
        """Durable when it returns."""
        await self._store.write(rows)


class AnswerReceipts:
    """The receipts of one answer, in their order."""

    def __init__(self, notary: Notary, opened: OpenedRequest, price_sheet: Digest, started_at: Instant) -> None:
        self._notary = notary
        self._opened = opened
        self._price_sheet = price_sheet
        self._started_at = started_at
        self._newest = started_at
        self.last: SignedReceipt | None = None

    @property
    def request_id(self) -> RequestId:
        return self._opened.meta.request_id

    def checkpoint(self, bill: Bill, delivered: Delivered, now: Instant) -> tuple[SignedReceipt, list[Write]]:
        """The receipt and the rows to write before it is sent."""
        signed = self._make(Kind.CHECKPOINT, Outcome.RUNNING, bill, delivered, now, Digest.zero())
        running = Write(table=RUNNING, key=bytes(self.request_id), value=signed.encode())
        return signed, [*self._notary.rows(signed, now), running]

    def final(
        self, outcome: Outcome, bill: Bill, delivered: Delivered, now: Instant, block: AuditBlock
    ) -> tuple[SignedReceipt, list[Write]]:
        audit = audit_commitment(self._opened.salt, block, bill.opening)
        signed = self._make(Kind.FINAL, outcome, bill, delivered, now, audit)
        return signed, [*self._notary.rows(signed, now), *ended_rows(self.request_id, now)]

    def _make(
        self, kind: Kind, outcome: Outcome, bill: Bill, delivered: Delivered, now: Instant, audit: Digest
    ) -> SignedReceipt:
        self._newest = max(self._newest, now)  # the host's clock may be turned back; receipts of one answer may not
        meta, domain = self._opened.meta, self._notary.domain
        receipt = Receipt(
            kind=kind,
            request_id=meta.request_id,
            request_hash=self._opened.request_hash,
            response_hash=delivered.response_hash,
            model=meta.model,
            price_sheet=self._price_sheet,
            operator=self._notary.operator,
            frames=delivered.frames,
            input_units=bill.input_units,
            cached_units=bill.cached_units,
            output_units=bill.output_units,
            charge=bill.charge,
            usage_commitment=usage_commitment(self._opened.salt, bill.opening),
            audit_commitment=audit,
            outcome=outcome,
            seq=self._notary.next_seq(),
            started_at=self._started_at,
            finished_at=self._newest,
            previous=self.last.receipt.typed_digest(domain) if self.last is not None else Digest.zero(),
        )
        self.last = self._notary.sign(receipt)
        return self.last


def ended_rows(request_id: RequestId, now: Instant) -> list[Write]:
    """The request is over: its id is never served again, and no checkpoint needs to be kept apart."""
    return [
        Write(table=FINISHED, key=bytes(request_id), value=int(now).to_bytes(8)),
        Write(table=RUNNING, key=bytes(request_id), value=None),
    ]
