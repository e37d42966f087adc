# SPDX-License-Identifier: Apache-2.0
"""What is read of an application's body: bounds, conversations, refusals; and that no body crashes the reading."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.errors import BadRequest
from bombyx.roles.client.asked import CHAT, COMPLETIONS, EMBEDDINGS, IMAGE_TOKENS, SERVED, Asked, cache_salt, read_asked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["model", "messages", "stream", "n", "best_of", "max_tokens", "prompt", "input", "stop", "echo"]


def read(path: str, **body: Any) -> Asked:
    return read_asked(path, json.dumps({"model": "m", **body}).encode(), default_output=1024, max_body=1 << 20)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@given(st.sampled_from(SERVED), st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_json_is_read_or_refused(path: str, body: dict[str, Any]) -> None:
    """CLI-1: typed refusals only; bounds are never negative."""
    try:
        asked = read_asked(path, json.dumps(body).encode(), default_output=1024, max_body=1 << 20)
    except BadRequest as error:
        refused = error.status
    else:
        refused = 400
        assert asked.max_input(0) > 0 and asked.max_output(0) >= 0 and asked.choices >= 1
    assert 400 <= refused < 500


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    """CLI-1: garbage is the application's fault."""
    with pytest.raises(BadRequest) as caught:
        read_asked(CHAT, body, default_output=1, max_body=100)
    assert caught.value.status in (400, 413)


def test_bounds_of_a_chat() -> None:
    """CLI-3: no more tokens than bytes and a template; never more than the context; each choice in full."""
    asked = read(CHAT, messages=user("hello"), max_completion_tokens=100, n=3)
    assert asked.max_input(0) >= len("hello") and asked.max_input(64) == 64
    assert asked.max_output(0) == 300 and asked.max_output(50) == 150
    assert read(CHAT, messages=user("x")).max_output(0) == 1024


def test_an_image_counts_by_a_flat_bound() -> None:
    """CLI-3: five megabytes of base64 are not five million tokens."""
    url = "data:image/png;base64," + "A" * 500_000
    asked = read(CHAT, messages=user([{"type": "image_url", "image_url": {"url": url}}]))
    assert IMAGE_TOKENS <= asked.max_input(0) < IMAGE_TOKENS + 1000


def test_bounds_of_completions_and_embeddings() -> None:
    """CLI-3: each prompt has its own context and its own choices; embeddings have no output."""
    many = read(COMPLETIONS, prompt=["a" * 100] * 4, max_tokens=10, n=2)
    assert (many.prompts, many.choices, many.max_output(0)) == (4, 8, 80)
    assert many.max_input(20) == 80
    assert read(COMPLETIONS, prompt=[1, 2, 3]).prompts == 1
    assert read(EMBEDDINGS, input=["a", "b"]).max_output(0) == 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/audio", {}, 404),
        (CHAT, {"model": ""}, 400),
        (CHAT, {"n": 10_000}, 400),
        (CHAT, {"max_tokens": -1}, 400),
        (CHAT, {"max_tokens": "many"}, 400),
        (EMBEDDINGS, {"input": ["x"] * 3000}, 400),
    ],
)
def test_refusals(path: str, body: dict[str, Any], status: int) -> None:
    """CLI-1: what no worker could serve never leaves this machine."""
    with pytest.raises(BadRequest) as caught:
        read(path, **body)
    assert caught.value.status == status


def test_conversations() -> None:
    """CLI-3: turns of one chat share a key, another opening has another; a secret of the process blinds it."""
    one = read(CHAT, messages=user("a")).conversation
    more = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    assert one == read(CHAT, messages=more, temperature=1).conversation
    assert one != read(CHAT, messages=user("z")).conversation
    assert read(COMPLETIONS, prompt="a").conversation == b""
    assert cache_salt(b"1" * 32, one) != cache_salt(b"2" * 32, one)
