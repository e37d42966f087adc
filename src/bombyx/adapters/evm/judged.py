# SPDX-License-Identifier: Apache-2.0
"""The calls of contracts/{ReceiptRoots,ReceiptFaults,ValidationService,Restitution}.vy and their answers, to and from
bytes. What each does stands in the contracts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from bombyx.adapters.evm import abi
from bombyx.adapters.evm.abi import Reader, call
from bombyx.adapters.evm.rpc import as_bytes, as_int
from bombyx.errors import Unavailable
from bombyx.protocol.audit.case import (
    Accusation,
    Ballot,
    Case,
    CaseState,
    Challenge,
    Ending,
    EpochRoot,
    RefundClaim,
    Verdict,
)
from bombyx.protocol.primitives import Address, Digest, keccak256
from bombyx.protocol.wire.eip712 import word, word_left
from bombyx.protocol.wire.receipt import Receipt, SignedReceipt

RECEIPT: Final = (
    "(uint8,bytes16,bytes32,bytes32,bytes32,bytes32,address,uint32,uint64,uint64,uint64,uint128,bytes32,bytes32,"
    "uint8,uint64,uint64,uint64,bytes32)"
)
SIGNED: Final = f"({RECEIPT},bytes)"
CASE_OPENED: Final = keccak256(
    b"CaseOpened(uint256,address,address,bytes32,bytes32,string,uint64,uint64)",
)
CHALLENGED: Final = keccak256(b"Challenged(uint256,address,address,bytes32)")
REFUND_CLAIMED: Final = keccak256(b"RefundClaimed(uint256,address,bytes32,uint256)")
_CASE_WORDS: Final = 19


def receipt_words(receipt: Receipt) -> bytes:
    """A receipt as the ABI takes it: the words that are hashed for its signature."""
    return b"".join(
        (
            word(receipt.kind),
            word_left(receipt.request_id),
            receipt.request_hash,
            receipt.response_hash,
            receipt.model,
            receipt.price_sheet,
            word(receipt.operator),
            word(receipt.frames),
            word(receipt.input_units),
            word(receipt.cached_units),
            word(receipt.output_units),
            word(receipt.charge),
            receipt.usage_commitment,
            receipt.audit_commitment,
            word(receipt.outcome),
            word(receipt.seq),
            word(receipt.started_at),
            word(receipt.finished_at),
            receipt.previous,
        )
    )


def signed_receipt(held: SignedReceipt) -> abi.Tail:
    return abi.struct(receipt_words(held.receipt), abi.blob(held.signature))


def digests(row: Sequence[Digest]) -> abi.Tail:
    return abi.array([bytes(one) for one in row])


def open_case(accusation: Accusation) -> bytes:
    return call(
        "openCase(address,bytes32,bytes32,string,uint64,uint64,bytes32)",
        word(accusation.accused),
        accusation.model,
        accusation.evidence,
        abi.blob(accusation.uri.encode()),
        word(accusation.from_epoch),
        word(accusation.to_epoch),
        accusation.plant,
    )


def claim_refund(sentence: int, held: SignedReceipt, claim: RefundClaim) -> bytes:
    return call(
        f"claimRefund(uint256,{SIGNED},address,bytes32,address,bytes)",
        word(sentence),
        signed_receipt(held),
        word(claim.claimant),
        claim.content,
        word(claim.payout),
        abi.blob(claim.signature),
    )


def id_of(logs: Sequence[Any], event: Digest) -> int:
    """The id in the first indexed field of an event of the transaction."""
    for log in logs:
        if isinstance(log, dict) and (log.get("topics") or [None])[0] == str(event):
            return as_int(log["topics"][1])
    raise Unavailable("the chain's answer holds no event", rule="LEDGER-2")


def case_of(number: int, answer: Reader, ballots: tuple[Ballot, ...]) -> Case:
    try:
        outcome = answer.uint(3)
        return Case(
            id=number,
            state=CaseState(answer.uint(0)),
            ending=Ending(answer.uint(1)),
            round=answer.uint(2),
            outcome=Verdict(outcome) if outcome else None,
            accuser=answer.address(5),
            appellant=answer.address(6),
            accusation=Accusation(
                accused=answer.address(4),
                model=answer.digest(7),
                evidence=answer.digest(8),
                plant=answer.digest(9),
                from_epoch=answer.uint(10),
                to_epoch=answer.uint(11),
                uri=answer.blob(_CASE_WORDS).decode("utf-8", "replace"),
            ),
            opened_at=answer.uint(12),
            jury_block=answer.uint(13),
            commit_until=answer.uint(14),
            reveal_until=answer.uint(15),
            appeal_until=answer.uint(16),
            veto_until=answer.uint(17),
            sentence=answer.uint(18),
            ballots=ballots,
        )
    except ValueError:
        raise Unavailable("the chain's answer is no case", rule="LEDGER-2") from None


def root_of(answer: Reader) -> EpochRoot:
    return EpochRoot(root=answer.digest(0), epoch=answer.uint(1), first_seq=answer.uint(2), count=answer.uint(3))


def challenge_of(number: int, answer: Reader) -> Challenge:
    return Challenge(
        id=number,
        worker=answer.address(0),
        challenger=answer.address(1),
        receipt_key=answer.address(2),
        seq=answer.uint(3),
        leaf=answer.digest(4),
        answer_until=answer.uint(5),
        settled=answer.uint(6) == 1,
    )


def payout_of_log(log: Any) -> Address:
    """Of a `RefundClaimed` event."""
    if not isinstance(log, dict) or len(log.get("topics") or ()) != 3:
        raise Unavailable("the chain's answer holds no event", rule="LEDGER-2")
    return Address(as_bytes(log["topics"][2], 32)[12:])
