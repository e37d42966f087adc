# SPDX-License-Identifier: Apache-2.0
"""Gets money back from convicted workers: claims every receipt a sentence covers, by itself (spec CLI-11).

A receipt is claimed with the last part of what its `auditCommitment` binds and the signature of a key that this request
alone used; nothing of the prompt or answer is shown. Not here: cases, and what is paid out (the chain shares it).

Always: a claim is sent once; what is too late, or was refunded already, is refused by the chain and left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from bombyx.errors import BombyxError, PaymentError
from bombyx.ports import Clock, Store, Validation, Write
from bombyx.protocol.audit.case import Case, CaseState, Ending, RefundClaim, refund_digest
from bombyx.protocol.audit.commitment import audit_content
from bombyx.protocol.primitives import Address, Digest, RequestId
from bombyx.protocol.wire.audit import AuditPackage
from bombyx.protocol.wire.receipt import Kind, SignedReceipt, receipt_domain
from bombyx.protocol.wire.signing import SigningKey
from bombyx.roles.client.receipts import ReceiptBook

CONTENT: Final = "client_content"  # request id -> last part of its audit commitment
CLAIMED: Final = "client_refund"  # sentence || request id
AT_ONCE: Final = 8  # claims under way
LOOKS: Final = 8  # at the chain within the time to claim
log = logging.getLogger("bombyx.client")


def content_row(request_id: RequestId, package: AuditPackage) -> Write:
    """What a claim needs beside the receipt, to be written with it: a hash, and nothing that spells the answer."""
    return Write(table=CONTENT, key=request_id, value=audit_content(package.salt, package.block, package.usage))


class Restitution:
    """One client's claims. `payout`: where the money goes; `sender` pays the gas."""

    def __init__(
        self,
        store: Store,
        *,
        validation: Validation,
        key: Callable[[RequestId], SigningKey],
        payout: Address,
        sender: SigningKey,
        clock: Clock,
    ) -> None:
        self._store = store
        self._book = ReceiptBook(store)
        self._validation = validation
        self._key = key
        self._payout = payout
        self._sender = sender
        self._clock = clock
        self._first = 1  # every case before it is over, and claimed

    async def run(self) -> None:
        """For ever."""
        every = 60.0
        while True:
            try:
                every = max(2.0, (await self._validation.parameters()).claim_seconds / LOOKS)
                await self.look()
            except BombyxError as error:
                log.warning("convictions were not looked at: %s", error)
            await self._clock.sleep(min(every, 3_600.0))

    async def look(self) -> int:
        """Claim what new sentences owe us; how many claims were made."""
        now, _ = await self._validation.now()
        cases = await self._validation.cases(self._first)
        made, waiting = 0, []
        for case in cases:
            if case.state is not CaseState.CLOSED:
                waiting.append(case.id)
            elif case.ending is Ending.SLASHED:
                made += await self._claim(case, now)
        self._first = min(waiting, default=cases[-1].id + 1 if cases else self._first)
        return made

    async def _claim(self, case: Case, now: int) -> int:
        told = await self._validation.restitution(case.sentence)
        if told is None or now >= told.claim_until:
            return 0
        since = (await self._validation.parameters()).epoch_start(case.accusation.from_epoch) * 1_000
        held = [
            last
            for kept in await self._book.newest(limit=0)
            if (last := kept.last) is not None and _covered(last, case, since)
        ]
        gate = asyncio.Semaphore(AT_ONCE)
        done = await asyncio.gather(*(self._one(case, receipt, gate) for receipt in held))
        if any(done):
            log.info("worker %s was convicted: %d refunds claimed", case.accused, sum(done))
        return sum(done)

    async def _one(self, case: Case, held: SignedReceipt, gate: asyncio.Semaphore) -> bool:
        request_id = held.receipt.request_id
        mark = case.sentence.to_bytes(8) + request_id
        content = await self._store.read(CONTENT, request_id)
        if content is None or await self._store.read(CLAIMED, mark) is not None:
            return False
        async with gate:
            try:
                await self._validation.claim_refund(
                    case.sentence, held, await self._signed(case, held, Digest(content)), signer=self._sender
                )
            except PaymentError as error:
                log.info("a refund was refused: %s", error)
                return False
            await self._store.write([Write(table=CLAIMED, key=mark, value=b"")])
            return True

    async def _signed(self, case: Case, held: SignedReceipt, content: Digest) -> RefundClaim:
        parameters = await self._validation.parameters()
        key = self._key(held.receipt.request_id)
        named = held.receipt.typed_digest(receipt_domain(parameters.chain_id, parameters.registry))
        digest = refund_digest(parameters.chain_id, parameters.restitution, case.sentence, named, self._payout)
        return RefundClaim(claimant=key.address, content=content, payout=self._payout, signature=key.sign(digest))


def _covered(held: SignedReceipt, case: Case, since: int) -> bool:
    receipt = held.receipt
    told = (receipt.kind, receipt.operator, receipt.model)
    wanted = (Kind.FINAL, case.accused, case.accusation.model)
    return told == wanted and receipt.charge > 0 and receipt.finished_at >= since
