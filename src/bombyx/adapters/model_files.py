# SPDX-License-Identifier: Apache-2.0
"""A model's folder as a `ModelManifest`: every file that shapes its answers, hashed (spec ATT-4, ENC-10).

Counted: weights, tokenizer and its configuration, chat templates, adapters (LoRA), the model's configuration. Left out
by name: what no engine reads (licences, pictures, dotfiles). Every other file is counted too: better one too many.

Not here: proof that the engine read these bytes. That takes an image that hashes before it starts, on read-only
weights.
Always: names are relative and sorted, so the same files give the same manifest on any machine; links out of the folder
are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bombyx.adapters.gguf import file_digest, read_gguf
from bombyx.adapters.tokenizer_json import MAX_FILE, parse_tokenizer
from bombyx.errors import ConfigError, MalformedMessage
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.evidence import FileDigest, ModelManifest
from bombyx.protocol.wire.tokens import TokenTable

MAX_FILES: Final = 4_096
MAX_JSON: Final = 64 << 20  # bytes of a configuration file we look into
_SKIPPED: Final = frozenset({".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".gitattributes", ".lock"})
_LICENCES: Final = ("license", "licence", "notice", "use_policy")
Progress = Callable[[str, int, int], None]  # file, bytes done of all, bytes of all


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What runs the files, and how: part of what the model is."""

    engine: str
    arguments: tuple[str, ...] = ()


def model_manifest(
    folder: Path, *, name: str, engine: EngineChoice, adapters: Sequence[Path] = (), progress: Progress | None = None
) -> ModelManifest:
    """Hash everything. `adapters` are folders of their own, named `adapter:FOLDER/...`. Raises `ConfigError`."""
    named = [*_files(folder, "")]
    for adapter in adapters:
        named += _files(adapter, f"adapter:{adapter.resolve().name}/")
    if not named or len({label for label, _ in named}) != len(named):
        raise ConfigError(f"{folder} holds no file of a model, or two files of one name")
    total = sum(path.stat().st_size for _, path in named)
    digests, done = [], 0
    for label, path in sorted(named):
        start = done
        seen = None if progress is None else _reporter(progress, label, start, total)
        size = path.stat().st_size
        digests.append(FileDigest(name=label, sha256=file_digest(path, seen), size=size))
        done += size
    facts = _facts(folder)
    table = token_table_of(folder)
    return ModelManifest(
        v=1,
        name=name,
        weights=tuple(digests),
        tokenizer=None if table is None else sha256(table.encode()),
        chat_template=facts.chat_template,
        quantisation=facts.quantisation,
        engine=engine.engine,
        arguments=engine.arguments,
        context=facts.context,
        parameters=facts.parameters,
    )


def token_table_of(folder: Path) -> TokenTable | None:
    """What the folder's tokenizer's ids stand for; None where there is none, or of a family that has no table.

    Raises `MalformedMessage` for a GGUF file that is broken.
    """
    gguf, described = sorted(folder.glob("*.gguf")), folder / "tokenizer.json"
    if len(gguf) == 1:
        return read_gguf(gguf[0]).tokens
    if not described.is_file() or described.stat().st_size > MAX_FILE:
        return None
    try:
        return parse_tokenizer(described.read_bytes())
    except MalformedMessage:
        return None


def _reporter(progress: Progress, label: str, start: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(label, start + done, total)


def _files(folder: Path, prefix: str) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    top = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or _ignored(relative):
            continue
        if path.is_symlink() and not _inside(path, top):
            raise ConfigError(f"{relative} is a link out of the folder: what it leads to could be changed unseen")
        found.append((prefix + relative.as_posix(), path))
        if len(found) > MAX_FILES:
            raise ConfigError(f"{folder} holds more than {MAX_FILES} files")
    return found


def _inside(path: Path, top: Path) -> bool:
    """Within the folder, or the content store that model hubs keep beside their snapshots."""
    target = path.resolve()
    return target.is_relative_to(top) or target.parent == top.parent.parent / "blobs"


def _ignored(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return hidden or relative.suffix.lower() in _SKIPPED or relative.name.lower().startswith(_LICENCES)


# --- what the files say of themselves --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    chat_template: Digest | None = None
    quantisation: str = "unknown"
    context: int = 0
    parameters: int = 0


def _facts(folder: Path) -> _Facts:
    gguf = sorted(folder.glob("*.gguf"))
    if len(gguf) == 1:
        read = read_gguf(gguf[0])
        return _Facts(
            chat_template=sha256(read.chat_template.encode()) if read.chat_template else None,
            quantisation=read.quantisation,
            context=read.context,
            parameters=read.parameters,
        )
    config, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    template = _template(folder, tokenizer)
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else config.get("torch_dtype")
    context = config.get("max_position_embeddings")
    return _Facts(
        chat_template=sha256(template.encode()) if template else None,
        quantisation=method if isinstance(method, str) else "unknown",
        context=context if isinstance(context, int) and 0 <= context < 2**31 else 0,
        parameters=_parameters(folder),
    )


def _template(folder: Path, tokenizer: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template = tokenizer.get("chat_template")
    return template if isinstance(template, str) else ""


def _parameters(folder: Path) -> int:
    """A rough count, for people: bytes of the weights as the index states them, at two bytes each."""
    size = _json(folder / "model.safetensors.index.json").get("metadata", {})
    total = size.get("total_size") if isinstance(size, dict) else None
    return total // 2 if isinstance(total, int) and total > 0 else 0


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= MAX_JSON else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path.name}: {type(error).__name__}") from None
    return value if isinstance(value, dict) else {}
