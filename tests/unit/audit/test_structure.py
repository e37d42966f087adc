# SPDX-License-Identifier: Apache-2.0
"""What is checked of an answer without running anything, and every lie that fails it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.audit.blocks import ASKED, BLOCK, END, IDS, MANIFEST, SALT, SENT, USAGE

from bombyx.errors import Peer, ReceiptError
from bombyx.protocol.audit.asked import CHAT, COMPLETIONS, read_sampling, uncovered
from bombyx.protocol.audit.commitment import audit_commitment, request_digest, stream_root
from bombyx.protocol.audit.structure import Sent, check_block, check_ends, check_finish, open_block
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId
from bombyx.protocol.wire.audit import AuditBlock, AuditMode, SeedSource
from bombyx.protocol.wire.receipt import ChoiceIds, Kind, Outcome, Receipt, UsageOpening
from bombyx.protocol.wire.tokens import Relation

ZERO = Digest.zero()


def blamed(rule: str, block: AuditBlock = BLOCK, usage: UsageOpening = USAGE, sent: Sent = SENT) -> str:
    with pytest.raises(ReceiptError) as caught:
        check_block(block, usage, sent, MANIFEST, salt=SALT)
    assert caught.value.rule == rule
    assert caught.value.peer is Peer.WORKER
    return str(caught.value)


def sampler_with(**changes: Any) -> AuditBlock:
    assert BLOCK.sampler is not None
    return replace(BLOCK, sampler=replace(BLOCK.sampler, **changes))


def test_an_honest_block_passes() -> None:
    """AUD-7: with Meta's cap known, and for a Verifier that has no Meta."""
    check_block(BLOCK, USAGE, SENT, MANIFEST, salt=SALT)
    check_block(BLOCK, USAGE, replace(SENT, cap=None), MANIFEST, salt=SALT)


def test_an_answer_to_another_request_is_refused() -> None:
    """AUD-7: an altered prompt shows in the request's digest."""
    assert "another request" in blamed("AUD-7", sent=replace(SENT, body=SENT.body + b" "))
    assert "another request" in blamed("AUD-7", sent=replace(SENT, path=COMPLETIONS))


@pytest.mark.parametrize("field", ["nonce", "claimant"])
def test_a_swapped_nonce_or_claimant_is_refused(field: str) -> None:
    """AUD-7: the worker takes neither the client's share of the seed nor its refund."""
    others: dict[str, Any] = {"nonce": bytes(32), "claimant": Address(bytes(20))}
    blamed("AUD-7", replace(BLOCK, **{field: others[field]}))


@pytest.mark.parametrize("field", ["weights", "tokenizer", "template"])
def test_a_block_of_another_model_is_refused(field: str) -> None:
    """AUD-7: the block's digests are the manifest's."""
    other: dict[str, Any] = {field: ZERO}
    blamed("AUD-7", replace(BLOCK, **other))
    blamed("AUD-7", replace(BLOCK, engine="another engine"))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature_e6": 100_000},
        {"temperature_e6": 0, "seed_source": SeedSource.GREEDY},
        {"top_p_e6": 1_000_000},
        {"top_k": 1},
        {"presence_e6": 1},
        {"frequency_e6": 1},
        {"seed_source": SeedSource.APPLICATION},
        {"stop": ("\n",)},
        {"max_output": 39},
        {"max_output": 41},
    ],
)
def test_other_settings_than_were_asked_for_are_refused(changes: dict[str, Any]) -> None:
    """AUD-3, AUD-7: a worker cannot claim the settings under which its answer would pass."""
    blamed("AUD-7", sampler_with(**changes))


def test_a_verifier_without_meta_takes_a_smaller_limit_but_no_larger() -> None:
    """AUD-7: what Meta allowed is the client's knowledge."""
    check_block(sampler_with(max_output=39), USAGE, replace(SENT, cap=None), MANIFEST, salt=SALT)
    blamed("AUD-7", sampler_with(max_output=41), sent=replace(SENT, cap=None))


def test_the_models_context_bounds_an_answer() -> None:
    """AUD-7: prompt and answer share the context the manifest names."""
    small = replace(MANIFEST, context=50)
    with pytest.raises(ReceiptError, match="not the 30 asked for"):
        check_block(BLOCK, USAGE, SENT, small, salt=SALT)
    check_block(sampler_with(max_output=30), USAGE, SENT, small, salt=SALT)
    check_block(BLOCK, USAGE, SENT, replace(MANIFEST, context=0), salt=SALT)  # a server whose manifest names none


