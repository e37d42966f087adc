# SPDX-License-Identifier: Apache-2.0
"""The wallet's commands as a user runs them: real processes, an encrypted owner, money in and out of a channel."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.scenarios.procs import Processes, network_of_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PASSPHRASE = "the passphrase of this test"


async def bombyx(net: Processes, *arguments: str, exit_code: int = 0) -> str:
    """Run one command to its end; its standard output (or error, when it is to fail)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bombyx", *arguments,
        env=_environment(net), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == exit_code, (arguments, out.decode(), error.decode())
    assert PASSPHRASE.encode() not in out + error
    return (error if exit_code else out).decode()


def _environment(net: Processes) -> dict[str, str]:
    return {**os.environ, "BOMBYX_HOME": str(net.folder / "home"), **net.environment}


async def test_a_wallet_pays_its_way_and_comes_home(tmp_path: Path) -> None:
    """WAL-1 .. WAL-5: make, fund, open, use beside a running client, close together, and no lock is left behind."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE)
    async with network_of_processes(tmp_path / "net", workers=0) as net:
        net.environment["BOMBYX_PASSPHRASE_FILE"] = str(passphrase)
        state, network = str(net.state("second")), str(net.folder / "client.network.json")
        where = ("--state", state, "--network", network)

        async def run(*arguments: str) -> Any:
            return json.loads(await bombyx(net, *arguments, *where, "--json"))

        made = json.loads(await bombyx(net, "wallet", "new", "--state", state, "--json"))
        assert made["kind"] == "encrypted"
        assert (await run("wallet", "fund", "9000000"))["balance"] == 9_000_000
        planned = await run("channel", "open", "--amount", "2000000", "--dry-run")
        assert planned["plan"]["amount"] == 2_000_000
        assert (await run("wallet", "show"))["balance"] == 9_000_000
        await bombyx(net, "channel", "open", *where, exit_code=2)  # nobody is there to say yes
        opened = await run("channel", "open", "--amount", "2000000", "--yes")
        assert (opened["how"], len(opened["transaction"])) == ("deposit", 66)
        assert (await run("channel", "topup", "--amount", "1000000", "--yes"))["how"] == "deposit"

        await net.start_client("second")  # its owner is encrypted: the passphrase comes from the file
        listed = await run("channel", "list")
        assert [one["locked"] for one in listed["channels"]] == [3_000_000]
        assert listed["budget"]["used"] == 3_000_000
        refused = await bombyx(net, "channel", "close", *where, "--yes", "--json", exit_code=2)
        assert "in use by process" in " ".join(refused.split())  # whatever the terminal wraps
        await net.kill("second")  # not even this leaves a lock behind

        books = ("--network", network, "--state", str(net.state("proxy")))
        told = json.loads(await bombyx(net, "money", "show", *books, "--json"))
        assert (told["income"]["charged"], told["commission"]) == (0, 0)
        tickets = net.folder / "tickets.json"
        await bombyx(net, "money", "tickets", *books, "--out", str(tickets))
        tower = (
            "watchtower",
            str(tickets),
            "--network",
            network,
            "--state",
            str(net.state("tower")),
            "--once",
            "--json",
        )
        assert json.loads(await bombyx(net, *tower)) == []  # nothing was charged, so there is nothing to claim
        checked = json.loads(await bombyx(net, "network", "check", "--network", network, "--endpoint", "", "--json"))
        assert (checked["alarms"], len(checked["proxies"])) == ([], 1)

        closed = await run("channel", "close", "--yes")
        assert (closed["how"], closed["amount"]) == ("refund", 3_000_000)
        assert [one["state"] for one in (await run("channel", "list"))["channels"]] == ["closed"]
        assert (await run("wallet", "show"))["balance"] >= 9_000_000
