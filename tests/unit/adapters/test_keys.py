# SPDX-License-Identifier: Apache-2.0
"""Key files: private to their owner, never overwritten, never printed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.keys import KeyFiles
from bombyx.errors import ConfigError


def test_a_key_is_private_and_comes_back(tmp_path: Path) -> None:
    store = KeyFiles(tmp_path / "keys", SystemEntropy())
    key = store.create("worker")
    assert store.load("worker").address == key.address
    assert store.accounts() == {"worker": key.address}
    assert stat.S_IMODE((tmp_path / "keys" / "worker.key").stat().st_mode) == 0o600
    assert key.secret().reveal().hex() not in repr(key)


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    store = KeyFiles(tmp_path, SystemEntropy())
    first = store.create("a").address
    with pytest.raises(ConfigError, match="exists already"):
        store.create("a")
    assert store.load_or_create("a").address == first


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    store = KeyFiles(tmp_path, SystemEntropy())
    store.create("a")
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        store.load("a")


@pytest.mark.parametrize("name", ["../a", "", "A", "a/b", "a" * 65, ".a"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a key's name"):
        KeyFiles(tmp_path, SystemEntropy()).create(name)


def test_a_damaged_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("not hex")
    (tmp_path / "a.key").chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold a key"):
        KeyFiles(tmp_path, SystemEntropy()).load("a")
