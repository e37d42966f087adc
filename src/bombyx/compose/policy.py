# SPDX-License-Identifier: Apache-2.0
"""Reads an appraisal policy from its file."""

from __future__ import annotations

from pathlib import Path

from bombyx.errors import ConfigError
from bombyx.protocol.attest import AppraisalPolicy, policy_from_toml


def read_policy(path: Path) -> AppraisalPolicy:
    """Raises `ConfigError` when the file cannot be read or is no policy."""
    try:
        return policy_from_toml(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the policy {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the policy {path} is not UTF-8 text") from None
