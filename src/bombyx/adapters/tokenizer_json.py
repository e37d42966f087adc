# SPDX-License-Identifier: Apache-2.0
"""A token table from a folder's `tokenizer.json` (the `tokenizers` library's form). It is NOT a tokenizer.

Read are the two families whose ids have bytes of their own: byte-level (GPT-2's alphabet) and sentencepiece (a space is
U+2581, `<0xAB>` a byte). Any other has no table, and a client then cannot hold text against ids.

Always: the file is foreign: its size, its ids and what each stands for are bounded and typed, or it is
`MalformedMessage`. An id the vocabulary leaves out stands for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage
from bombyx.protocol.wire.tokens import MAX_TOKENS, TokenTable

MAX_FILE: Final = 64 << 20  # bytes; that of a model with 262 000 tokens has 34 MB
MAX_DEPTH: Final = 8  # decoders inside decoders
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "\u2581"


def parse_tokenizer(raw: bytes) -> TokenTable:
    """Raises `MalformedMessage`, also for a family that has no table."""
    if len(raw) > MAX_FILE:
        raise _malformed(f"{len(raw)} bytes, at most {MAX_FILE}")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise _malformed("not JSON") from None
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict):
        raise _malformed("no model")
    kinds = frozenset(_kinds(document.get("decoder"))) | frozenset(_kinds(document.get("pre_tokenizer")))
    words, added = _vocabulary(model), _added(document)
    byte_level, spaces = "ByteLevel" in kinds, bool(kinds & {"Metaspace", "Replace"})
    if byte_level == spaces:
        raise _malformed("neither byte-level nor sentencepiece: its ids have no bytes of their own")
    size = max((*words, *added), default=-1) + 1
    pieces = [b""] * size
    for token, word in words.items():
        pieces[token] = byte_level_bytes(word) if byte_level else sentencepiece_bytes(word)
    special = set(range(size)) - words.keys() - added.keys()
    for token, (word, hidden) in added.items():
        pieces[token] = raw_bytes(word)
        if hidden:
            special.add(token)
    return TokenTable.build(pieces, special, strip_leading_space=spaces and _strips(document))


def _vocabulary(model: dict[str, Any]) -> dict[int, str]:
    listed = model.get("vocab")
    if isinstance(listed, list):  # Unigram: pairs of word and score
        named = enumerate(one[0] if isinstance(one, list) and one else None for one in listed)
    elif isinstance(listed, dict):
        named = ((token, word) for word, token in listed.items())  # type: ignore[assignment]
    else:
        raise _malformed("no vocabulary")
    words: dict[int, str] = {}
    for token, word in named:
        if not _is_id(token) or not isinstance(word, str) or token in words:
            raise _malformed("a vocabulary of other things than words and their own ids")
        words[token] = word
    return words


def _added(document: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    listed = document.get("added_tokens") or []
    if not isinstance(listed, list) or len(listed) > MAX_TOKENS:
        raise _malformed("added_tokens is not a list")
    found: dict[int, tuple[str, bool]] = {}
    for one in listed:
        token, word = (one.get("id"), one.get("content")) if isinstance(one, dict) else (None, None)
        if not _is_id(token) or not isinstance(word, str):
            raise _malformed("an added token without id or content")
        found[token] = (word, one.get("special") is True)  # type: ignore[index]
    return found


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < MAX_TOKENS


def _kinds(part: Any, depth: int = 0) -> Iterator[str]:
    """The types of a decoder or pre-tokenizer and of those in it; of `Replace`, those that turn U+2581 into a space."""
    if not isinstance(part, dict) or depth > MAX_DEPTH:
        return
    kind = part.get("type")
    if isinstance(kind, str) and (kind != "Replace" or part.get("content") == " "):
        yield kind
    for name in ("decoders", "pretokenizers"):
        inner = part.get(name)
        for one in inner if isinstance(inner, list) else []:
            yield from _kinds(one, depth + 1)


def _strips(document: dict[str, Any]) -> bool:
    """Whether a text may lack the first token's leading space."""
    decoder = document.get("decoder")
    if "Strip" in _kinds(decoder):
        return True
    parts = [decoder, document.get("pre_tokenizer")]
    spaced = [one for one in parts if isinstance(one, dict) and one.get("type") == "Metaspace"]
    return any(one.get("prepend_scheme") != "never" and one.get("add_prefix_space") is not False for one in spaced)


# WORDS


def byte_level_bytes(word: str) -> bytes:
    """A word in GPT-2's alphabet. One that was never written in it stands for itself."""
    try:
        return bytes(_BYTE_OF[letter] for letter in word)
    except KeyError:
        return raw_bytes(word)


def sentencepiece_bytes(word: str) -> bytes:
    byte = _BYTE.fullmatch(word)
    return bytes((int(byte[1], 16),)) if byte else raw_bytes(word.replace(_SPACE, " "))


def raw_bytes(word: str) -> bytes:
    """A lone surrogate is a byte that was no UTF-8, or is refused."""
    try:
        return word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _malformed("a token that is no text") from None


def _byte_letters() -> dict[str, int]:
    """GPT-2's printable letter for each byte: itself where it prints, else 256, 257, ... in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in printable)
    return letters | {chr(256 + at): byte for at, byte in enumerate(hidden)}


_BYTE_OF: Final = _byte_letters()


def _malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"tokenizer.json: {what}", rule="ENC-10")
