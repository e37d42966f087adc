# SPDX-License-Identifier: Apache-2.0
"""`bombyx deploy`: to a node that knows nothing of us, and what it writes is enough to pay with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.evm import AddressBook, EvmLedger, Rpc, start_node
from bombyx.adapters.keys import KeyFiles
from bombyx.cli.app import app
from bombyx.compose.deployment import deploy_contracts
from bombyx.errors import ConfigError, PaymentError
from bombyx.ports import OperatorRole


async def test_what_was_deployed_is_written_down_and_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LEDGER-7: the address book, by chain id, is all a ledger needs; it gives no money away."""
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path))
    key = KeyFiles(tmp_path / "keys", SystemEntropy()).create("deployer")
    node = await start_node(block_time=0.1)
    rpc = Rpc([node.url])
    try:
        await rpc.call("anvil_setBalance", str(key.address), hex(10**20))
        told = await deploy_contracts([node.url], key="deployer", file=tmp_path / "a.json", token=None, settlement=None)
        book = AddressBook.load(tmp_path / "a.json", told["chain_id"])
        assert book.as_dict() == told
        ledger = EvmLedger(rpc, book)
        assert (await ledger.info()).settlement == book.settlement
        assert await ledger.operators(OperatorRole.WORKER) == ()
        with pytest.raises(PaymentError, match="no faucet"):
            await ledger.faucet(key.address, 1)
    finally:
        await rpc.close()
        await node.close()


async def test_a_wrong_address_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LEDGER-7: no gas is spent on a typing error."""
    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path))
    KeyFiles(tmp_path / "keys", SystemEntropy()).create("deployer")
    with pytest.raises(ConfigError, match="--token"):
        await deploy_contracts(
            ["http://127.0.0.1:9"], key="deployer", file=tmp_path / "a", token="0x12", settlement=None
        )
    assert not (tmp_path / "a").exists()


def test_the_command_asks_before_it_spends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LEDGER-7: `deploy` is in the command tree, and a no is a no."""
    from typer.testing import CliRunner

    monkeypatch.setenv("BOMBYX_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["deploy", "--rpc", "http://127.0.0.1:9"], input="n\n")
    assert result.exit_code == 1
    assert not list(tmp_path.glob("*.json"))
