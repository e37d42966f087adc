# SPDX-License-Identifier: Apache-2.0
"""The models a validator, or `bombyx audit`, can re-run: files on this machine, by what manifests call them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bombyx.adapters.gguf import file_digest, find_packaged_model, read_gguf
from bombyx.adapters.llama_api import LlamaModel
from bombyx.adapters.prefill_llama import LlamaPrefill
from bombyx.protocol.primitives import sha256
from bombyx.roles.validator.examine import Identity, Weights


async def open_weights(path: Path | None, *, context: int, threads: int) -> dict[Identity, Weights]:
    """The GGUF file at `path`, or the packaged model. Close each one's `prefill`."""
    file = path or find_packaged_model()
    facts = await asyncio.to_thread(read_gguf, file)
    digest = await asyncio.to_thread(file_digest, file)
    template = sha256(facts.chat_template.encode()) if facts.chat_template else None
    name = (sha256(digest), sha256(facts.tokens.encode()), template)
    prefill = LlamaPrefill(file, context=context, threads=threads)
    ends = await asyncio.to_thread(_ends, file, facts.end_of_text)
    return {name: Weights(prefill=prefill, ends=ends, table=facts.tokens)}


def _ends(file: Path, turn: int | None) -> tuple[int, ...]:
    """Every id that ends a generation, as the runtime knows them; first the one a file's metadata names."""
    model = LlamaModel(file)
    try:
        ends = (token for token in range(model.size) if model.is_end(token))
        return tuple(sorted(ends, key=lambda token: (token != turn, token)))
    finally:
        model.close()
