# SPDX-License-Identifier: Apache-2.0
"""Answers that can be re-run, as a client meets them: opened, checked, shown, and kept only where it is told to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from tests.unit.client.pair import IDS, TEXT, Pair, chat, make_pair

from bombyx.adapters.memory import MemoryStore
from bombyx.errors import BadRequest, MalformedMessage, Peer, ReceiptError
from bombyx.protocol.audit.commitment import MARK, IdChain, audit_commitment, mark_line
from bombyx.protocol.audit.structure import Sent, check_block, open_block
from bombyx.protocol.primitives import Address, Digest, Instant, RequestId, Secret
from bombyx.protocol.seal.bhttp import decode_request, header
from bombyx.protocol.wire.audit import AuditBlock, AuditMode
from bombyx.protocol.wire.receipt import UsageOpening
from bombyx.roles.client.marks import MarkReader
from bombyx.roles.client.refunds import RefundKeys
from bombyx.roles.client.shelf import TABLE, AuditShelf
from bombyx.roles.client.verification import page, verification

LONG = (*IDS[:-1] * 12, 0)  # 73 ids: two marks
CHAT = "/v1/chat/completions"


@pytest.fixture
async def seeded() -> Pair:
    """All workers make auditable answers of 73 tokens."""
    pair = await make_pair(keep_audits=True)
    for worker in pair.workers:
        worker.script.seeded = True
        worker.script.ids, worker.script.text = LONG, TEXT * 12
    return pair


def asking(**more: Any) -> bytes:
    return chat(max_tokens=100, **more)


async def answered(pair: Pair, body: bytes) -> bytes:
    response = await pair.client.request("POST", CHAT, {}, body)
    data = await response.read()
    await response.finished()
    return data


@pytest.mark.parametrize("stream", [True, False])
async def test_an_auditable_answer_says_so_everywhere(seeded: Pair, stream: bool) -> None:
    """AUD-9: in the receipt, on the page, for programs; and the application reads what it would have read anyway."""
    data = await answered(seeded, asking(stream=stream))
    assert MARK not in data
    if stream:
        events = [json.loads(line[6:]) for line in data.split(b"\n\n") if line.startswith(b"data: {")]
        assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events) == TEXT * 12
        assert data.count(b"data: [DONE]\n\n") == 1
    shown = await verification(seeded.client)
    assert shown["receipts"][0]["audit"] == "seeded"
    assert b"seeded" in page(shown)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0}, "seeded, greedy"),
        ({"seed": 5}, "seeded, the application's seed"),
        ({"min_p": 0.1}, "none (scripted)"),
    ],
)
async def test_whose_seed_it_was_is_shown(seeded: Pair, changes: dict[str, Any], words: str) -> None:
    """AUD-1, AUD-9: an answer that cannot be re-run is good all the same, and says why it cannot."""
    await answered(seeded, asking(**changes))
    assert (await verification(seeded.client))["receipts"][0]["audit"] == words


def other_sampler(**changes: Any) -> Callable[[AuditBlock], AuditBlock]:
    def spoil(block: AuditBlock) -> AuditBlock:
        assert block.sampler is not None
        return replace(block, sampler=replace(block.sampler, **changes))

    return spoil


LIES: dict[str, tuple[Callable[[AuditBlock], AuditBlock | None], str]] = {
    "no block": (lambda _: None, "AUD-5"),
    "another request": (lambda b: replace(b, request=Digest(bytes(32))), "AUD-7"),
    "another claimant": (lambda b: replace(b, claimant=Address(b"\x01" * 20)), "AUD-7"),
    "another nonce": (lambda b: replace(b, nonce=bytes(32)), "AUD-7"),
    "other weights": (lambda b: replace(b, weights=Digest(bytes(32))), "AUD-7"),
    "another temperature": (other_sampler(temperature_e6=100_000), "AUD-7"),
    "a shorter answer than asked for": (other_sampler(max_output=99), "AUD-7"),
    "another chain": (lambda b: replace(b, stream_root=Digest(bytes(32))), "AUD-6"),
    "a longer prompt": (lambda b: replace(b, prompt_count=13), "AUD-7"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_block_that_lies_is_the_workers_fault(seeded: Pair, lie: str) -> None:
    """AUD-5 .. AUD-7: found without running anything; the worker is not drawn again and nothing is agreed to."""
    spoil, rule = LIES[lie]
    cheat = seeded.workers[0]
    cheat.script.spoil = spoil
    seeded.proxy.chosen = cheat
    response = await seeded.client.request("POST", CHAT, {}, asking())
    error = response.error
    assert isinstance(error, ReceiptError)
    assert (error.peer, error.rule) == (Peer.WORKER, rule)
    assert str(cheat.operator.address) in seeded.client.distrusted
    channel = seeded.client.wallet.channel(seeded.proxy.key.address)
    assert channel is not None
    assert channel.agreed == 0


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (LONG[:-1], TEXT * 12),  # stopped without an end token
        ((*IDS[:-1] * 6, 0, *IDS[:-1] * 6, 0), TEXT * 12),  # went on after one
    ],
)
async def test_an_end_that_does_not_fit_is_the_workers_fault(seeded: Pair, ids: tuple[int, ...], text: str) -> None:
    """AUD-7: early stops and padding."""
    cheat = seeded.workers[0]
    cheat.script.ids, cheat.script.text = ids, text
    seeded.proxy.chosen = cheat
    response = await seeded.client.request("POST", CHAT, {}, asking())
    assert isinstance(response.error, ReceiptError)
    assert response.error.rule == "AUD-7"


def other_head(mark: bytes) -> bytes:
    return mark.replace(mark[-5:-2], b"000")


@pytest.mark.parametrize(
    "marks",
    [other_head, lambda mark: mark[: len(mark) // 2], lambda mark: mark.replace(b" 32 ", b" 31 ")],
    ids=["another head", "one left out", "another count"],
)
async def test_marks_that_do_not_lead_to_the_ids_are_the_workers_fault(
    seeded: Pair, marks: Callable[[bytes], bytes]
) -> None:
    """AUD-6: ids chosen after the stream was made do not fit the stream."""
    cheat = seeded.workers[0]
    cheat.script.marks = marks
    seeded.proxy.chosen = cheat
    response = await seeded.client.request("POST", CHAT, {}, asking(stream=True))
    with pytest.raises(ReceiptError) as caught:
        await response.read()
    assert (caught.value.peer, caught.value.rule) == (Peer.WORKER, "AUD-6")


# --- marks ------------------------------------------------------------------------------------------------------------


def stream_of(chunks: list[bytes]) -> tuple[bytes, bytes, list[tuple[int, Digest]]]:
    """A stream with marks, the same without, and the marks."""
    chain, with_marks, without, marks = IdChain(b"salt"), b"", b"", []
    for number, chunk in enumerate(chunks):
        event = b"data: " + chunk.replace(b"\n", b"") + b"\n\n"
        with_marks, without = with_marks + event, without + event
        for count, head in chain.take(range(number, number + 20)):
            with_marks += mark_line(count, head)
            marks.append((count, head))
    return with_marks, without, marks


@given(
    chunks=st.lists(st.sampled_from([b'{"a":1}', b": bombyx-ids 7", b"", b":", b": b"]), max_size=12),
    cuts=st.integers(0, 2**32),
)
def test_marks_are_taken_out_wherever_the_stream_is_cut(chunks: list[bytes], cuts: int) -> None:
    """AUD-6: a mark may come in any number of frames; nothing else is held back or changed."""
    with_marks, without, marks = stream_of(chunks)
    reader, shown, at, dice = MarkReader(), b"", 0, random.Random(cuts)
    while at < len(with_marks):
        size = dice.randint(1, 90)
        shown += reader.feed(with_marks[at : at + size])
        at += size
    assert shown + reader.rest() == without
    assert reader.marks == marks


@given(data=st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", MARK, b": bombyx", b" 32 "]), max_size=10))
def test_whatever_a_worker_sends_is_passed_on_or_its_fault(data: list[bytes]) -> None:
    """AUD-6: a foreign stream never crashes the reader, and it keeps no more than a mark's length."""
    reader, shown = MarkReader(), b""
    try:
        for part in data:
            shown += reader.feed(part)
        shown += reader.rest()
    except MalformedMessage:
        return
    whole = b"".join(data)
    assert shown == whole or reader.marks


