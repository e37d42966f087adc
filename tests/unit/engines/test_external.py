# SPDX-License-Identifier: Apache-2.0
"""An external engine with a manifest: what `bombyx model manifest` wrote, the engine's own list, and every misfit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.unit.engines.fake_server import FakeServer
from typer.testing import CliRunner

from bombyx.cli.app import app
from bombyx.compose.external import external
from bombyx.compose.worker import _model
from bombyx.config import WorkerConfig
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import sha256
from bombyx.protocol.wire.evidence import ModelManifest
from bombyx.protocol.wire.tokens import TokenTable


class Made:
    """A folder of a model, and what the command makes of it."""

    def __init__(self, root: Path, *options: str) -> None:
        self.folder, self.manifest, self.tokens = root / "model", root / "m.manifest", root / "m.tokens"
        self.folder.mkdir()
        (self.folder / "model.safetensors").write_bytes(b"weights")
        vocabulary = {"vocab": {"a": 0, "b": 1}}
        tokenizer = {"model": vocabulary, "decoder": {"type": "ByteLevel"}}
        (self.folder / "tokenizer.json").write_bytes(orjson.dumps(tokenizer))
        arguments = ["model", "manifest", str(self.folder), "--name", "fake", "--engine", "vllm 0.11", *options]
        files = ["--out", str(self.manifest), "--tokens", str(self.tokens)]
        self.result = CliRunner().invoke(app, [*arguments, *files])
        assert self.result.exit_code == 0, self.result.output

    def config(self, url: str, **changes: Any) -> WorkerConfig:
        given = WorkerConfig(engine=url, manifest=str(self.manifest), tokens=str(self.tokens))
        return replace(given, **changes)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


async def test_a_worker_offers_the_manifest_it_was_given(made: Made) -> None:
    """ENC-10: `bombyx worker --engine URL --manifest FILE --tokens FILE`: weights pinned, ids checkable."""
    async with FakeServer(owner="vllm") as server:
        model = await external(made.config(server.url))
        await model.engine.close()
    assert model.manifest.weights and model.manifest.engine == "vllm 0.11"
    assert model.token_table is not None and sha256(model.token_table) == model.manifest.tokenizer
    assert TokenTable.decode(model.token_table).detokenise([0, 1]) == b"ab"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "another"}, "the manifest is of 'fake'"),
        ({"tokens": ""}, "give it with --tokens"),
        ({"manifest": "/nowhere/at/all"}, "cannot read"),
        ({"manifest": ""}, "is not the token table that the manifest names"),
    ],
    ids=["name", "no table", "no file", "table without manifest"],
)
async def test_what_does_not_fit_together(made: Made, changes: dict[str, Any], why: str) -> None:
    """ENC-10: the worker does not start."""
    async with FakeServer(owner="vllm") as server:
        with pytest.raises(ConfigError, match=why):
            await external(made.config(server.url, **changes))


async def test_an_engine_that_does_not_serve_the_manifests_model(tmp_path: Path) -> None:
    """ENC-10: the engine lists `fake`, the manifest says another name."""
    other = Made(tmp_path, "--name", "somebody/else")
    async with FakeServer(owner="vllm") as server:
        with pytest.raises(ConfigError, match="the engine serves fake, not 'somebody/else'"):
            await external(other.config(server.url))


@pytest.mark.parametrize("data", [b"", b"nonsense", b"x" * 300_000], ids=["empty", "nonsense", "large"])
async def test_files_that_are_neither(made: Made, data: bytes) -> None:
    """ENC-10."""
    for file, words in ((made.manifest, "manifest"), (made.tokens, "token table")):
        kept = file.read_bytes()
        file.write_bytes(data)
        async with FakeServer(owner="vllm") as server:
            with pytest.raises(ConfigError, match=rf"{words}|more than"):
                await external(made.config(server.url))
        file.write_bytes(kept)


async def test_a_table_the_manifest_names_but_nobody_can_read(made: Made) -> None:
    """ENC-10: its digest fits and its parts do not."""
    manifest = ModelManifest.decode(made.manifest.read_bytes())
    made.tokens.write_bytes(b"no table")
    made.manifest.write_bytes(replace(manifest, tokenizer=sha256(b"no table")).encode())
    async with FakeServer(owner="vllm") as server:
        with pytest.raises(ConfigError, match="is no token table"):
            await external(made.config(server.url))


async def test_the_embedded_engine_takes_no_manifest(made: Made) -> None:
    """ENC-10: it hashes its own file."""
    with pytest.raises(ConfigError, match="makes its own manifest"):
        await _model(made.config("embedded"))


def test_a_folder_without_a_table_says_so(tmp_path: Path) -> None:
    """ENC-10: WordPiece: no table is written, the manifest names none."""
    made = Made(tmp_path)
    (made.folder / "tokenizer.json").write_bytes(b'{"model": {"vocab": {}}, "decoder": {"type": "WordPiece"}}')
    result = CliRunner().invoke(app, ["model", "manifest", str(made.folder)])
    assert result.exit_code == 0 and "none: clients cannot hold text" in result.output
    refused = CliRunner().invoke(app, ["model", "manifest", str(made.folder), "--tokens", str(made.tokens)])
    assert isinstance(refused.exception, ConfigError)
