# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through its C API, as the pinned wheel's shared object exports it: raw logits, which its server withholds.

Both sides of an audit stand on this: the auditable engine decodes with it, a Verifier prefills with it. NOT a sampler,
and knows nothing of requests.

Always: a library of another build, or one whose structs differ from ours, is refused before a model is loaded; nothing
llama.cpp logs is written anywhere (it quotes prompts); a failed call raises `EngineUnavailable`; the GIL is free while
it computes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import cffi
import numpy as np
import numpy.typing as npt

from bombyx.adapters.llama_header import LLAMA_H, PACKAGE, VERSION
from bombyx.errors import ConfigError, EngineUnavailable

MAX_PIECE: Final = 4_096  # bytes of one token
DEFAULT_BATCH: Final = 512  # tokens of one decode call, and of one pass over the weights

Row = npt.NDArray[np.float32]  # one logit per token of the vocabulary


class Item(NamedTuple):
    """One token at one position of one sequence. `wanted`: its logits, which predict the next token."""

    token: int
    position: int
    sequence: int
    wanted: bool


class _Library(NamedTuple):
    ffi: Any
    calls: Any
    silence: Any  # the log callback: must live as long as the library


@functools.cache
def library() -> _Library:
    """The shared object, once per process. Raises `ConfigError` when it is not the build we know."""
    found = importlib.util.find_spec(PACKAGE)
    places = (found.submodule_search_locations if found else None) or ()
    files = sorted(file for place in places for file in Path(place).glob("xllamacpp.abi3.*"))
    if len(files) != 1:
        raise ConfigError(f"{PACKAGE} is not installed; it comes with bombyx[worker] and bombyx[validator]")
    version = importlib.metadata.version(PACKAGE)
    if version != VERSION:
        raise ConfigError(f"{PACKAGE} {version} is installed; {VERSION} is the build whose interface is known here")
    ffi = cffi.FFI()
    ffi.cdef(LLAMA_H)
    calls = ffi.dlopen(str(files[0]))
    silence = ffi.callback("ggml_log_callback", lambda _level, _text, _data: None)
    calls.llama_log_set(silence, ffi.NULL)
    _check_layout(ffi, calls)
    calls.llama_backend_init()
    return _Library(ffi, calls, silence)


def _check_layout(ffi: Any, calls: Any) -> None:
    """The library's own defaults, read through our structs: a field out of place shows here."""
    model, context = calls.llama_model_default_params(), calls.llama_context_default_params()
    fits = (
        context.n_ctx == 512
        and context.n_seq_max == 1
        and context.type_k == context.type_v == 1
        and context.offload_kqv
        and context.op_offload
        and not context.embeddings
        and context.abort_callback == ffi.NULL
        and context.samplers == ffi.NULL
        and context.n_samplers == 0
        and context.ctx_other == ffi.NULL
        and model.kv_overrides == ffi.NULL
        and not model.vocab_only
        and model.use_extra_bufts
    )
    if not fits:
        raise ConfigError("this build of llama.cpp lays out its parameters differently from what is known here")