def test_an_uncovered_request_cannot_be_called_auditable() -> None:
    """AUD-3: what a grammar or a tool does to an answer cannot be re-run here."""
    body = json.dumps(ASKED | {"tools": [{"type": "function"}]}).encode()
    block = replace(BLOCK, request=request_digest(CHAT, body))
    blamed("AUD-3", block, sent=replace(SENT, body=body))


def test_a_chain_that_ends_elsewhere_is_refused() -> None:
    """AUD-6: the ids that are opened are those the stream fixed."""
    blamed("AUD-6", replace(BLOCK, stream_root=stream_root(SALT, (*IDS[:-1], 5))))


def test_counts_are_the_billed_ones() -> None:
    """AUD-7: prompt ids are what is billed as input; unverified ids are no evidence."""
    blamed("AUD-7", replace(BLOCK, prompt_count=19))
    blamed("AUD-7", usage=replace(USAGE, verified=False))


def test_an_answer_that_is_not_auditable_says_so_and_why() -> None:
    """AUD-5: mode `none` needs a reason; an auditable answer needs a sampler."""
    none = replace(BLOCK, mode=AuditMode.NONE, why="tools are not covered", sampler=None)
    check_block(none, USAGE, SENT, MANIFEST, salt=SALT)
    lies: tuple[dict[str, Any], ...] = ({"why": ""}, {"sampler": BLOCK.sampler})
    for wrong in lies:
        with pytest.raises(ValueError):
            replace(none, **wrong)


def receipt(commitment: Digest) -> Receipt:
    zero: dict[str, Any] = dict.fromkeys(
        ("request_hash", "response_hash", "model", "price_sheet", "usage_commitment"), ZERO
    )
    counts: dict[str, Any] = dict.fromkeys(
        ("frames", "input_units", "cached_units", "output_units", "charge", "seq"), 0
    )
    return Receipt(
        kind=Kind.FINAL,
        request_id=RequestId(bytes(16)),
        operator=Address(bytes(20)),
        audit_commitment=commitment,
        outcome=Outcome.COMPLETE,
        started_at=Instant(0),
        finished_at=Instant(0),
        previous=ZERO,
        **zero,
        **counts,
    )


def test_the_block_opens_the_receipts_commitment_and_no_other() -> None:
    """AUD-5: a block made up afterwards opens nothing."""
    signed = receipt(audit_commitment(SALT, BLOCK, USAGE))
    assert open_block(signed, salt=SALT, block=BLOCK.encode(), usage=USAGE) == BLOCK
    later = replace(BLOCK, prompt_count=21)
    for block, usage, salt in ((later, USAGE, SALT), (BLOCK, replace(USAGE, output=1), SALT), (BLOCK, USAGE, ZERO)):
        with pytest.raises(ReceiptError) as caught:
            open_block(signed, salt=salt, block=block.encode(), usage=usage)
        assert caught.value.rule == "AUD-5"
    with pytest.raises(ReceiptError):
        open_block(signed, salt=SALT, block=b"garbage", usage=USAGE)


# --- why it ended -----------------------------------------------------------------------------------------------------


def finish(*choices: tuple[tuple[int, ...], str, Relation]) -> None:
    usage = replace(USAGE, choices=tuple(ChoiceIds(ids=ids, finish=why) for ids, why, _ in choices))
    specials = [{END} & set(ids) for ids, _, _ in choices]
    check_finish(BLOCK, usage, [relation for _, _, relation in choices], specials)


def test_honest_ends_pass() -> None:
    """AUD-7: an end token, a stop string, or as many tokens as allowed."""
    finish((IDS, "stop", Relation.EQUAL))
    finish(((5, 6), "stop", Relation.CUT_AT_STOP))
    finish((tuple(range(100, 140)), "length", Relation.TAIL_DROPPED))


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ((5, 6, 7), "stop"),  # stopped early without an end token
        ((), "stop"),
        ((5, 6, 7), "length"),  # fewer than allowed
        (tuple(range(41)), "stop"),  # more than allowed
        ((5, END), "content_filter"),
        ((5, END), ""),
        ((5, END, 7, 8, END), "stop"),  # padded after the end
    ],
)
def test_an_end_that_does_not_fit_is_refused(ids: tuple[int, ...], why: str) -> None:
    """AUD-7: early stops, padding and made-up reasons."""
    with pytest.raises(ReceiptError, match="AUD-7"):
        finish((ids, why, Relation.EQUAL))


