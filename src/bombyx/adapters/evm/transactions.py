# SPDX-License-Identifier: Apache-2.0
"""Transactions: signed here, sent with the next nonce, waited for, and bumped in fee when they get stuck.

Always: one nonce is signed for one call only; a replacement has the same nonce, the same call and a higher fee, so at
most one of the family is mined; the fee stays below a cap. A revert raises `PaymentError` (LEDGER-1); a chain that does
not answer, or a transaction that is not mined in time, raises `Unavailable`: then the outcome is unknown, and the
caller looks at the chain before it tries again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Final

from bombyx.adapters.evm.refusals import refusal
from bombyx.adapters.evm.rlp import encode
from bombyx.adapters.evm.rpc import Rpc, RpcError, as_bytes, as_int
from bombyx.errors import Unavailable
from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.signing import SigningKey

GWEI: Final = 10**9
LATER_NONCE: Final = ("nonce too low", "nonce is too low", "replacement transaction underpriced")
KNOWN: Final = ("already known", "already imported", "known transaction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Times in seconds, fees in wei a gas."""

    poll: float = 0.25
    bump_after: float = 20.0  # unmined for so long: send again with a higher fee
    give_up_after: float = 120.0
    confirmations: int = 0  # blocks on top of the one with the transaction
    bump_percent: int = 25  # nodes take a replacement from 10 % up
    max_fee: int = 500 * GWEI
    min_tip: int = GWEI // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    tip: int
    limit: int

    def bumped(self, patience: Patience) -> Fees:
        """A replacement's fees, or the same where the cap is reached."""
        factor = 100 + patience.bump_percent
        limit = min(patience.max_fee, self.limit * factor // 100 + 1)
        return Fees(tip=min(limit, self.tip * factor // 100 + 1), limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    hash: Digest
    block: int
    gas_used: int
    logs: list[Any]
    contract: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    raw: bytes
    hash: Digest
    fees: Fees


class Transactions:
    """Everything this process sends to one chain. Senders may share it; each address has its own line of nonces."""

    def __init__(self, rpc: Rpc, *, patience: Patience | None = None) -> None:
        self._rpc = rpc
        self._patience = patience or Patience()
        self._locks: defaultdict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next: dict[Address, int] = {}
        self._waiting: Counter[Address] = Counter()  # transactions sent and not yet mined

    async def send(self, to: Address | None, data: bytes, *, signer: SigningKey) -> Mined:
        """Mined and confirmed, or an error. `to` None creates a contract."""
        request = {"from": str(signer.address), "data": "0x" + data.hex()} | ({"to": str(to)} if to else {})
        try:
            gas = as_int(await self._rpc.call("eth_estimateGas", request, "pending"))
        except RpcError as error:
            raise refusal(error) from None
        # A quarter more, as state may move until then; and some chance, so that two processes with one key and the same
        # call do not sign the very same transaction and both take it for theirs.
        gas += gas // 4 + 10_000 + secrets.randbelow(10_000)
        async with self._locks[signer.address]:
            nonce, sent = await self._first(to, data, gas, signer)
        try:
            return await self._wait(to, data, gas, nonce, sent, signer)
        except Unavailable:
            self._next.pop(signer.address, None)  # ask the chain where it stands
            raise
        finally:
            self._waiting[signer.address] -= 1

    async def _first(self, to: Address | None, data: bytes, gas: int, signer: SigningKey) -> tuple[int, _Sent]:
        fees = await self._fees()
        for _ in range(4):
            counted = as_int(await self._rpc.call("eth_getTransactionCount", str(signer.address), "pending"))
            # With nothing under way the chain's count alone stands: a reorg may have taken some of ours back.
            nonce = max(counted, self._next.get(signer.address, 0) if self._waiting[signer.address] else 0)
            sent = await self._signed(to, data, gas, nonce, fees, signer)
            if await self._submit(sent):
                self._next[signer.address] = nonce + 1
                self._waiting[signer.address] += 1
                return nonce, sent
            self._next.pop(signer.address, None)  # somebody else uses this key too
        raise Unavailable("this account's nonces are taken by somebody else", retry_after=1.0, rule="LEDGER-6")

    async def _signed(
        self, to: Address | None, data: bytes, gas: int, nonce: int, fees: Fees, signer: SigningKey
    ) -> _Sent:
        """An EIP-1559 transaction."""
        fields: list[Any] = [
            await self._rpc.chain_id(),
            nonce,
            fees.tip,
            fees.limit,
            gas,
            bytes(to or b""),
            0,
            data,
            [],
        ]
        signature = signer.sign(keccak256(b"\x02", encode(fields)))
        r, s, v = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64]), signature[64] - 27
        raw = b"\x02" + encode([*fields, v, r, s])
        return _Sent(raw=raw, hash=keccak256(raw), fees=fees)

    async def _submit(self, sent: _Sent) -> bool:
        """False when the nonce is gone. A node that knows it already has it."""
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + sent.raw.hex())
        except RpcError as error:
            text = error.message.lower()
            if any(known in text for known in KNOWN):
                return True
            if any(later in text for later in LATER_NONCE):
                return await self._receipt(sent.hash) is not None  # sent twice, mined once: that one was ours
            raise refusal(error) from None
        return True

    async def _fees(self) -> Fees:
        block = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        base = as_int(block.get("baseFeePerGas", "0x0")) if isinstance(block, dict) else 0
        try:
            tip = as_int(await self._rpc.call("eth_maxPriorityFeePerGas"))
        except RpcError:
            tip = GWEI
        tip = max(tip, self._patience.min_tip)
        if base + tip > self._patience.max_fee:
            raise Unavailable(f"gas costs {base // GWEI} gwei, above our cap", retry_after=15.0, rule="LEDGER-6")
        return Fees(tip=tip, limit=min(self._patience.max_fee, 2 * base + tip))

    async def _wait(
        self, to: Address | None, data: bytes, gas: int, nonce: int, first: _Sent, signer: SigningKey
    ) -> Mined:
        started = bumped = time.monotonic()
        family = [first]
        while time.monotonic() - started < self._patience.give_up_after:
            for sent in family:
                receipt = await self._receipt(sent.hash)
                if receipt is not None and await self._confirmed(receipt):
                    return await self._outcome(receipt, to, data, signer)
            if time.monotonic() - bumped >= self._patience.bump_after:
                bumped = time.monotonic()
                family = await self._bump(family, to, data, gas, nonce, signer)
            await asyncio.sleep(self._patience.poll)
        raise Unavailable(f"transaction {first.hash} is not mined", retry_after=5.0, rule="LEDGER-6")

    async def _bump(
        self, family: list[_Sent], to: Address | None, data: bytes, gas: int, nonce: int, signer: SigningKey
    ) -> list[_Sent]:
        """The same call and nonce, dearer: a step above the last one, or what the newest block asks if that is more; or
        the last one again, where the cap is reached and the node lost it."""
        last = family[-1]
        fees = last.fees.bumped(self._patience)
        try:
            asked = await self._fees()
            fees = Fees(tip=max(fees.tip, asked.tip), limit=max(fees.limit, asked.limit))
        except Unavailable:
            pass  # above the cap, or nobody says: a step is what we can do
        if fees == last.fees:
            await self._submit(last)
            return family
        dearer = await self._signed(to, data, gas, nonce, fees, signer)
        await self._submit(dearer)
        return [*family, dearer]

    async def _receipt(self, transaction: Digest) -> dict[str, Any] | None:
        found = await self._rpc.call("eth_getTransactionReceipt", str(transaction))
        return found if isinstance(found, dict) and found.get("blockNumber") else None

    async def _confirmed(self, receipt: dict[str, Any]) -> bool:
        if not self._patience.confirmations:
            return True
        head = as_int(await self._rpc.call("eth_blockNumber"))
        return head >= as_int(receipt["blockNumber"]) + self._patience.confirmations

    async def _outcome(self, receipt: dict[str, Any], to: Address | None, data: bytes, signer: SigningKey) -> Mined:
        if as_int(receipt.get("status")) != 1:
            request = {"from": str(signer.address), "to": str(to), "data": "0x" + data.hex()}
            try:
                await self._rpc.call("eth_call", request, receipt["blockNumber"])
            except RpcError as error:
                raise refusal(error) from None
            raise refusal(RpcError(3, "reverted", b""))
        created = receipt.get("contractAddress")
        return Mined(
            hash=Digest(as_bytes(receipt.get("transactionHash"), 32)),
            block=as_int(receipt.get("blockNumber")),
            gas_used=as_int(receipt.get("gasUsed")),
            logs=list(receipt.get("logs") or ()),
            contract=Address(as_bytes(created, 20)) if created else None,
        )
