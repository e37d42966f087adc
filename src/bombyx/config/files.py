# SPDX-License-Identifier: Apache-2.0
"""A small text file somebody wrote, or a clear word on why it cannot be one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bombyx.errors import ConfigError

MAX_FILE: Final = 1 << 20  # bytes of a configuration file or a network descriptor


def read_file(file: Path) -> str:
    """Its text. Raises `ConfigError`."""
    try:
        if file.stat().st_size > MAX_FILE:
            raise ConfigError(f"{file} is larger than {MAX_FILE} bytes")
        return file.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None
