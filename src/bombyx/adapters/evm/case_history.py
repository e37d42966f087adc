# SPDX-License-Identifier: Apache-2.0
"""What happened on the contracts of stake and validation, from their own events: cases, votes, slashes, refunds.

Read from the chain and not from any role's books, as `history.py` reads the settlement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bombyx.adapters.evm.deploy import AddressBook
from bombyx.adapters.evm.rpc import Rpc, as_bytes, as_int
from bombyx.errors import Unavailable
from bombyx.protocol.audit.case import Ending, Verdict
from bombyx.protocol.primitives import Address, Digest, keccak256

# step: (signature, which topics are addresses, what its data words mean; "" is passed over)
_EVENTS: Final[dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "plan committed": ("PlanCommitted(address,uint64,bytes32,uint64)", ("who", "epoch"), ("", "canaries")),
    "root posted": (
        "RootPosted(address,address,uint64,bytes32,uint64,uint64)",
        ("who", "", "epoch"),
        ("", "", "count"),
    ),
    "case opened": (
        "CaseOpened(uint256,address,address,bytes32,bytes32,string,uint64,uint64)",
        ("case", "who", "by"),
        (),
    ),
    "jury drawn": ("JuryDrawn(uint256,uint8,address[])", ("case",), ("round",)),
    "vote committed": ("VerdictCommitted(uint256,uint8,address)", ("case", "by"), ("round",)),
    "vote shown": ("VerdictRevealed(uint256,uint8,address,uint8)", ("case", "by"), ("round", "verdict")),
    "round decided": ("RoundDecided(uint256,uint8,uint8)", ("case",), ("round", "verdict")),
    "appealed": ("Appealed(uint256,address)", ("case", "by"), ()),
    "slash queued": ("SlashingRequested(uint256,address,uint256,uint256)", ("sentence", "who"), ("", "")),
    "slashed": ("SlashingRequestFulfilled(uint256,address,uint256,string)", ("sentence", "who"), ("amount",)),
    "strike": ("Struck(address,uint256)", ("who",), ("strikes",)),
    "ejected": ("OperatorEjected(address,uint8,uint64)", ("who",), ()),
    "case closed": ("CaseClosed(uint256,address,uint8,uint256)", ("case", "who"), ("ending", "sentence")),
    "clients' part": (
        "Opened(uint256,address,uint256,uint256,uint256)",
        ("sentence", "who"),
        ("slashed", "bounty", "amount"),
    ),
    "refund claimed": ("RefundClaimed(uint256,address,bytes32,uint256)", ("sentence", "who"), ("", "amount")),
    "refunds closed": ("RefundsFinished(uint256,uint256,uint256)", ("sentence",), ("claimed", "amount")),
    "refund paid": ("RefundPaid(uint256,address,uint256)", ("sentence", "who"), ("amount",)),
}
_BY_TOPIC: Final = {
    keccak256(signature.encode()): (step, topics, words) for step, (signature, topics, words) in _EVENTS.items()
}
_ADDRESSES: Final = frozenset({"who", "by"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStep:
    """One event. `who` it is about, `by` whom it is done; `facts` are its numbers, by name."""

    step: str
    who: Address | None
    by: Address | None
    facts: dict[str, int]
    transaction: Digest
    block: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "who": None if self.who is None else str(self.who),
            "by": None if self.by is None else str(self.by),
            **self.facts,
            "transaction": str(self.transaction),
            "block": self.block,
        }

    @property
    def detail(self) -> str:
        """Its numbers in words."""
        told = []
        for name, value in self.facts.items():
            if name == "verdict":
                told.append(Verdict(value).name if value in tuple(Verdict) else str(value))
            elif name == "ending":
                told.append(Ending(value).name if value in tuple(Ending) else str(value))
            else:
                told.append(f"{name} {value}")
        return ", ".join(told)


async def case_steps(rpc: Rpc, book: AddressBook, *, since: int = 0) -> list[CaseStep]:
    """Every step from block `since` on, oldest first."""
    places = [book.receipt_roots, book.validation, book.slasher, book.restitution, book.registry]
    query = {
        "address": [str(place) for place in places],
        "fromBlock": hex(max(since, book.first_block)),
        "toBlock": "latest",
    }
    logs = await rpc.call("eth_getLogs", query)
    if not isinstance(logs, list):
        raise Unavailable("the chain node answers with something that is no list of events", rule="LEDGER-2")
    return [_step(log, *known) for log in logs if (known := _BY_TOPIC.get(_topic(log, 0))) is not None]


def _topic(log: dict[str, Any], place: int) -> Digest:
    return Digest(as_bytes(log["topics"][place], 32))


def _step(log: dict[str, Any], step: str, topics: tuple[str, ...], words: tuple[str, ...]) -> CaseStep:
    facts: dict[str, int] = {}
    people: dict[str, Address] = {}
    for place, name in enumerate(topics, start=1):
        word = _topic(log, place)
        if name in _ADDRESSES:
            people[name] = Address(word[12:])
        elif name:
            facts[name] = int.from_bytes(word)
    data = bytes.fromhex(str(log["data"]).removeprefix("0x"))
    for place, name in enumerate(words):
        if name:
            facts[name] = int.from_bytes(data[32 * place : 32 * place + 32])
    return CaseStep(
        step=step,
        who=people.get("who"),
        by=people.get("by"),
        facts=facts,
        transaction=Digest(as_bytes(log["transactionHash"], 32)),
        block=as_int(log["blockNumber"]),
    )
