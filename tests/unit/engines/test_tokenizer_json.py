# SPDX-License-Identifier: Apache-2.0
"""Token tables from a folder's tokenizer.json (ENC-10): two families, a real vocabulary, and all that is none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.gguf import find_packaged_model, parse_gguf, token_table
from bombyx.adapters.tokenizer_json import parse_tokenizer
from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.wire.tokens import TokenTable

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
LLAMA = {  # as Llama 2 and Mistral have it
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def written(vocabulary: Any, decoder: Any = BYTE_LEVEL, added: Any = (), **more: Any) -> bytes:
    document = {"added_tokens": list(added), "decoder": decoder, "model": {"type": "BPE", "vocab": vocabulary}}
    return orjson.dumps(document | more)


def test_byte_level_words_are_the_bytes_they_stand_for() -> None:
    """ENC-10: GPT-2's alphabet; half a character is half a character."""
    table = parse_tokenizer(written({"hello": 0, "\u0120w": 1, "\u010a": 2, "\u00c3": 3, "\u00a9": 4}))
    assert table.detokenise([0, 1, 2]) == b"hello w\n" and table.detokenise([3, 4]) == "é".encode()
    assert table.matches("hello é", [0, 1, 3, 4], "length") is False
    assert not table.strip_leading_space


def test_sentencepiece_words_and_bytes() -> None:
    """ENC-10: a text may lack the first space."""
    table = parse_tokenizer(written({"<unk>": 0, "\u2581Hello": 1, "\u2581\u2581": 2, "<0x0A>": 3, "<0xE9>": 4}, LLAMA))
    assert table.detokenise([1, 2, 3, 4]) == b" Hello  \n\xe9"
    assert table.strip_leading_space and table.matches("Hello", [1], "stop")


def test_unigram_lists_its_words_in_the_order_of_their_ids() -> None:
    """ENC-10."""
    document = {
        "model": {"type": "Unigram", "vocab": [["<pad>", 0.0], ["\u2581a", -1.5], ["b", -2]]},
        "decoder": {"type": "Metaspace", "prepend_scheme": "always"},
        "added_tokens": [{"id": 0, "content": "<pad>", "special": True}],
    }
    table = parse_tokenizer(orjson.dumps(document))
    assert table.detokenise([0, 1, 2]) == b" ab" and table.strip_leading_space and table.is_special(0)
    document["decoder"] = {"type": "Metaspace", "prepend_scheme": "never"}
    assert not parse_tokenizer(orjson.dumps(document)).strip_leading_space


def test_added_tokens_show_or_do_not() -> None:
    """ENC-10: a special one stands for no bytes, another for its own name; what no id names stands for nothing."""
    added = ({"id": 2, "content": "<|end|>", "special": True}, {"id": 4, "content": "<tool>", "special": False})
    table = parse_tokenizer(written({"a": 0, "b": 1}, added=added))
    assert table.size == 5 and table.detokenise([0, 2, 4, 3, 1]) == b"a<tool>b"
    assert table.is_special(2) and table.is_special(3) and table.name(2) == b"<|end|>"


def test_the_packaged_models_table_is_the_same_either_way() -> None:
    """ENC-10: a real vocabulary of 49 152 tokens, from GGUF and from the JSON its makers would have published."""
    try:
        raw = find_packaged_model().read_bytes()[: 8 << 20]
    except ConfigError:
        pytest.skip("no packaged model is installed")
    metadata, _ = parse_gguf(raw)
    words, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    added = [
        {"id": token, "content": words[token], "special": kind == 3}
        for token, kind in enumerate(kinds)
        if kind in (3, 4)
    ]
    vocabulary = {word: token for token, word in enumerate(words)}
    assert parse_tokenizer(written(vocabulary, added=added)) == token_table(metadata)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model": []}',
        written({"a": 0}, decoder=None),
        written({"a": 0}, decoder={"type": "WordPiece"}),
        written({"a": 0}, decoder={"type": "Sequence", "decoders": [BYTE_LEVEL, {"type": "Metaspace"}]}),
        written({"a": 0}, decoder={"type": "Replace", "content": "x"}),
        written(None),
        written({"a": -1}),
        written({"a": 1 << 21}),
        written({"a": True}),
        written({"a": 0.5}),
        written({"a": 0, "b": 0}),
        written([["a"], 7]),
        written({"a": 0}, added=[{"id": 1}]),
        written({"a": 0}, added=[7]),
        written({"a": 0}, added_tokens=7),
        written({"a" * 70_000: 0}),
        b" " * 100,
    ],
    ids=range(20),
)
def test_what_has_no_table(raw: bytes) -> None:
    """ENC-10: a family whose ids have no bytes of their own, or a file that is none."""
    with pytest.raises(MalformedMessage):
        parse_tokenizer(raw)


def test_decoders_inside_decoders_without_end() -> None:
    """ENC-10: nesting is followed a few levels, not more."""
    decoder: dict[str, Any] = BYTE_LEVEL
    for _ in range(100):
        decoder = {"type": "Sequence", "decoders": [decoder]}
    with pytest.raises(MalformedMessage):
        parse_tokenizer(written({"a": 0}, decoder))


@given(st.binary(max_size=400) | st.recursive(st.none() | st.text() | st.integers(-99, 99), st.lists).map(orjson.dumps))
def test_any_bytes_are_a_table_or_refused(raw: bytes) -> None:
    """ENC-10."""
    try:
        parse_tokenizer(raw)
    except MalformedMessage:
        pass


ADDED = st.fixed_dictionaries({"id": st.integers(-1, 20), "content": st.text(max_size=4), "special": st.booleans()})


@given(
    st.dictionaries(st.text(max_size=6), st.integers(-2, 12), max_size=8),
    st.lists(
        st.fixed_dictionaries({"id": st.integers(-1, 20), "content": st.text(max_size=4), "special": st.booleans()})
    ),
    st.sampled_from([BYTE_LEVEL, LLAMA, {"type": "Metaspace"}]),
)
def test_any_vocabulary_is_a_table_or_refused(words: dict[str, int], added: list[Any], decoder: Any) -> None:
    """ENC-10: a table that is made can be written and read."""
    try:
        table = parse_tokenizer(written(words, decoder, added))
    except MalformedMessage:
        return
    assert TokenTable.decode(table.encode()) == table