def test_what_ended_one_choice_stands_inside_no_other() -> None:
    """AUD-7: the end token is known from any choice that stopped by itself."""
    padded = (5, END, *range(100, 138))
    finish((IDS, "stop", Relation.EQUAL), (tuple(range(100, 140)), "length", Relation.EQUAL))
    with pytest.raises(ReceiptError, match="follow an end"):
        finish((IDS, "stop", Relation.EQUAL), (padded, "length", Relation.EQUAL))
    with pytest.raises(ReceiptError, match="follow an end"):
        check_ends(replace(USAGE, choices=(ChoiceIds(ids=padded, finish="length"),)), frozenset({END}))


# --- what is covered -------------------------------------------------------------------------------------------------


def test_an_empty_request_gets_the_stated_defaults() -> None:
    """AUD-3: both ends read the same from fields that are not there."""
    asked = {"messages": [{"role": "user", "content": "x"}]}
    found = read_sampling(CHAT, asked, cap=300).sampler
    assert found is not None
    assert (found.temperature_e6, found.top_p_e6, found.top_k) == (700_000, 950_000, 50)
    assert (found.presence_e6, found.frequency_e6, found.max_output) == (0, 0, 300)
    assert found.seed_source is SeedSource.JOINT


def test_choices_share_the_cap_and_the_smallest_limit_counts() -> None:
    """AUD-3: as the cap of Meta is the whole answer's."""
    asked = {"prompt": "x", "n": 3, "max_tokens": 90, "max_completion_tokens": 80}
    for cap, wanted in ((300, 80), (100, 33)):
        found = read_sampling(COMPLETIONS, asked, cap=cap)
        assert found.choices == 3
        assert found.sampler is not None
        assert found.sampler.max_output == wanted
    assert read_sampling(COMPLETIONS, asked, cap=2).why


@pytest.mark.parametrize(("top_k", "wanted"), [(1, 1), (64, 64), (65, 64), (0, 64), (-1, 64), (100_000, 64)])
def test_top_k_is_clamped_to_what_can_be_checked(top_k: int, wanted: int) -> None:
    """AUD-3: and the block tells the application which it was."""
    found = read_sampling(COMPLETIONS, {"prompt": "x", "top_k": top_k}, cap=9).sampler
    assert found is not None
    assert found.top_k == wanted


def test_whose_seed_it_is_stands_in_the_block() -> None:
    """AUD-1, AUD-3: joint, the application's, or none at temperature 0."""
    for asked, source in (
        ({}, SeedSource.JOINT),
        ({"seed": 7}, SeedSource.APPLICATION),
        ({"seed": 7, "temperature": 0}, SeedSource.GREEDY),
        ({"temperature": 1e-9}, SeedSource.GREEDY),
    ):
        found = read_sampling(COMPLETIONS, {"prompt": [1, 2], **asked}, cap=9).sampler
        assert found is not None
        assert found.seed_source is source


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
        {"grammar": "root ::= x"},
        {"min_p": 0.1},
        {"something_new": 1},
        {"temperature": 2.5},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 10**400},
        {"top_p": float("nan")},
        {"presence_penalty": -0.5},
        {"n": 0},
        {"seed": 1.5},
        {"stop": [1]},
        {"stop": ["x"] * 17},
        {"logprobs": 21},
        {"top_logprobs": 21},
        {"max_tokens": 0},
        {"max_tokens": "many"},
    ],
)
def test_what_cannot_be_re_run_is_said_not_to_be(extra: dict[str, Any]) -> None:
    """AUD-3: anything unknown is uncovered, so that nothing unknown is called auditable."""
    found = read_sampling(CHAT, ASKED | extra, cap=100)
    assert found.sampler is None
    assert found.why


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"user": "me", "metadata": {"a": "b"}, "store": False},
        {"min_p": 0, "repetition_penalty": 1.0},
        {"tools": None, "grammar": None},
        {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 5},
    ],
)
def test_fields_that_say_nothing_change_nothing(extra: dict[str, Any]) -> None:
    """AUD-3: clients send many empty fields."""
    assert uncovered(CHAT, ASKED | extra) == ""


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "42", "tool_call_id": "x"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "assistant", "content": "and so"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "user", "content": "\ud800"},
        {"role": "user"},
        "hello",
    ],
)
def test_messages_with_more_than_text_are_uncovered(message: Any) -> None:
    """AUD-3: tools, images and answers begun by the application."""
    assert uncovered(CHAT, {"messages": [{"role": "user", "content": "x"}, message]})


def test_embeddings_and_several_prompts_are_uncovered() -> None:
    """AUD-3"""
    assert uncovered("/v1/embeddings", {"input": "x"})
    assert uncovered(COMPLETIONS, {"prompt": ["a", "b"]})
    assert uncovered(COMPLETIONS, {})
    assert uncovered(COMPLETIONS, {"prompt": [1, -2]})
