# SPDX-License-Identifier: Apache-2.0
"""A model server we did not start, as what a worker serves: its dialect, its name, and the manifest it was given.

Always: without a manifest it pins no weights, and says so by having none; with one, the name, the token table and what
the engine lists fit together, or the worker does not start. Not here: proof that the engine read the files hashed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from bombyx.adapters.engine_dialect import Dialect
from bombyx.adapters.engine_openai import OpenAIEngine
from bombyx.adapters.token_gaps import TokenIndex
from bombyx.config import WorkerConfig
from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.tokens import TokenTable
from bombyx.roles.worker.settings import ServedModel

AUTO = "auto"


async def external(config: WorkerConfig) -> ServedModel:
    """Raises `ConfigError`, or `EngineUnavailable` where nobody answers."""
    given, manifest = _dialect(config), await asyncio.to_thread(read_manifest, config.manifest)
    table = await asyncio.to_thread(read_tokens, config.tokens, manifest)
    index = None if table is None else await asyncio.to_thread(TokenIndex, TokenTable.decode(table))
    build = "" if manifest is None else manifest.engine
    engine = OpenAIEngine(config.engine, dialect=given or Dialect.PLAIN, index=index, build=build)
    try:
        dialect = given or await engine.detect()
        name = _name(config, manifest, await engine.models())
    except BaseException:
        await engine.close()
        raise
    return ServedModel(manifest=manifest or _unpinned(name, dialect), engine=engine, token_table=table)


def _name(config: WorkerConfig, manifest: ModelManifest | None, served: tuple[str, ...]) -> str:
    """What applications call it. The engine must answer to it."""
    if manifest is not None and config.model not in ("", manifest.name):
        raise ConfigError(f"the manifest is of {manifest.name!r}, the model offered is {config.model!r}", rule="ENC-10")
    name = manifest.name if manifest is not None else config.model or (served[0] if served else "")
    if name not in served:
        raise ConfigError(f"the engine serves {', '.join(served) or 'no model'}, not {name!r}")
    return name


def _unpinned(name: str, dialect: Dialect) -> ModelManifest:
    return ModelManifest(
        v=1,
        name=name,
        weights=(),
        tokenizer=None,
        chat_template=None,
        quantisation="unknown",
        engine=f"external ({dialect})",
        arguments=(),
        context=0,
        parameters=0,
    )


# FILES


def read_manifest(path: str) -> ModelManifest | None:
    """None: none is named."""
    if not path:
        return None
    try:
        return ModelManifest.decode(_read(path, ModelManifest.MAX_SIZE))
    except MalformedMessage as error:
        raise ConfigError(f"{path} is no manifest of `bombyx model manifest`: {error.message}") from None


def read_tokens(path: str, manifest: ModelManifest | None) -> bytes | None:
    """The table's bytes: those the manifest names, so that clients can hold text against ids."""
    named = manifest.tokenizer if manifest is not None else None
    if not path:
        if named is not None:
            raise ConfigError("the manifest names a token table: give it with --tokens", rule="ENC-10")
        return None
    data = _read(path, TokenTable.MAX_SIZE)
    if named is None or sha256(data) != named:
        raise ConfigError(f"{path} is not the token table that the manifest names", rule="ENC-10")
    try:
        TokenTable.decode(data)
    except MalformedMessage as error:
        raise ConfigError(f"{path} is no token table: {error.message}") from None
    return data


def _read(path: str, most: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > most:
        raise ConfigError(f"{path} has more than {most} bytes")
    return data


def _dialect(config: WorkerConfig) -> Dialect | None:
    """None: ask the engine."""
    if config.dialect == AUTO:
        return None
    try:
        return Dialect(config.dialect)
    except ValueError:
        raise ConfigError(f"worker.dialect is one of {AUTO}, {', '.join(Dialect)}, not {config.dialect!r}") from None
