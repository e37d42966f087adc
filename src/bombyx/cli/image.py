# SPDX-License-Identifier: Apache-2.0
"""`bombyx image ...`: an app-compose file for an image built here, and what can be known of its measurements.

What cannot be computed from files is named, not guessed.
"""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from bombyx.cli.output import print_json
from bombyx.errors import ConfigError
from bombyx.protocol.attest.expected import BootFacts, Expected, expect
from bombyx.protocol.wire.evidence import ModelManifest

app = typer.Typer(help="Enclave images and their measurements.", no_args_is_help=True)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
HexOption = Annotated[str | None, typer.Option(help="as a boot's event log shows it, in hex")]


@app.command()
def compose(
    template: Annotated[Path, typer.Argument(help="app-compose file with ${DIGEST} and ${NETWORK}")],
    digest: Annotated[str, typer.Option(help="the image's manifest digest, or a file that holds it")],
    network: Annotated[Path, typer.Option(help="network descriptor the worker joins")],
    out: Annotated[Path, typer.Option(help="where to write the app-compose file")],
) -> None:
    """Fill in an app-compose file and write its canonical bytes: what dstack measures."""
    image = digest if _DIGEST.fullmatch(digest) else _read(Path(digest)).decode().strip()
    if not _DIGEST.fullmatch(image):
        raise ConfigError(f"{digest} is no sha256 digest, nor a file that holds one")
    document = _json(template)
    joined = json_module.dumps(json_module.loads(_read(network)), sort_keys=True, separators=(",", ":"))
    filled = document.get("docker_compose_file", "").replace("${DIGEST}", image)
    # the compose file's own variables begin with a dollar sign: double what is data
    document["docker_compose_file"] = filled.replace("${NETWORK}", joined.replace("$", "$$"))
    canonical = json_module.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    out.write_bytes(canonical)
    typer.echo(expect(canonical).compose_hash.hex())


@app.command()
def measure(
    file: Annotated[Path, typer.Argument(help="app-compose file, byte for byte as it is deployed")],
    model: Annotated[list[Path] | None, typer.Option(help="model manifest; may repeat")] = None,
    instance_id: HexOption = None,
    os_image_hash: HexOption = None,
    key_provider: HexOption = None,
    storage_fs: HexOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compute what can be computed of an image's measurements, and name the rest."""
    facts = BootFacts(
        instance_id=_hex(instance_id),
        os_image_hash=_hex(os_image_hash),
        key_provider=_hex(key_provider),
        storage_fs=_hex(storage_fs),
    )
    expected = expect(_read(file), facts)
    models = [ModelManifest.decode(_read(path)) for path in model or []]
    rows = _rows(expected) | {f"model {m.name}": m.digest().hex() for m in models}
    if json:
        print_json({"measurements": rows, "reference_value": _reference(expected)})
        return
    for name, value in rows.items():
        typer.echo(f"{name:<22}{value}")
    typer.echo("\n# for an appraisal policy; without mrtd and rtmr0-2 it accepts any firmware and kernel\n")
    typer.echo(_reference(expected))


def _rows(expected: Expected) -> dict[str, str]:
    rows = {
        "compose_hash": expected.compose_hash.hex(),
        "app_id": expected.app_id.hex(),
        "mr_config_id": expected.mr_config_id.hex(),
        "rtmr3_after_compose": expected.after_compose.hex(),
    }
    if expected.rtmr3 is not None:
        rows["rtmr3"] = expected.rtmr3.hex()
    return rows | dict(expected.missing)


def _reference(expected: Expected) -> str:
    return "\n".join(
        (
            "[[reference_value]]",
            f"name = {json_module.dumps(expected.name)}",
            'trust_class = "tdx"',
            f'compose_hash = "{expected.compose_hash.hex()}"',
        )
    )


def _hex(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        raise ConfigError("a measured value is given in hex") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json_module.loads(_read(path))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
