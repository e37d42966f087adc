# SPDX-License-Identifier: Apache-2.0
"""Model files: what they say is read, what they claim is bounded."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombyx.adapters.gguf import file_digest, find_packaged_model, parse_gguf, read_gguf, token_table
from bombyx.errors import BombyxError, ConfigError, MalformedMessage


def string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def strings(*values: str) -> bytes:
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(string, values))


def gguf(*pairs: bytes, tensors: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(pairs)) + b"".join(pairs) + tensors


SMALL = gguf(
    pair("general.architecture", 8, string("llama")),
    pair("general.name", 8, string("tiny")),
    pair("general.file_type", 4, struct.pack("<I", 3)),
    pair("llama.context_length", 4, struct.pack("<I", 512)),
    pair("tokenizer.ggml.model", 8, string("gpt2")),
    pair("tokenizer.ggml.tokens", 9, strings("<end>", "\u0120sea", "\u00e2\u0124", "\u00ac", "raw \u0120")),
    pair("tokenizer.ggml.token_type", 9, struct.pack("<IQ5i", 5, 5, 3, 1, 1, 1, 4)),
    pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 0)),
    tensors=string("w") + struct.pack("<IQQIQ", 2, 3, 4, 0, 0),
    count=1,
)


def test_a_model_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(SMALL)
    model = read_gguf(path)
    assert (model.name, model.architecture, model.quantisation) == ("tiny", "llama", "Q4_1")
    assert (model.context, model.parameters, model.end_of_text, model.chat_template) == (512, 12, 0, None)
    assert [model.tokens.piece(token) for token in range(5)] == [
        b"",
        b" sea",
        b"\xe2\x82",
        b"\xac",
        "raw \u0120".encode(),
    ]
    assert model.tokens.detokenise([1, 2, 3, 0]).decode() == " sea\u20ac"


def test_sentencepiece_tokens_become_bytes() -> None:
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<s>", "\u2581sea", "<0x0A>", "<0x0A>"],
        "tokenizer.ggml.token_type": [3, 1, 6, 1],
    }
    table = token_table(metadata)
    assert table.detokenise([0, 1, 2, 3]) == b" sea\n<0x0A>"
    assert table.strip_leading_space


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGML" + bytes(20),
        SMALL[:-1],
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
        gguf(string("k") + struct.pack("<IQ", 8, 2**50)),
        gguf(pair("k", 9, struct.pack("<IQ", 8, 2**50))),
        gguf(pair("k", 9, struct.pack("<IQ", 4, 2**50))),
        gguf(pair("k", 9, struct.pack("<IQIQ", 9, 1, 9, 1))),
        gguf(pair("k", 77, b"")),
        gguf(tensors=string("w") + struct.pack("<I", 2**31), count=1),
    ],
)
def test_a_file_that_claims_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_gguf(data)


@given(st.integers(0, len(SMALL) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused_but_never_breaks(at: int, noise: bytes) -> None:
    damaged = SMALL[:at] + noise + SMALL[at + len(noise) :]
    try:
        metadata, _ = parse_gguf(damaged)
        token_table(metadata)
    except BombyxError:
        return


def test_a_digest_tells_its_progress(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(3_000_000))
    seen: list[tuple[int, int]] = []
    assert (
        file_digest(path, lambda done, total: seen.append((done, total))) == hashlib.sha256(bytes(3_000_000)).digest()
    )
    assert seen[-1] == (3_000_000, 3_000_000)
    assert len(seen) == 3


@pytest.mark.parametrize("package", ["no_such_package_at_all", "json"])
def test_a_package_without_a_model_is_a_wrong_setting(package: str) -> None:
    with pytest.raises(ConfigError):
        find_packaged_model(package)


def test_a_file_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_gguf(tmp_path / "none.gguf")