@pytest.mark.parametrize(
    "line", [b": bombyx-ids x y\n\n", b": bombyx-ids 032 " + b"0" * 64 + b"\n\n", MARK + b"9" * 200]
)
def test_a_mark_that_is_none_is_refused(line: bytes) -> None:
    """AUD-6"""
    with pytest.raises(MalformedMessage, match="AUD-6"):
        MarkReader().feed(b"data: {}\n\n" + line)


def test_the_stock_client_takes_a_mark_for_a_comment() -> None:
    """AUD-6: a program that reads the sealed stream itself is not disturbed by one."""
    decoder = SSEDecoder()
    lines = (b'data: {"a":1}\n\n' + mark_line(32, Digest(bytes(32))) + b"data: [DONE]\n\n").decode().split("\n")
    events = [event.data for line in lines if (event := decoder.decode(line)) is not None and event.data]
    assert events == ['{"a":1}', "[DONE]"]


# --- what is kept and what is named -----------------------------------------------------------------------------------


async def test_a_package_holds_all_that_re_runs_an_answer(seeded: Pair) -> None:
    """AUD-9: a Verifier that gets it opens the receipt's commitment and finds the request."""
    body = asking()
    await answered(seeded, body)
    package = await seeded.client.audit_package("last")
    usage = UsageOpening.decode(package.usage)
    block = open_block(package.receipt.receipt, salt=package.salt, block=package.block, usage=usage)
    assert block.mode is AuditMode.SEEDED
    assert (package.path, package.body) == (CHAT, body)
    assert package.receipt.receipt.audit_commitment == audit_commitment(package.salt, block, usage)
    sent = Sent(path=CHAT, body=body, nonce=block.nonce, claimant=block.claimant, cap=None)
    check_block(block, usage, sent, seeded.workers[0].manifest, salt=package.salt)
    assert "prompt" not in repr(package)
    assert repr(body)[2:-1] not in repr(package)


