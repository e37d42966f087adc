# SPDX-License-Identifier: Apache-2.0
"""What nodes say of transactions: taken in, known, mined, or their nonces gone. One question a method."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final

from bombyx.adapters.evm.outbox import Family, Sent
from bombyx.adapters.evm.refusals import refusal
from bombyx.adapters.evm.rpc import Rpc, RpcError, as_int
from bombyx.errors import Unavailable
from bombyx.protocol.primitives import Address

_TAKEN: Final = ("nonce too low", "nonce is too low", "replacement")  # nodes' words, the last of one that is too cheap
_KNOWN: Final = ("already known", "already imported", "known transaction")


class Reply(Enum):
    POOLED = auto()  # the node has it, or had it
    TAKEN = auto()  # its nonce is another transaction's
    UNHEARD = auto()  # nobody answered: it may have been taken in all the same


class Pool:
    """`Unavailable` means that no node answered, but from `submit` also that one refused for the time being."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def submit(self, sent: Sent) -> Reply:
        """Raises `PaymentError` or `Unavailable` where a node refuses it."""
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + sent.raw.hex())
        except Unavailable:
            return Reply.UNHEARD
        except RpcError as error:
            text = error.message.lower()
            if any(known in text for known in _KNOWN):
                return Reply.POOLED
            if any(taken in text for taken in _TAKEN):
                return Reply.TAKEN
            raise refusal(error) from None
        return Reply.POOLED

    async def resubmit(self, sent: Sent) -> bool:
        """Again, or instead of another; False where the node wants more for it."""
        try:
            await self.submit(sent)
        except Unavailable:
            return False
        return True

    async def count(self, account: Address, tag: str) -> int:
        """The account's next nonce: of mined transactions ("latest", or a block's number), or of those held in a row
        too ("pending")."""
        return as_int(await self._ask("eth_getTransactionCount", str(account), tag))

    async def height(self) -> int:
        return as_int(await self._ask("eth_blockNumber"))

    async def receipt(self, family: Family) -> dict[str, Any] | None:
        """Of whichever member was mined."""
        for sent in family.members:
            found = await self._ask("eth_getTransactionReceipt", str(sent.hash))
            if isinstance(found, dict) and found.get("blockNumber"):
                return found
        return None

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcError as error:
            raise Unavailable(f"the chain node says {error.message[:200]}", retry_after=1.0, rule="LEDGER-2") from None
