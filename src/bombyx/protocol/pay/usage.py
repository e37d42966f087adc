# SPDX-License-Identifier: Apache-2.0
"""What only the client can check: the exact counts and output ids that the final frame opens (spec RCT-6).

Always: the opening is the one the receipt commits to; its counts round up to the receipt's units; where the enclave
says `verified`, there are exactly as many ids as were billed. Text is never tokenised again: about 3 % of honest
outputs are not what a tokenizer would make of their text. Ids are turned into text instead, which has one answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from bombyx.errors import MalformedMessage, Peer, ReceiptError
from bombyx.protocol.pay.price import units
from bombyx.protocol.primitives import Digest, tagged_hash
from bombyx.protocol.wire.receipt import Receipt, UsageOpening
from bombyx.protocol.wire.tokens import Relation, TokenTable


def usage_commitment(salt: bytes, opening: UsageOpening) -> Digest:
    """What stands outside the seal for the exact counts. `salt`: the chosen wrap's Export, so nobody can guess it."""
    return tagged_hash("bombyx usage v1", salt, opening.encode())


def open_usage(receipt: Receipt, *, salt: bytes, opening: bytes, grain: int) -> UsageOpening:
    """The opening, if it is what `receipt` commits to and bills for. Raises `ReceiptError`."""
    try:
        usage = UsageOpening.decode(opening)
    except MalformedMessage:
        raise _blame("the final frame opens no usage") from None
    if usage.v != 1 or usage_commitment(salt, usage) != receipt.usage_commitment:
        raise _blame("the opening is not what the receipt commits to")
    exact = (usage.input, usage.cached_input, usage.output)
    billed = (receipt.input_units, receipt.cached_units, receipt.output_units)
    if tuple(units(count, grain) for count in exact) != billed:
        raise _blame(f"the opening rounds to other units than the {billed} billed")
    if usage.verified and _ids(usage) != usage.output:
        raise _blame(f"{_ids(usage)} output ids, {usage.output} billed")
    return usage


def check_text(
    usage: UsageOpening, texts: Sequence[str], table: TokenTable, *, stop: Sequence[str] = ()
) -> tuple[Relation, ...]:
    """How each choice's text is the text of its billed ids. Raises `ReceiptError` when one is not.

    Empty when the enclave itself calls the usage unverified: there are no ids to hold against the text.
    """
    if not usage.verified:
        return ()
    if len(texts) != len(usage.choices):
        raise _blame(f"{len(texts)} choices delivered, ids of {len(usage.choices)} opened")
    return tuple(
        _relation(table, text, choice.ids, choice.finish, stop)
        for text, choice in zip(texts, usage.choices, strict=True)
    )


def _relation(table: TokenTable, text: str, ids: Sequence[int], finish: str, stop: Sequence[str]) -> Relation:
    try:
        found = table.relation(text, ids, finish, stop)
    except MalformedMessage:
        raise _blame("an output id is not in the model's token table") from None
    if found is None:
        raise _blame(f"the text is not that of the {len(ids)} billed ids")
    return found


def _ids(usage: UsageOpening) -> int:
    return sum(len(choice.ids) for choice in usage.choices)


def _blame(message: str) -> ReceiptError:
    return ReceiptError(message, peer=Peer.WORKER, rule="RCT-6")
