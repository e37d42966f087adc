# SPDX-License-Identifier: Apache-2.0
"""Account keys in files only their owner can read (0600), one a name. Not encrypted at rest.

Enclave keys never come here: they are made at boot and die with the process (spec ATT-1).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bombyx.errors import ConfigError
from bombyx.ports import Entropy
from bombyx.protocol.primitives import Address, Secret
from bombyx.protocol.wire.signing import SigningKey

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class KeyFiles:
    """A folder of keys."""

    def __init__(self, folder: Path, entropy: Entropy) -> None:
        self._folder = folder
        self._entropy = entropy

    def accounts(self) -> dict[str, Address]:
        """Every name with its address, in order of name."""
        return {p.stem: self.load(p.stem).address for p in sorted(self._folder.glob("*.key"))}

    def create(self, name: str) -> SigningKey:
        """Make a key. Raises `ConfigError` when the name is taken or unusable."""
        path = self._path(name)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = SigningKey(Secret(self._entropy.bytes(32)))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(f"a key named {name!r} exists already") from None
        with os.fdopen(descriptor, "w") as file:
            file.write(key.secret().reveal().hex() + "\n")
        return key

    def load(self, name: str) -> SigningKey:
        """Read a key. Raises `ConfigError` when it is missing, damaged or readable by others."""
        path = self._path(name)
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others: chmod 600 it")
            return SigningKey(Secret(bytes.fromhex(path.read_text().strip())))
        except FileNotFoundError:
            raise ConfigError(f"no key named {name!r}: make one with `bombyx keys new {name}`") from None
        except ValueError:
            raise ConfigError(f"{path} does not hold a key") from None

    def load_or_create(self, name: str) -> SigningKey:
        return self.load(name) if self._path(name).exists() else self.create(name)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError("a key's name is made of a-z, 0-9, dot, dash and underscore, at most 64")
        return self._folder / f"{name}.key"
