# SPDX-License-Identifier: Apache-2.0
"""A model's folder as a manifest (ENC-10)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bombyx.adapters.model_files import EngineChoice, model_manifest
from bombyx.cli.model import app
from bombyx.errors import ConfigError
from bombyx.protocol.audit.calibration import DEFAULT, to_json
from bombyx.protocol.primitives import Digest, sha256
from bombyx.protocol.wire.evidence import ModelManifest

ENGINE = EngineChoice(engine="vllm 0.11", arguments=("--dtype", "bfloat16"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "original").mkdir(parents=True)
    (model / "model-00001.safetensors").write_bytes(b"weights 1")
    (model / "original" / "more.safetensors").write_bytes(b"weights 2")
    (model / "tokenizer.json").write_bytes(b"{}")
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 4096, "torch_dtype": "bfloat16"}))
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 200}}))
    (model / "README.md").write_text("words")
    (model / ".cache").mkdir()
    (model / ".cache" / "x").write_text("x")
    return model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_model.safetensors").write_bytes(b"delta")
    return lora


def digest(folder: Path, *adapters: Path, engine: EngineChoice = ENGINE) -> Digest:
    return model_manifest(folder, name="m", engine=engine, adapters=adapters).digest()


def test_every_file_that_shapes_answers_is_counted(folder: Path) -> None:
    """ENC-10."""
    made = model_manifest(folder, name="m", engine=ENGINE)
    assert [file.name for file in made.weights] == [
        "config.json",
        "model-00001.safetensors",
        "model.safetensors.index.json",
        "original/more.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert made.weights[1].sha256 == sha256(b"weights 1")
    assert made.chat_template == sha256(b"{{ messages }}")
    assert (made.context, made.quantisation, made.parameters) == (4096, "bfloat16", 100)


@pytest.mark.parametrize("name", ["model-00001.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_changed_byte_is_another_model(name: str, folder: Path) -> None:
    """ENC-10."""
    before = digest(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert digest(folder) != before


def test_adapters_arguments_and_engine_are_part_of_it(folder: Path, adapter: Path) -> None:
    """ENC-10: a LoRA or a sampling default loaded beside honest weights is another model."""
    digests = {
        digest(folder),
        digest(folder, adapter),
        digest(folder, engine=EngineChoice(engine="vllm 0.11", arguments=("--dtype", "float16"))),
        digest(folder, engine=EngineChoice(engine="vllm 0.12", arguments=ENGINE.arguments)),
    }
    assert len(digests) == 4


def test_the_same_files_elsewhere_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    """ENC-10: words about the model do not count, nor does where it lies."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("other words")
    assert digest(copy) == digest(folder)


def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """ENC-10: what it leads to can be changed unseen."""
    (tmp_path / "elsewhere").write_bytes(b"x")
    (folder / "extra.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="link"):
        digest(folder)


def test_no_model_at_all(tmp_path: Path) -> None:
    """ENC-10."""
    with pytest.raises(ConfigError):
        digest(tmp_path)
    with pytest.raises(ConfigError):
        digest(tmp_path / "none")


def test_progress_ends_at_the_whole(folder: Path, adapter: Path) -> None:
    """ENC-10: bytes of all files, in order."""
    seen: list[tuple[int, int]] = []
    model_manifest(
        folder, name="m", engine=ENGINE, adapters=[adapter], progress=lambda _, done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_the_command_writes_what_it_shows(folder: Path, tmp_path: Path) -> None:
    """ENC-10."""
    out = tmp_path / "manifest.cbor"
    options = ["--engine", "vllm 0.11", "--argument=--dtype", "--argument=bfloat16", "--name", "m"]
    ran = CliRunner().invoke(app, ["manifest", str(folder), *options, "--json", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.output)
    assert told["digest"] == sha256(out.read_bytes()).hex() == digest(folder).hex()
    assert told["arguments"] == ["--dtype", "bfloat16"]


def test_a_calibration_is_part_of_the_model(folder: Path, tmp_path: Path) -> None:
    """JDG-6, JDG-7: what a worker is judged by is what it published; a file that is none makes no manifest."""
    out, measured = tmp_path / "manifest.cbor", tmp_path / "calibration.json"
    measured.write_text(to_json(replace(DEFAULT, family="vllm 0.11 h100", responses=2_000)))
    options = ["--engine", "vllm 0.11", "--name", "m", "--out", str(out), "--calibration", str(measured)]
    ran = CliRunner().invoke(app, ["manifest", str(folder), *options])
    assert ran.exit_code == 0, ran.output
    assert "vllm 0.11 h100, from 2000 honest answers" in ran.output
    made = ModelManifest.decode(out.read_bytes())
    assert made.calibration == replace(DEFAULT, family="vllm 0.11 h100", responses=2_000)
    assert replace(made, calibration=None).digest() != made.digest()
    measured.write_text("{}")
    refused = CliRunner().invoke(app, ["manifest", str(folder), *options])
    assert isinstance(refused.exception, ConfigError)
    assert "no calibration" in str(refused.exception)
