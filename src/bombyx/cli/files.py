# SPDX-License-Identifier: Apache-2.0
"""What commands read from disk: bounded files, and policies by file or by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bombyx.errors import ConfigError
from bombyx.protocol.attest import PRESETS, AppraisalPolicy, policy_from_toml, preset

MAX_FILE: Final = 16_777_216  # bytes; an archive of eight GPUs has 1 MB


def read_bytes(file: Path) -> bytes:
    """A whole file. Raises `ConfigError`."""
    try:
        if file.stat().st_size > MAX_FILE:
            raise ConfigError(f"{file} is larger than {MAX_FILE} bytes")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def named_policy(named: str | Path) -> AppraisalPolicy:
    """A preset's name or a TOML file. Raises `ConfigError`."""
    if str(named) in PRESETS:
        return preset(str(named))
    try:
        return policy_from_toml(read_bytes(Path(named)).decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the policy {named}: {error}") from None
