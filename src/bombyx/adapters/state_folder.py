# SPDX-License-Identifier: Apache-2.0
"""One process a state folder: held with `flock` for as long as a role runs, so that no channel is spent from twice.

The kernel lets go when the process ends, however it ends; what is left of the file then means nothing. Reading what
lies in a folder (`bombyx receipts`) needs no hold.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from bombyx.errors import ConfigError

NAME: Final = "lock"


class StateFolder:
    """A folder that is ours until `release`. Made by `hold`."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def hold(cls, path: Path) -> StateFolder:
        """Make the folder (0700) where it is missing and take it. `ConfigError` names the process that has it."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path / NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot use the state folder {path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            whose = "this process itself" if holder == str(os.getpid()) else f"process {holder or 'unknown'}"
            raise ConfigError(
                f"the state folder {path} is in use by {whose}: two would spend from the same channels. Stop the other,"
                " or give this one a folder of its own",
                rule="PAY-24",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(path, descriptor)

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two processes hold two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
