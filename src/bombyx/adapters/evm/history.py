# SPDX-License-Identifier: Apache-2.0
"""What happened on the settlement contract, from its own events: deposits, claims, payouts, refunds, withdrawals.

Read from the chain and not from any role's books, so it can be held against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bombyx.adapters.evm.deploy import AddressBook
from bombyx.adapters.evm.rpc import Rpc, as_bytes, as_int
from bombyx.errors import Unavailable
from bombyx.protocol.primitives import Address, Digest, keccak256

_EVENTS: Final = {
    keccak256(signature.encode()): (step, words)
    for step, signature, words in (
        ("deposit", "Deposited(bytes32,address,uint128,uint128)", ("amount", "total")),
        ("claim", "Claimed(bytes32,address,uint128,uint128)", ("amount", "total")),
        ("payout", "Settled(address,address,address,uint128)", ("amount",)),
        ("refund", "Refunded(bytes32,address,uint128)", ("amount",)),
        ("withdrawal begun", "WithdrawInitiated(bytes32,uint128,uint40)", ("amount", "after")),
        ("withdrawal", "WithdrawFinalized(bytes32,address,uint128)", ("amount",)),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementStep:
    """One event. `subject` is the channel, or for a payout its receiver; `amount` in token base units."""

    step: str
    subject: str
    amount: int
    transaction: Digest
    block: int
    gas: int  # of the whole transaction, which may hold several steps

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "subject": self.subject,
            "amount": self.amount,
            "transaction": str(self.transaction),
            "block": self.block,
            "gas": self.gas,
        }


async def settlement_steps(rpc: Rpc, book: AddressBook) -> list[SettlementStep]:
    """Every step since the contracts were placed, oldest first."""
    query = {"address": str(book.settlement), "fromBlock": hex(book.first_block), "toBlock": "latest"}
    logs = await rpc.call("eth_getLogs", query)
    if not isinstance(logs, list):
        raise Unavailable("the chain node answers with something that is no list of events", rule="LEDGER-2")
    gas: dict[str, int] = {}
    steps = []
    for log in logs:
        known = _EVENTS.get(Digest(as_bytes(log["topics"][0], 32)))
        if known is None:
            continue
        name = str(log["transactionHash"])
        if name not in gas:
            gas[name] = as_int((await rpc.call("eth_getTransactionReceipt", name))["gasUsed"])
        steps.append(_step(log, *known, gas=gas[name]))
    return steps


def _step(log: dict[str, Any], step: str, words: tuple[str, ...], *, gas: int) -> SettlementStep:
    data, subject = as_bytes(log["data"], 32 * len(words)), as_bytes(log["topics"][1], 32)
    return SettlementStep(
        step=step,
        subject=str(Address(subject[12:])) if step == "payout" else str(Digest(subject)),
        amount=int.from_bytes(data[:32]),
        transaction=Digest(as_bytes(log["transactionHash"], 32)),
        block=as_int(log["blockNumber"]),
        gas=gas,
    )
