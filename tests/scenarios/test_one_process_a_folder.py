# SPDX-License-Identifier: Apache-2.0
"""Two processes on one state folder: the second is told who holds it, and spends nothing."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from tests.scenarios.procs import Processes

import bombyx
from bombyx.adapters.processes import stop_children
from bombyx.adapters.state_folder import StateFolder
from bombyx.compose import new_simulated_platform
from bombyx.errors import BombyxError, ConfigError


async def test_a_second_process_on_a_folder_is_told_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAY-24: every role; a killed holder holds nothing; the SDK's own folder is not the endpoint's."""
    net = Processes(folder=tmp_path, policy=new_simulated_platform(tmp_path / "simulated-platform"))
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path / "home"))
    try:
        await net.start_devnet()
        await net.start_proxy()
        client = await net.start_client()
        for name, start in (("client", net.start_client), ("proxy", net.start_proxy)):
            holder = net.children[name]
            with pytest.raises(BombyxError, match=rf"in\s+use\s+by\s+process\s+{holder.pid}"):
                await start(name=name)
            net.children[name] = holder
        descriptor = str(tmp_path / "client.network.json")
        with pytest.raises(ConfigError, match=f"in use by process {client.pid}"):
            await bombyx.connect(descriptor, state_dir=net.state("client"))
        beside = await bombyx.connect(descriptor)
        with pytest.raises(ConfigError, match="in use by this process itself"):
            await bombyx.connect(descriptor)
        await beside.close()
        await (await bombyx.connect(descriptor)).close()
        await net.kill("client")
        await net.start_client()
    finally:
        await stop_children(list(net.children.values())[::-1], grace=5.0)


def test_what_lies_in_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """CLI-8: receipts and session secrets are not for other accounts of the machine."""
    folder = tmp_path / "state"
    held = StateFolder.hold(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "lock").stat().st_mode) == 0o600
    assert (folder / "lock").read_text() == f"{os.getpid()}\n"
    held.release()
    held.release()
    StateFolder.hold(folder).release()


async def test_a_stores_files_are_its_owners_alone(tmp_path: Path) -> None:
    """CLI-8: whatever the umask."""
    from bombyx.adapters.sqlite import SqliteStore
    from bombyx.ports import Write

    before = os.umask(0)
    try:
        store = SqliteStore.open(tmp_path / "books" / "client.db")
        await store.write([Write(table="t", key=b"k", value=b"v")])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in await asyncio.to_thread(_files, tmp_path)}
        await store.close()
    finally:
        os.umask(before)
    assert len(modes) == 3 and set(modes.values()) == {0o600}, modes


def _files(folder: Path) -> list[Path]:
    return list((folder / "books").iterdir())
