# SPDX-License-Identifier: Apache-2.0
"""What an engine says is read within bounds: strange JSON is `EngineUnavailable`, never another exception."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.engine_answer import Answer
from bombyx.adapters.engine_dialect import Dialect, Plan, plan_request
from bombyx.adapters.engine_scripted import TOKENS
from bombyx.adapters.sse import SseSplitter
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.errors import BombyxError, EngineUnavailable
from bombyx.ports import EngineRequest

INDEX = TokenIndex(TOKENS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["choices", "index", "delta", "content", "text", "message", "logprobs", "id", "token_ids", "timings", "predicted_n",
     "usage", "completion_tokens", "prompt_tokens", "prompt_tokens_details", "cached_tokens", "__verbose", "tokens",
     "stop_type", "finish_reason", "prompt_n", "cache_n"]
)  # fmt: skip
SHAPED = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=16
)


def plan(dialect: Dialect, *, stream: bool, path: str = "/v1/chat/completions", **body: Any) -> Plan:
    data = json.dumps({"messages": [], "stream": stream} | body).encode()
    request = EngineRequest(
        path=path, body=data, stream=stream, cache_salt=bytes(32), max_output=50, deadline_seconds=1.0
    )
    return plan_request(request, dialect)


@given(SHAPED, st.sampled_from(list(Dialect)), st.booleans())
def test_any_json_is_read_or_refused(value: Any, dialect: Dialect, stream: bool) -> None:
    answer = Answer(plan(dialect, stream=stream), INDEX)
    data = json.dumps(value).encode()
    with contextlib.suppress(EngineUnavailable):
        answer.event(b"data: " + data + b"\n\n") if stream else answer.body(data)
        answer.usage()


@given(st.binary(max_size=200), st.sampled_from(list(Dialect)))
def test_any_bytes_are_read_or_refused(data: bytes, dialect: Dialect) -> None:
    for stream in (True, False):
        with contextlib.suppress(EngineUnavailable):
            answer = Answer(plan(dialect, stream=stream))
            answer.event(b"data: " + data) if stream else answer.body(data)


@given(SHAPED)
def test_any_request_is_planned_or_refused(body: Any) -> None:
    for dialect in Dialect:
        request = EngineRequest(
            path="/v1/completions",
            body=json.dumps(body).encode(),
            stream=False,
            cache_salt=b"",
            max_output=5,
            deadline_seconds=1.0,
        )
        with contextlib.suppress(BombyxError):
            plan_request(request, dialect)


@given(st.lists(st.sampled_from([b"data: a", b": ping", b"data: b", b"event: x"])), st.integers(1, 9), st.booleans())
def test_events_are_cut_the_same_wherever_the_network_cuts(lines: list[bytes], size: int, crlf: bool) -> None:
    end = b"\r\n\r\n" if crlf else b"\n\n"
    stream = b"".join(line + end for line in lines)
    splitter = SseSplitter()
    events = [e for at in range(0, len(stream), size) for e in splitter.feed(stream[at : at + size])]
    splitter.finish()
    assert events == [line + end for line in lines]


def test_an_endless_event_is_refused_before_it_fills_the_memory() -> None:
    splitter = SseSplitter(max_event=1000)
    for _ in range(10):
        splitter.feed(b"x" * 100)
    with pytest.raises(EngineUnavailable):
        splitter.feed(b"x")


def test_an_event_nothing_is_taken_from_passes_byte_for_byte() -> None:
    answer = Answer(plan(Dialect.PLAIN, stream=True))
    raw = b'data: { "choices" : [{"index":0,"delta":{"content":"\\u00e9"}}] }\r\n\r\n'
    chunk = answer.event(raw)
    assert chunk is not None
    assert chunk.data == raw


@pytest.mark.parametrize(("text", "verified"), [(" the silk", True), ("the silk", False), (" the", False)])
def test_text_that_is_not_that_of_its_ids_is_not_verified(text: str, verified: bool) -> None:
    """RCT-6"""
    answer = Answer(plan(Dialect.LLAMA_CPP, stream=False), INDEX)
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "length"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    answer.body(json.dumps({"choices": [choice], "usage": usage, "__verbose": {"tokens": [257, 258]}}).encode())
    assert answer.usage().verified is verified
    assert answer.usage().output == 2


def test_nothing_after_the_end_reaches_the_application() -> None:
    answer = Answer(plan(Dialect.PLAIN, stream=True))
    assert answer.event(b"data: [DONE]\n\n") is not None
    assert answer.event(b'data: {"choices":[]}\n\n') is None


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {"max_tokens": 50}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 900}, {"max_tokens": 50}),
        ({"max_completion_tokens": 900}, {"max_completion_tokens": 50}),
        ({"max_tokens": -1, "n_predict": 7}, {"max_tokens": 7}),
        ({"n": 5}, {"max_tokens": 10}),
    ],
)
def test_the_output_limit_is_the_smallest_of_all(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    """RCT-6: llama.cpp prefers `n_predict` to the limit that is paid for, so it never sees one."""
    body = json.loads(plan(Dialect.LLAMA_CPP, stream=False, **asked).body)
    assert {name: body[name] for name in sent} == sent
    assert "n_predict" not in body


def test_an_application_cannot_choose_a_slot_or_a_cache() -> None:
    body = json.loads(plan(Dialect.LLAMA_CPP, stream=False, id_slot=0, cache_prompt=True).body)
    assert body["cache_prompt"] is False
    assert "id_slot" not in body


def test_logprobs_that_were_asked_for_are_not_changed_or_dropped() -> None:
    made = plan(Dialect.LLAMA_CPP, stream=True, logprobs=True, top_logprobs=5)
    assert json.loads(made.body)["top_logprobs"] == 5
    assert "logprobs" not in made.drop


def test_a_stream_with_tools_is_not_asked_for_logprobs() -> None:
    """llama.cpp refuses the two together."""
    assert "logprobs" not in json.loads(plan(Dialect.LLAMA_CPP, stream=True, tools=[{}]).body)