class LlamaModel:
    """Weights and vocabulary, loaded once. Contexts share it."""

    def __init__(self, path: Path) -> None:
        self._ffi, self._calls, _ = library()
        self.pointer = self._calls.llama_model_load_from_file(
            str(path).encode(), self._calls.llama_model_default_params()
        )
        if self.pointer == self._ffi.NULL:
            raise EngineUnavailable(f"llama.cpp does not load {path.name}")
        self._vocab = self._calls.llama_model_get_vocab(self.pointer)
        self.size: int = self._calls.llama_vocab_n_tokens(self._vocab)
        self.trained_context: int = self._calls.llama_model_n_ctx_train(self.pointer)
        self.adds_bos: bool = self._calls.llama_vocab_get_add_bos(self._vocab)
        self._pieces: dict[int, bytes] = {}

    @property
    def causal(self) -> bool:
        """A plain decoder, whose sequences can be cut and copied: what an audit needs."""
        model, calls = self.pointer, self._calls
        others = (calls.llama_model_has_encoder, calls.llama_model_is_recurrent, calls.llama_model_is_hybrid)
        return not any(is_other(model) for is_other in others)

    def tokenise(self, text: str, *, specials: bool = True) -> tuple[int, ...]:
        """Ids of `text`; `specials`: with BOS where the model adds one. Control tokens written out are read as such."""
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 16
        ids = self._ffi.new("llama_token[]", room)
        count = self._calls.llama_tokenize(self._vocab, data, len(data), ids, room, specials, True)
        if count < 0:
            raise EngineUnavailable("llama.cpp could not tokenise the prompt")
        return tuple(self._ffi.unpack(ids, count)) if count else ()

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; nothing for control tokens, unless `special`."""
        if not special and (known := self._pieces.get(token)) is not None:
            return known
        if not 0 <= token < self.size:
            raise EngineUnavailable("a token the model does not have")
        buffer = self._ffi.new("char[]", MAX_PIECE)
        count = self._calls.llama_token_to_piece(self._vocab, token, buffer, MAX_PIECE, 0, special)
        found = bytes(self._ffi.buffer(buffer, max(count, 0)))
        if not special:
            self._pieces[token] = found
        return found

    def is_end(self, token: int) -> bool:
        """Does this token end a generation?"""
        return bool(self._calls.llama_vocab_is_eog(self._vocab, token))

    @property
    def bos(self) -> str:
        return self._name(self._calls.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        return self._name(self._calls.llama_vocab_eos(self._vocab))

    def _name(self, token: int) -> str:
        if token < 0:
            return ""
        name: bytes = self._ffi.string(self._calls.llama_vocab_get_text(self._vocab, token))
        return name.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The model's own, as its file holds it."""
        found = self._calls.llama_model_chat_template(self.pointer, self._ffi.NULL)
        return None if found == self._ffi.NULL else str(self._ffi.string(found).decode("utf-8", "replace"))

    def close(self) -> None:
        if self.pointer != self._ffi.NULL:
            self._calls.llama_model_free(self.pointer)
            self.pointer = self._ffi.NULL


class LlamaContext:
    """A key-value cache of several sequences, and the way to compute on it. Used by one thread at a time."""

    def __init__(
        self,
        model: LlamaModel,
        *,
        context: int,
        sequences: int = 1,
        threads: int = 1,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        """`context` is tokens of each sequence; `batch` the most tokens of one `decode`."""
        self._ffi, self._calls, _ = library()
        params = self._calls.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False  # each sequence attends to its own cells only, and has as many as every other
        self.pointer = self._calls.llama_init_from_model(model.pointer, params)
        if self.pointer == self._ffi.NULL:
            raise EngineUnavailable("llama.cpp could not make room for the context asked for")
        self._memory = self._calls.llama_get_memory(self.pointer)
        self._batch = self._calls.llama_batch_init(batch, 0, 1)
        self.batch = batch
        self._row_bytes = 4 * model.size

    def decode(self, items: Sequence[Item]) -> Iterator[tuple[int, Row]]:
        """Compute; yields (index, logits) of each item wanted. A row is valid until the next `decode`, not longer."""
        if len(items) > self.batch:
            raise ValueError(f"at most {self.batch} tokens at once")
        self._fill(items)
        failed = self._calls.llama_decode(self.pointer, self._batch)
        if failed:
            raise EngineUnavailable(f"llama.cpp could not compute (code {failed})")
        return self._rows(items)

    def _fill(self, items: Iterable[Item]) -> None:
        batch = self._batch
        tokens, positions, counts, sequences, wanted = (
            batch.token,
            batch.pos,
            batch.n_seq_id,
            batch.seq_id,
            batch.logits,
        )
        place = 0
        for place, item in enumerate(items, start=1):
            at = place - 1
            tokens[at], positions[at], counts[at] = item.token, item.position, 1
            sequences[at][0] = item.sequence
            wanted[at] = item.wanted
        batch.n_tokens = place

    def _rows(self, items: Sequence[Item]) -> Iterator[tuple[int, Row]]:
        for index, item in enumerate(items):
            if item.wanted:
                logits = self._calls.llama_get_logits_ith(self.pointer, index)
                if logits == self._ffi.NULL:
                    raise EngineUnavailable("llama.cpp gave no logits")
                yield index, np.frombuffer(self._ffi.buffer(logits, self._row_bytes), dtype=np.float32)

    def cut(self, sequence: int, start: int = 0) -> None:
        """Forget everything of a sequence from position `start` on."""
        if not self._calls.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise EngineUnavailable("llama.cpp could not forget a part of a sequence")

    def copy(self, source: int, target: int) -> None:
        """Make `target` a copy of the whole of `source`; what it held is forgotten."""
        self.cut(target)
        self._calls.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear(self) -> None:
        self._calls.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        if self.pointer != self._ffi.NULL:
            self._calls.llama_batch_free(self._batch)
            self._calls.llama_free(self.pointer)
            self.pointer = self._ffi.NULL
