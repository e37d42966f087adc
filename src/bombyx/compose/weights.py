# SPDX-License-Identifier: Apache-2.0
"""The models a validator, or `bombyx audit`, can re-run, by what manifests call them: files, or a server of ours."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bombyx.adapters.end_tokens import end_tokens
from bombyx.adapters.gguf import file_digest, find_packaged_model, read_gguf
from bombyx.adapters.llama_api import LlamaModel
from bombyx.adapters.prefill_llama import LlamaPrefill
from bombyx.adapters.prefill_vllm import VllmPrefill
from bombyx.compose.external import read_manifest, read_tokens
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.validator.examine import Identity, Weights, identity


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


async def open_served(url: str, *, manifest: str, tokens: str, ends: str) -> dict[Identity, Weights]:
    """The model a vLLM on loopback serves under its manifest's name. Raises `ConfigError`.

    Not checked: that it read the files the manifest names. It is the validator's own."""
    told = await asyncio.to_thread(read_manifest, manifest)
    data = await asyncio.to_thread(read_tokens, tokens, told)
    if told is None or data is None:
        raise ConfigError("a model served elsewhere needs its manifest and its token table", rule="AUD-55")
    table = TokenTable.decode(data)
    last = tuple(int(part) for part in ends.split(",")) if ends else await asyncio.to_thread(end_tokens, table)
    if not last:
        raise ConfigError("no end-of-generation token is known by its name: give --ends", rule="JDG-4")
    return {identity(told): Weights(prefill=VllmPrefill(url, model=told.name), ends=last, table=table)}


def _ends(file: Path, turn: int | None) -> tuple[int, ...]:
    """Every id that ends a generation, as the runtime knows them; first the one a file's metadata names."""
    model = LlamaModel(file)
    try:
        ends = (token for token in range(model.size) if model.is_end(token))
        return tuple(sorted(ends, key=lambda token: (token != turn, token)))
    finally:
        model.close()
