# SPDX-License-Identifier: Apache-2.0
"""The receipt book: every receipt this client was given, kept with what it takes to check it again (spec CLI-8).

Not here: the checks of a running answer (`answer.py`) and of a kept one (`kept.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from bombyx.errors import BadRequest, LocalError
from bombyx.ports import Store, Write
from bombyx.protocol.attest import AppraisalPolicy
from bombyx.protocol.primitives import RequestId
from bombyx.protocol.wire.request import Meta
from bombyx.roles.client.blobs import Blobs
from bombyx.roles.client.kept import Check, KeptReceipt, Proof, verify

TABLE: Final = "client_receipt"
INDEX: Final = "client_receipt_time"  # time || request id, so that the newest can be found
LIST_LIMIT: Final = 100


class ReceiptBook:
    """Over a store; holds nothing itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._blobs = Blobs(store)

    @staticmethod
    def rows(request_id: RequestId, kept: KeptReceipt) -> tuple[Write, ...]:
        """The rows of one receipt, to be written in one batch with the charge they justify."""
        order = int(kept.at).to_bytes(8) + request_id
        return (
            Write(table=TABLE, key=request_id, value=kept.encode()),
            Write(table=INDEX, key=order, value=b""),
        )

    async def newest(self, limit: int = LIST_LIMIT) -> list[KeptReceipt]:
        """The newest first."""
        order = await self._store.scan(INDEX)
        found = [await self._store.read(TABLE, key[8:]) for key, _ in reversed(order[-limit:] if limit else order)]
        return [KeptReceipt.decode(data) for data in found if data is not None]

    async def get(self, name: str) -> tuple[RequestId, KeptReceipt]:
        """By request id, or the beginning of one; `last` is the newest."""
        request_id = await self._named(name)
        data = await self._store.read(TABLE, request_id)
        if data is None:
            raise BadRequest(f"no receipt of request {name[:64]!r}", status=404, code="not_found", rule="CLI-8")
        return request_id, KeptReceipt.decode(data)

    async def proof(self, name: str, *, with_usage: bool = True) -> Proof:
        """The receipt with its evidence, as one file."""
        _, kept = await self.get(name)
        if kept.last is None:
            raise BadRequest("this request got no receipt", status=404, code="not_found", rule="CLI-8")
        bundle = await self._blobs.kept(kept.bundle)
        sheet = await self._blobs.kept(kept.last.receipt.price_sheet)
        if bundle is None or sheet is None:
            raise LocalError("the store has lost what this receipt stands on", rule="CLI-8")
        return Proof(v=1, kept=kept if with_usage else _without_usage(kept), bundle=bundle, price_sheet=sheet)

    async def verify(self, name: str, *, policy: AppraisalPolicy | None) -> tuple[Check, ...]:
        """Check one again, from what is stored alone."""
        return verify(await self.proof(name), policy=policy)

    async def _named(self, name: str) -> RequestId:
        if name == "last":
            order = await self._store.scan(INDEX)
            if order:
                return RequestId(order[-1][0][8:])
        try:
            prefix = bytes.fromhex(name.removeprefix("0x"))
        except ValueError:
            prefix = b""
        found = await self._store.scan(TABLE, prefix=prefix, limit=2) if prefix else []
        if len(found) != 1:
            what = "more than one receipt begins with" if found else "no receipt of request"
            raise BadRequest(f"{what} {name[:64]!r}", status=404, code="not_found", rule="CLI-8")
        return RequestId(found[0][0])


def summary(kept: KeptReceipt) -> dict[str, Any]:
    """One receipt for people and programs; no content."""
    last = kept.last
    receipt = last.receipt if last else None
    asked = receipt or Meta.decode(kept.meta)  # an answer cut before its first receipt has its request all the same
    row: dict[str, Any] = {
        "request_id": asked.request_id.hex(),
        "model": asked.model.hex(),
        "at": int(kept.at),
        "path": kept.path,
        "outcome": kept.outcome,
        "fault": kept.fault or None,
        "trust_class": kept.trust_class,
        "paid": kept.paid,
        "proxy": str(kept.proxy),
        "text": kept.text,
        "audit": kept.audit,
        "receipts": len(kept.receipts),
    }
    if receipt is not None:
        row |= {
            "operator": str(receipt.operator),
            "frames": receipt.frames,
            "input_units": receipt.input_units,
            "cached_units": receipt.cached_units,
            "output_units": receipt.output_units,
            "charge": receipt.charge,
            "receipt_outcome": receipt.outcome.name.lower(),
            "request_hash": receipt.request_hash.hex(),
            "response_hash": receipt.response_hash.hex(),
            "seq": receipt.seq,
            "signature": last.signature.hex() if last else "",
        }
    row["usage"] = {
        "input": kept.input,
        "cached_input": kept.cached_input,
        "output": kept.output,
        "verified": kept.verified,
        "note": kept.note,
    }
    return row


def _without_usage(kept: KeptReceipt) -> KeptReceipt:
    """Output ids spell the answer: leave them out of what is shown to others."""
    return replace(kept, usage=b"", salt=b"")
