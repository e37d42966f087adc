# SPDX-License-Identifier: Apache-2.0
"""What a receipt binds of an answer, and the chain that fixes its ids while they are made."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit.blocks import BLOCK, SALT, USAGE

from bombyx.protocol.audit.commitment import (
    IdChain,
    audit_commitment,
    audit_content,
    claim_leaf,
    ids_digest,
    mark_line,
    request_digest,
    stream_root,
)
from bombyx.protocol.primitives import Address, Digest, tagged_hash

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=200)


def test_the_commitment_is_what_a_contract_can_follow() -> None:
    """AUD-5: two plain SHA-256 over fixed places; the claimant can be shown without the content."""
    tag, claim = hashlib.sha256(b"bombyx audit v2").digest(), hashlib.sha256(b"bombyx claim v1").digest()
    leaf = hashlib.sha256(claim + BLOCK.claimant).digest()
    content = tagged_hash("bombyx audit content v1", SALT, BLOCK.encode(), USAGE.encode())
    assert claim_leaf(BLOCK.claimant) == leaf
    assert audit_content(SALT, BLOCK.encode(), USAGE.encode()) == content
    assert audit_commitment(SALT, BLOCK, USAGE) == hashlib.sha256(tag + leaf + content).digest()


def test_everything_in_it_changes_the_commitment() -> None:
    """AUD-5: salt, claimant, block and ids are all bound."""
    other_usage = replace(USAGE, output=USAGE.output + 1)
    commitments = {
        audit_commitment(SALT, BLOCK, USAGE),
        audit_commitment(bytes(32), BLOCK, USAGE),
        audit_commitment(SALT, replace(BLOCK, claimant=Address(bytes(20))), USAGE),
        audit_commitment(SALT, replace(BLOCK, prompt_count=BLOCK.prompt_count + 1), USAGE),
        audit_commitment(SALT, BLOCK, other_usage),
    }
    assert len(commitments) == 5


@given(ids=IDS, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_the_chain_does_not_depend_on_how_the_ids_came(ids: list[int], cuts: list[int]) -> None:
    """AUD-6: one token or a hundred at a time, the same heads."""
    chain = IdChain(SALT)
    marks: list[tuple[int, Digest]] = []
    bounds = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    for start, end in itertools.pairwise(bounds):
        marks += chain.take(ids[start:end])
    assert chain.root() == stream_root(SALT, ids)
    assert [count for count, _ in marks] == list(range(32, len(ids) + 1, 32))
    assert all(head == stream_root(SALT, ids[:count]) for count, head in marks)


@given(ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=100), at=st.integers(0, 99))
def test_another_id_is_another_chain(ids: list[int], at: int) -> None:
    """AUD-6: no id can be changed afterwards, nor the ids of one answer taken for another's."""
    changed = [*ids]
    changed[at % len(ids)] ^= 1
    assert stream_root(SALT, ids) != stream_root(SALT, changed)
    assert stream_root(SALT, ids) != stream_root(SALT, [*ids, 0])
    assert stream_root(SALT, ids) != stream_root(bytes(32), ids)


def test_a_mark_is_a_comment_to_readers_of_events() -> None:
    """AUD-6: server-sent events call a line that begins with a colon a comment."""
    line = mark_line(32, Digest(b"\xab" * 32))
    assert line == b": bombyx-ids 32 " + b"ab" * 32 + b"\n\n"


def test_ids_and_requests_have_one_digest() -> None:
    """AUD-5: uint32 little-endian; path and body divided by a zero byte."""
    assert ids_digest([1, 258]) == hashlib.sha256(b"\x01\0\0\0\x02\x01\0\0").digest()
    assert request_digest("/v1/completions", b"{}") == hashlib.sha256(b"/v1/completions\x00{}").digest()