async def test_no_package_is_kept_unless_it_is_asked_for(pair: Pair) -> None:
    """AUD-9: packages hold prompts."""
    await answered(pair, asking())
    with pytest.raises(BadRequest):
        await pair.client.audit_package("last")
    assert await pair.client.store.scan(TABLE) == []


async def test_packages_are_bounded_in_number_and_time(seeded: Pair) -> None:
    """AUD-9: what is too old or too much is deleted, not only forgotten."""
    await answered(seeded, asking())
    package = await seeded.client.audit_package("last")
    start = 1_790_000_000
    shelf = AuditShelf(store := MemoryStore(), keep=True, days=2, most=3)
    names = [RequestId(bytes([n]) * 16) for n in range(6)]
    for hour, name in enumerate(names):
        await store.write(shelf.rows(name, package, Instant.from_seconds(start + 3_600 * hour)))
    assert await shelf.tidy(Instant.from_seconds(start + 3_600 * 6), at_once=True) == 3
    assert [await shelf.get(name) is not None for name in names] == [False, False, False, True, True, True]
    await shelf.tidy(Instant.from_seconds(start + 86_400 * 3), at_once=True)
    assert await store.scan(TABLE) == []


async def test_every_request_names_another_address_for_refunds(seeded: Pair) -> None:
    """AUD-9: its key can be made again from the secret and the id; nobody can link two requests by it."""
    for _ in range(3):
        await answered(seeded, asking())
    named = []
    for worker in seeded.workers:
        for opened in worker.opened:
            value = header(decode_request(opened.bhttp).headers, b"bombyx-claimant")
            assert value is not None
            address = Address(bytes.fromhex(value.decode()))
            named.append(address)
            assert seeded.client.refund_key(opened.meta.request_id).address == address
    assert len(set(named)) == len(named) == 3
    request_id = RequestId(bytes(16))
    assert RefundKeys(Secret(b"a" * 32)).address(request_id) != RefundKeys(Secret(b"b" * 32)).address(request_id)
