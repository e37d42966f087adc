# SPDX-License-Identifier: Apache-2.0
"""A proxy's bytes, whatever they are, give an answer or a typed error: no crash, no hang, no silent end."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.client.pair import Pair, chat, make_pair

from bombyx.errors import BombyxError, PeerError
from bombyx.protocol.wire.records import Record, ResponseHead, write_record
from bombyx.roles.client.answer import Answer, Terms, read_hint
from bombyx.roles.client.text import AnswerText

_KEPT: list[Any] = []


async def _terms() -> tuple[Terms, list[bytes]]:
    """Real terms of one request and the records an honest proxy passed on for it; made once."""
    if not _KEPT:
        pair: Pair = await make_pair()
        records: list[bytes] = []
        caught: list[Terms] = []

        def keep(answer: Any) -> Any:
            records.extend(write_record(kind, payload) for kind, payload in answer)
            return answer

        pair.proxy.tamper = keep
        made = Answer.__init__

        def spy(self: Answer, terms: Terms) -> None:
            caught.append(terms)
            made(self, terms)

        Answer.__init__ = spy  # type: ignore[method-assign]
        try:
            await pair.client.request("POST", "/v1/chat/completions", {}, chat(stream=True))
            await pair.client.settled()
        finally:
            Answer.__init__ = made  # type: ignore[method-assign]
        _KEPT.extend((caught[0], records))
    return _KEPT[0], _KEPT[1]


def whole(terms: Terms, data: bytes) -> bool:
    """Whether these bytes are accepted as the whole answer."""
    answer = Answer(terms)
    try:
        for _ in answer.feed(data):
            pass
        answer.finish()
    except PeerError:
        return False
    return True


@given(st.data())
@settings(max_examples=200)
async def test_any_bytes_at_all(data: st.DataObject) -> None:
    """LINK-2: typed errors only."""
    terms, _ = await _terms()
    kinds = st.sampled_from(list(Record))
    records = st.lists(st.tuples(kinds, st.binary(max_size=80)), max_size=6)
    head = write_record(Record.HEAD, ResponseHead(candidate=terms.sealed.meta.candidates[0]).encode())
    tail = b"".join(write_record(kind, payload) for kind, payload in data.draw(records))
    assert not whole(terms, data.draw(st.sampled_from([b"", head])) + tail + data.draw(st.binary(max_size=40)))


@given(st.data())
@settings(max_examples=200)
async def test_any_one_change_of_an_honest_answer(data: st.DataObject) -> None:
    """SEAL-7, RCT-1: every prefix, flipped bit, lost or doubled record before the account is found out."""
    terms, records = await _terms()
    assert whole(terms, b"".join(records))
    body = records[:-1]  # END is the proxy's own word: its loss costs nobody anything
    place = data.draw(st.integers(0, len(body) - 1))
    match data.draw(st.sampled_from(["drop", "double", "flip", "cut"])):
        case "drop":
            changed = b"".join(body[:place] + body[place + 1 :])
        case "double":
            changed = b"".join([*body[: place + 1], body[place], *body[place + 1 :]])
        case "cut":
            changed = b"".join(body)[: data.draw(st.integers(0, sum(map(len, body)) - 1))]
        case _:
            joined = bytearray(b"".join(body))
            bit = data.draw(st.integers(0, 8 * len(joined) - 1))
            joined[bit // 8] ^= 1 << (bit % 8)
            changed = bytes(joined)
    assert not whole(terms, changed)


@given(st.binary(max_size=200))
def test_a_hint_is_spelt_harmlessly(payload: bytes) -> None:
    """SEAL-7: a proxy's word is shown, so it may hold nothing but a word."""
    assert set(read_hint(payload)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans())
def test_any_content_is_read_as_text_or_left_out(pieces: list[bytes], streamed: bool) -> None:
    """CLI-5: reading text never breaks an answer."""
    text = AnswerText("/v1/chat/completions", streamed=streamed)
    for piece in pieces:
        text.feed(piece)
    assert isinstance(text.texts(), list)


def test_text_is_gathered_over_any_split() -> None:
    """CLI-5: events may arrive in any pieces, with any line ends and filler between them."""
    events = [{"choices": [{"index": i % 2, "delta": {"content": c}}]} for i, c in enumerate("abcd")]
    body = b"".join(b":   \n" + b"data: " + json.dumps(e).encode() + b"\r\n\r\n" for e in events) + b"data: [DONE]\n\n"
    for size in (1, 3, len(body)):
        text = AnswerText("/v1/chat/completions", streamed=True)
        for start in range(0, len(body), size):
            text.feed(body[start : start + size])
        assert text.done and text.texts() == ["ac", "bd"]


def test_rewritten_choices_have_no_text_to_compare() -> None:
    """RCT-6: tool calls and reasoning come out of the same ids in another form."""
    text = AnswerText("/v1/chat/completions", streamed=False)
    message = {"content": None, "tool_calls": [{"id": "1"}]}
    text.feed(
        json.dumps({"choices": [{"index": 0, "message": message}, {"index": 1, "message": {"content": "x"}}]}).encode()
    )
    assert text.texts() == [None, "x"]


async def test_a_directory_of_any_bytes_is_a_typed_error() -> None:
    """CLI-2: and the application is told."""
    pair = await make_pair(workers=1)

    async def get(path: str) -> tuple[int, bytes]:
        return 200, b"\xd9\x69\x7e\xa0" if path == "/v1/directory" else b""

    pair.proxy.get = get  # type: ignore[method-assign]
    response = await pair.client.request("POST", "/v1/chat/completions", {}, chat())
    assert isinstance(response.error, BombyxError) and response.status >= 400
