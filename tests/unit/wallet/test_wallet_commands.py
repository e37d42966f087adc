# SPDX-License-Identifier: Apache-2.0
"""WAL-1, WAL-2: `bombyx wallet` keeps keys encrypted, shows addresses and never a key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.keys import KeyFiles
from bombyx.adapters.keystore import QUICK, WrongPassphrase
from bombyx.adapters.ledger_http import HttpLedger, serve_ledger
from bombyx.adapters.memory import MemoryLedger
from bombyx.cli import wallet
from bombyx.cli.wallet import app
from bombyx.compose.wallet import ENCRYPTED, OPEN, OWNER, Wallets, fund_account, open_owner
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Secret


def ask(question: str) -> Secret:
    return Secret(b"pass")


def run(folder: Path, *arguments: str, stdin: str | None = None) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--state", str(folder), "--json"], input=stdin, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(autouse=True)
def passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Quick wallets, and a passphrase in a file as a service would have it."""
    file = tmp_path / "passphrase"
    file.write_text("pass\n")
    monkeypatch.setenv("BOMBYX_PASSPHRASE_FILE", str(file))
    monkeypatch.setattr(wallet, "Wallets", lambda folder: Wallets(folder, work=QUICK))
    return file


def test_a_wallet_is_made_shown_and_exported_without_its_key(tmp_path: Path) -> None:
    """WAL-1: what is printed and what is exported holds no key; the copy opens elsewhere."""
    made = run(tmp_path, "new")
    key = Wallets(tmp_path).load(OWNER, ask)
    assert (made["address"], made["kind"]) == (str(key.address), ENCRYPTED)
    copy = tmp_path / "copy" / "wallet.json"
    done = CliRunner().invoke(app, ["export", "--out", str(copy), "--state", str(tmp_path)], catch_exceptions=False)
    brought = run(tmp_path, "import", str(copy), "--name", "second")
    assert brought["address"] == made["address"]
    for text in (json.dumps(made), done.output, copy.read_text()):
        assert key.secret().reveal().hex() not in text


def test_a_key_is_taken_in_from_standard_input_and_encrypted(tmp_path: Path) -> None:
    """WAL-1: a key in hex never has to be an argument."""
    key = KeyFiles(tmp_path / "elsewhere", SystemEntropy()).create("old")
    brought = run(tmp_path, "import", "-", stdin=key.secret().reveal().hex())
    assert (brought["address"], brought["kind"]) == (str(key.address), ENCRYPTED)


def test_a_development_key_becomes_a_wallet(tmp_path: Path) -> None:
    """WAL-2: one file a name: the open one is gone when the encrypted one stands."""
    key = KeyFiles(tmp_path, SystemEntropy()).create(OWNER)
    assert Wallets(tmp_path).account(OWNER).kind == OPEN
    assert run(tmp_path, "encrypt")["address"] == str(key.address)
    assert not (tmp_path / "owner.key").exists()


def test_a_second_account_of_one_name_is_refused(tmp_path: Path) -> None:
    """WAL-2: nobody spends from another account than they see."""
    KeyFiles(tmp_path, SystemEntropy()).create(OWNER)
    with pytest.raises(ConfigError, match="already"):
        run(tmp_path, "new")


def test_a_passphrase_comes_through_a_descriptor(tmp_path: Path, passphrase: Path) -> None:
    """WAL-1: a descriptor goes before the file; a wrong one is said to be wrong."""
    run(tmp_path, "new")
    reading, writing = os.pipe()
    os.write(writing, b"wrong\n")
    os.close(writing)
    with pytest.raises(WrongPassphrase):
        run(tmp_path, "import", str(tmp_path / "owner.json"), "--name", "x", "--passphrase-fd", str(reading))
    os.close(reading)


def test_without_anybody_to_ask_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WAL-1: a service that has no passphrase says how to give it one, and never hangs on a question."""
    monkeypatch.delenv("BOMBYX_PASSPHRASE_FILE")
    with pytest.raises(ConfigError, match="BOMBYX_PASSPHRASE_FILE"):
        run(tmp_path, "new")


async def test_a_development_chain_gives_money_and_makes_a_key_unasked(tmp_path: Path) -> None:
    """WAL-2: there, and only there."""
    server = await serve_ledger(MemoryLedger(SystemClock()))
    ledger = HttpLedger(server.url)
    try:
        owner = await open_owner(tmp_path / "dev", ledger)
        await fund_account(ledger, owner.address, 5)
        assert await ledger.balance(owner.address) == 5
        assert (await open_owner(tmp_path / "dev", ledger)).address == owner.address
        Wallets(tmp_path / "sealed", work=QUICK).create(OWNER, ask)
        assert (await open_owner(tmp_path / "sealed", ledger)).address == Wallets(tmp_path / "sealed").account(
            OWNER
        ).address  # the passphrase came from the file
    finally:
        await ledger.close()
        await server.close()


async def test_where_money_is_worth_something_no_key_is_made_unasked(tmp_path: Path) -> None:
    """WAL-2: a ledger that is not known to be for development has no faucet and no keys in the open."""
    real = MemoryLedger(SystemClock())  # not served by the development chain: any other ledger
    with pytest.raises(ConfigError, match="wallet new"):
        await open_owner(tmp_path, real)
    with pytest.raises(ConfigError, match="send tokens"):
        await fund_account(real, (await real.info()).token, 1)
    assert not Wallets(tmp_path).accounts()
