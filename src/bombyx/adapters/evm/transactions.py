# SPDX-License-Identifier: Apache-2.0
"""Transactions: signed here, sent with the next nonce, followed until they are mined deep enough (spec LEDGER-6, -9).

Several processes may send with one key, chains take blocks back, nodes forget. So nothing is believed of a nonce but
what the chain says now: a transaction that no node holds is sent again, one that stays unmined is replaced by a dearer
one, a hole below it is filled, and where somebody else's transaction took its nonce the call gets another.

Always: one nonce is signed for one call only, so at most one of its transactions is mined; a transaction is written
down before it is sent; the fee stays below a cap. A revert raises `PaymentError` (LEDGER-1); a chain that does not
answer, or a transaction that is not mined in time, raises `Unavailable`: then the outcome is unknown, and the caller
looks at the chain before it tries again. What was given up so, or left by a process that died, is brought to its end
before the account sends anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bombyx.adapters.evm.fees import GWEI, Fees, Patience, market_fees
from bombyx.adapters.evm.line import Line, Watch
from bombyx.adapters.evm.outbox import Call, Family, Outbox, signed
from bombyx.adapters.evm.pool import Pool, Reply
from bombyx.adapters.evm.refusals import refusal
from bombyx.adapters.evm.rpc import Rpc, RpcError, as_bytes, as_int
from bombyx.errors import BombyxError, PaymentError, Peer, Unavailable
from bombyx.ports import Store
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.signing import SigningKey

__all__ = ["GWEI", "Fees", "Mined", "Patience", "Transactions"]

ATTEMPTS: Final = 16  # nonces tried for one call while others with the same key take them
FILLED: Final = 32  # nonces of a hole used up at a time
JITTER: Final = 0.05  # seconds; so that two senders of one key do not try in step


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    hash: Digest
    block: int
    gas_used: int
    logs: list[Any]
    contract: Address | None


class Transactions:
    """Everything this process sends to one chain. Senders may share it; each address has its own line of nonces.

    `sent`: a store of this process alone, closed with this; None: nothing outlives the process.
    """

    def __init__(self, rpc: Rpc, *, patience: Patience | None = None, sent: Store | None = None) -> None:
        self._rpc = rpc
        self._patience = patience or Patience()
        self._pool = Pool(rpc)
        self._outbox = Outbox(sent)
        self._lines: defaultdict[Address, Line] = defaultdict(Line)

    async def close(self) -> None:
        await self._outbox.close()

    async def send(self, to: Address | None, data: bytes, *, signer: SigningKey) -> Mined:
        """Mined and confirmed, or an error. `to` None creates a contract."""
        line = self._lines[signer.address]
        async with line.finishing:
            done = await self._finish(line, to, data, signer)
        if done is not None:
            return done
        for _ in range(ATTEMPTS):
            call = Call(to=to, data=data, gas=await self._gas(to, data, signer))
            family = await self._begin(line, call, signer)
            mined = await self._follow(line, family, signer)
            if mined is not None:
                return mined
        raise _taken()

    async def _finish(self, line: Line, to: Address | None, data: bytes, signer: SigningKey) -> Mined | None:
        """Bring to its end what was given up or what an earlier process left, the oldest first.

        Gives what became of this very call, if it was among them and not on the chain yet when it was asked for again.
        """
        if not line.read:
            line.given_up += await self._outbox.left(await self._rpc.chain_id(), signer.address)
            line.read = True
        found = None
        while line.given_up:
            family = line.take_oldest()
            with contextlib.suppress(PaymentError):  # refused: whoever asked for it looks at the chain
                before = await self._receipt_of(line, family)
                mined = await self._follow(line, family, signer)
                if mined is not None and before is None and family.call.asks_the_same(to, data):
                    found = mined
        return found

    async def _receipt_of(self, line: Line, family: Family) -> dict[str, Any] | None:
        try:
            return await self._pool.receipt(family)
        except Unavailable:
            line.given_up.append(family)
            raise

    async def _gas(self, to: Address | None, data: bytes, signer: SigningKey) -> int:
        request = {"from": str(signer.address), "data": "0x" + data.hex()} | ({"to": str(to)} if to else {})
        try:
            gas = as_int(await self._rpc.call("eth_estimateGas", request, "pending"))
        except RpcError as error:
            raise refusal(error) from None
        # A quarter more, as state may move until then; and some chance, so that two processes with one key and the same
        # call do not sign the very same transaction and both take it for theirs.
        return gas + gas // 4 + 10_000 + secrets.randbelow(10_000)

    # --- sending ---

    async def _begin(self, line: Line, call: Call, signer: SigningKey) -> Family:
        """Sent, or at least not known to be refused: then it is in `line.flying`, and `_follow` must come next."""
        fees, least = await market_fees(self._rpc, self._patience), 0
        async with line.turn:
            for _ in range(ATTEMPTS):
                nonce = max(least, line.next_after(await self._pool.count(signer.address, "pending")))
                family = await self._signed(call, nonce, fees, signer)
                await self._outbox.keep(family)
                if await self._first(line, family):
                    line.took(family)
                    return family
                least = nonce + 1  # somebody else uses this key too
                await asyncio.sleep(JITTER * secrets.randbelow(1000) / 1000)
        raise _taken()

    async def _signed(self, call: Call, nonce: int, fees: Fees, signer: SigningKey) -> Family:
        chain = await self._rpc.chain_id()
        first = signed(call, chain_id=chain, nonce=nonce, fees=fees, signer=signer)
        return Family(chain_id=chain, sender=signer.address, nonce=nonce, call=call, members=[first])

    async def _first(self, line: Line, family: Family) -> bool:
        """False: the nonce is somebody else's."""
        try:
            reply = await self._pool.submit(family.last)
        except (PaymentError, Unavailable):
            await self._outbox.drop(family)
            raise
        except BaseException:  # cancelled: a node may have it
            line.given_up.append(family)
            raise
        if reply is not Reply.TAKEN or await self._is_ours(family):
            return True
        await self._outbox.drop(family)
        return False

    async def _is_ours(self, family: Family) -> bool:
        """A transaction that a node heard twice has its nonce taken by itself. `_follow` tells, where nobody does."""
        try:
            return await self._pool.receipt(family) is not None
        except Unavailable:
            return True

    # --- following ---

    async def _follow(self, line: Line, family: Family, signer: SigningKey) -> Mined | None:
        """Mined and confirmed; None where the call was not made and may be made anew: another transaction has its
        nonce, or it ran out of gas on a state that a reorg made another one."""
        line.flying[family.nonce] = family
        try:
            receipt = await self._watch(line, family, signer)
        except PaymentError:
            await self._outbox.drop(family)
            raise
        except BaseException:
            line.given_up.append(family)
            raise
        finally:
            line.landed(family)
        await self._outbox.drop(family)
        return None if receipt is None else await self._outcome(receipt, family)

    async def _watch(self, line: Line, family: Family, signer: SigningKey) -> dict[str, Any] | None:
        watch = Watch(self._patience)
        while not watch.over():
            try:
                receipt = await self._pool.receipt(family)
                if receipt is not None and await self._confirmed(receipt, watch):
                    return receipt
                if receipt is None and watch.looks():
                    if watch.displaced(await self._is_past(family)):
                        return None
                    await self._push(line, family, watch, signer)
                watch.answered()
            except Unavailable:
                if watch.away():
                    raise
            await asyncio.sleep(self._patience.poll)
        raise Unavailable(f"transaction {family.members[0].hash} is not mined", retry_after=5.0, rule="LEDGER-6")

    async def _confirmed(self, receipt: dict[str, Any], watch: Watch) -> bool:
        if not self._patience.confirmations:
            return True
        height = await self._pool.height()
        watch.buried(height)
        return height >= as_int(receipt["blockNumber"]) + self._patience.confirmations

    async def _is_past(self, family: Family) -> bool:
        """Whether the account's nonces are past this one, as deep as counts, and none of the family did it."""
        tag = "latest"
        if self._patience.confirmations:
            tag = hex(max(0, await self._pool.height() - self._patience.confirmations))
        past = await self._pool.count(family.sender, tag) > family.nonce
        return past and await self._pool.receipt(family) is None

    async def _push(self, line: Line, family: Family, watch: Watch, signer: SigningKey) -> None:
        """Whatever keeps it from being mined."""
        mined, held = [await self._pool.count(family.sender, tag) for tag in ("latest", "pending")]
        if held <= family.nonce:
            if held not in line.flying and watch.stands(("hole", held)) >= self._patience.gap_after:
                await self._fill(range(held, min(family.nonce, held + FILLED)), line, watch, signer)
            if await self._pool.resubmit(family.last):
                return
            watch.bump_now()
        if mined == family.nonce and watch.bumps():
            await self._bump(family, signer)
        elif mined < family.nonce and mined not in line.flying and self._blocked(watch, mined):
            await self._fill([mined], line, watch, signer)

    def _blocked(self, watch: Watch, mined: int) -> bool:
        return watch.stands(("blocked", mined)) >= self._patience.unblock_after

    async def _bump(self, family: Family, signer: SigningKey) -> None:
        """The same call and nonce, dearer: a step above the last one, or what the newest block asks if that is more; or
        the last one again, where the cap is reached and the node lost it."""
        fees = family.last.fees.bumped(self._patience)
        with contextlib.suppress(Unavailable):  # above the cap, or nobody says: a step is what we can do
            fees = fees.at_least(await market_fees(self._rpc, self._patience))
        if fees != family.last.fees:
            family.members.append(
                signed(family.call, chain_id=family.chain_id, nonce=family.nonce, fees=fees, signer=signer)
            )
            await self._outbox.keep(family)
        await self._pool.resubmit(family.last)

    async def _fill(self, nonces: Iterable[int], line: Line, watch: Watch, signer: SigningKey) -> None:
        """Empty transactions to ourselves, where no transaction of ours is to come; each time dearer."""
        fees = watch.filling(await market_fees(self._rpc, self._patience))
        empty = Call(to=signer.address, data=b"", gas=await self._gas(signer.address, b"", signer))
        for nonce in nonces:
            if nonce not in line.flying:
                filler = await self._signed(empty, nonce, fees, signer)
                await self._pool.resubmit(filler.last)

    async def _outcome(self, receipt: dict[str, Any], family: Family) -> Mined | None:
        if as_int(receipt.get("status")) != 1:
            await self._refused(receipt, family)
            return None
        created = receipt.get("contractAddress")
        return Mined(
            hash=Digest(as_bytes(receipt.get("transactionHash"), 32)),
            block=as_int(receipt.get("blockNumber")),
            gas_used=as_int(receipt.get("gasUsed")),
            logs=list(receipt.get("logs") or ()),
            contract=Address(as_bytes(created, 20)) if created else None,
        )

    async def _refused(self, receipt: dict[str, Any], family: Family) -> None:
        """Raises what the call says when it is tried on the same state; returns if it would go through."""
        request = {"from": str(family.sender), "to": str(family.call.to), "data": "0x" + family.call.data.hex()}
        found: BombyxError | None = None
        try:
            await self._rpc.call("eth_call", request, receipt["blockNumber"])
        except RpcError as error:
            found = refusal(error)
        except Unavailable as error:
            found = error
        if isinstance(found, PaymentError):
            raise found
        if found is not None:  # nobody knows why; that it was refused stands
            raise PaymentError("the chain refuses: without a reason", peer=Peer.CHAIN, rule="LEDGER-1")


def _taken() -> Unavailable:
    return Unavailable("this account's nonces are taken by somebody else", retry_after=1.0, rule="LEDGER-6")
