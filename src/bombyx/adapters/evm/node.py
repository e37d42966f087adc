# SPDX-License-Identifier: Apache-2.0
"""A chain node of our own for one machine: anvil, a block a second, never a block a transaction (that loses wake-ups).

Always: it listens on loopback; it stops when this process stops, whatever the reason, for it hangs on our pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bombyx.adapters.evm.rpc import Rpc, RpcError
from bombyx.errors import ConfigError, Unavailable

CHAIN_ID: Final = 31_337  # what development chains use
READY_WITHIN: Final = 30.0  # seconds
# The shell keeps our pipe open for the watcher: when we are gone it reads the end, and the node is told to stop.
_TETHER: Final = 'exec 3<&0; "$@" </dev/null & node=$!; (cat <&3 >/dev/null; kill $node 2>/dev/null) & wait $node'


@dataclass(slots=True)
class ChainNode:
    """A running node. `url` is where it answers."""

    url: str
    log: Path | None
    _process: asyncio.subprocess.Process

    async def close(self) -> None:
        """Stop it and wait until it is gone. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5.0)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        await self._process.wait()


def find_anvil() -> str:
    """Beside this Python (`make setup` puts it there), else on PATH."""
    beside = Path(sys.executable).parent / "anvil"
    found = str(beside) if beside.exists() else shutil.which("anvil")
    if found is None:
        raise ConfigError("no chain node: `make setup` installs anvil, or give the URL of a node", rule="LEDGER-7")
    return found


async def start_node(
    *,
    port: int = 0,
    block_time: float = 1,
    chain_id: int = CHAIN_ID,
    state: Path | None = None,
    log: Path | None = None,
) -> ChainNode:
    """Start anvil and wait until it answers. `state`: a file it loads from and writes on stopping."""
    port = port or _free_port()
    arguments = [find_anvil(), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id)]
    arguments += ["--block-time", f"{block_time:g}", "--accounts", "1", "--order", "fifo"]
    arguments += ["--state", str(state)] if state else []
    arguments += [] if log else ["--silent"]
    sink = log.open("ab") if log else None
    try:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", _TETHER, "sh", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=sink or asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.STDOUT if sink else asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        if sink:
            sink.close()
    node = ChainNode(url=f"http://127.0.0.1:{port}", log=log, _process=process)
    try:
        await _ready(node, chain_id)
    except BaseException:
        await node.close()
        raise
    return node


async def _ready(node: ChainNode, chain_id: int) -> None:
    rpc = Rpc([node.url], timeout=2.0)
    try:
        for _ in range(int(READY_WITHIN / 0.05)):
            if node._process.returncode is not None:
                break
            with contextlib.suppress(Unavailable, RpcError):
                if await rpc.chain_id() == chain_id:
                    return
                break
            await asyncio.sleep(0.05)
    finally:
        await rpc.close()
    raise Unavailable(f"the chain node at {node.url} does not start", rule="LEDGER-2")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
