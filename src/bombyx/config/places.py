# SPDX-License-Identifier: Apache-2.0
"""Where things lie on this machine, and what only the environment says."""

from __future__ import annotations

import os
from pathlib import Path

from bombyx.errors import ConfigError


def state_home() -> Path:
    """What outlives a process: $BOMBYX_HOME, else $XDG_STATE_HOME/bombyx, else ~/.local/state/bombyx."""
    if home := os.environ.get("BOMBYX_HOME"):
        return Path(home)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "bombyx"


def default_descriptor_path() -> Path:
    """Where `bombyx up` announces the network it runs."""
    return state_home() / "network.json"


def passphrase_file() -> Path | None:
    """The file that holds a wallet's passphrase, where $BOMBYX_PASSPHRASE_FILE names one. The passphrase itself is
    never in the environment: other processes of the same user could read it there."""
    named = os.environ.get("BOMBYX_PASSPHRASE_FILE")
    return Path(named) if named else None


# --- for tests of whole processes ------------------------------------------------------------------------------------


def crash_orders() -> Path | None:
    """The file in which a test says where this process is to die: $BOMBYX_CRASH_AT. Not for operators."""
    named = os.environ.get("BOMBYX_CRASH_AT")
    return Path(named) if named else None


def clock_error() -> float:
    """Seconds by which a test wants this process' clock to be wrong: $BOMBYX_CLOCK_ERROR. Not for operators."""
    try:
        return float(os.environ.get("BOMBYX_CLOCK_ERROR", "0"))
    except ValueError:
        raise ConfigError("BOMBYX_CLOCK_ERROR is a number of seconds") from None
