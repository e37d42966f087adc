# SPDX-License-Identifier: Apache-2.0
"""What only a real chain can do to a ledger: nodes that lie, stall or vanish, stuck fees, taken nonces, lost memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from eth_abi import encode
from tests.onchain.conftest import AUTHORIZER, PAYER, RECEIVER, SESSION, STRANGER, row
from tests.onchain.devnet import QUICK, MiningRpc, ledger_on, seeded

from bombyx.adapters.evm import AddressBook, EvmLedger, Rpc, calls, deploy
from bombyx.adapters.evm.abi import Reader
from bombyx.adapters.evm.deploy import DEV_MINTER
from bombyx.adapters.evm.rpc import MAX_ANSWER, RpcError, as_int
from bombyx.adapters.evm.transactions import GWEI, Patience, Transactions
from bombyx.errors import ConfigError, PaymentError, Unavailable
from bombyx.ports import Claim, Operator, OperatorRole
from bombyx.protocol.primitives import Address, Amount, Digest, sha256
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain, voucher_digest

Answer = Callable[[dict[str, Any]], Any]


def config_for(book: AddressBook, **changes: Any) -> ChannelConfig:
    plain = ChannelConfig(
        payer=PAYER.address,
        payer_authorizer=SESSION.address,
        receiver=RECEIVER.address,
        receiver_authorizer=AUTHORIZER.address,
        token=book.token,
        withdraw_delay=900,
        salt=Digest.zero(),
    )
    return dataclasses.replace(plain, **changes)


def voucher(book: AddressBook, config: ChannelConfig, ceiling: int) -> Claim:
    domain = settlement_domain(book.chain_id, book.settlement)
    signature = SESSION.sign(voucher_digest(domain, config.channel_id(domain), ceiling))
    return Claim(config=config, ceiling=Amount(ceiling), signature=signature, total_claimed=Amount(ceiling))


@pytest.fixture
async def made() -> AsyncIterator[tuple[MiningRpc, EvmLedger]]:
    async with seeded() as (_, rpc, book):
        ledger = ledger_on(rpc, book)
        await ledger.faucet(PAYER.address, 1_000_000)
        assert isinstance(rpc, MiningRpc)
        yield rpc, ledger


@asynccontextmanager
async def odd_node(answer: Answer) -> AsyncIterator[str]:
    """A node that answers as `answer` says: bytes as they are, numbers as an HTTP status, None never."""

    async def handle(request: web.Request) -> web.Response:
        found = answer(await request.json())
        if found is None:
            await asyncio.sleep(2)
        if isinstance(found, int):
            return web.Response(status=found)
        return web.Response(body=found if isinstance(found, bytes) else json.dumps(found).encode())

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


# --- encodings -------------------------------------------------------------------------------------------------------


def test_our_calldata_is_the_common_one() -> None:
    """Written by hand, equal to a general encoder's: claims with signatures of any length, batches, registry lines."""
    config = ChannelConfig(
        payer=PAYER.address,
        payer_authorizer=SESSION.address,
        receiver=RECEIVER.address,
        receiver_authorizer=AUTHORIZER.address,
        token=STRANGER.address,
        withdraw_delay=900,
        salt=sha256(b"salt"),
    )
    kind = "(((address,address,address,address,address,uint40,bytes32),uint128),bytes,uint128)[]"
    for sizes in ((), (65,), (0, 64, 65, 256)):
        claims = [
            Claim(config=config, ceiling=Amount(9), signature=bytes(size), total_claimed=Amount(7)) for size in sizes
        ]
        rows = [((row(config), 9), bytes(size), 7) for size in sizes]
        assert calls.claim(claims)[4:] == encode([kind], [rows])
    parts = [b"", b"\x01" * 33]
    assert calls.multicall(parts)[4:] == encode(["bytes[]"], [parts])
    assert calls.aggregate([(STRANGER.address, parts[1])])[4:] == encode(
        ["bool", "(address,bytes)[]"], [True, [(str(STRANGER.address), parts[1])]]
    )
    answer = encode(["(bool,bytes)[]"], [[(True, b"\x05" * 64), (True, b"")]])
    assert calls.aggregated(answer) == [b"\x05" * 64, b""]


@pytest.mark.parametrize("cut", [0, 31, 32, 64, 95, 100, 160])
def test_answers_cut_short_are_no_answers(cut: int) -> None:
    """LEDGER-2: nothing is read past the end of what a node sent."""
    whole = encode(["(bool,bytes)[]"], [[(True, b"\x05" * 64)]])
    with pytest.raises(Unavailable):
        calls.aggregated(whole[:cut])
    with pytest.raises(Unavailable):
        Reader(b"\xff" * 64).items(0, lambda body, index: body.uint(index))


# --- nodes -----------------------------------------------------------------------------------------------------------

ODD_ANSWERS: dict[str, Answer] = {
    "garbage": lambda call: b"<html>",
    "nothing": lambda call: b"",
    "deep": lambda call: b"[" * 100_000,
    "a list": lambda call: [call],
    "another call's": lambda call: {"jsonrpc": "2.0", "id": call["id"] - 1, "result": "0x1"},
    "no result": lambda call: {"jsonrpc": "2.0", "id": call["id"]},
    "two at once": lambda call: json.dumps({"id": call["id"], "result": "0x1"}).encode() * 2,
    "an error page": lambda call: 502,
    "busy": lambda call: {"id": call["id"], "error": {"code": -32005, "message": "limit exceeded"}},
    "late": lambda call: None,
    "endless": lambda call: b" " * (MAX_ANSWER + 1),
    "another chain": lambda call: {"id": call["id"], "result": "0x7"},
}


@pytest.mark.parametrize("kind", ODD_ANSWERS)
async def test_a_node_that_does_not_answer_properly_is_passed_over(
    made: tuple[MiningRpc, EvmLedger], kind: str
) -> None:
    """LEDGER-2: alone it is `Unavailable`; with a good one behind it nobody notices."""
    _, ledger = made
    (good,) = ledger.rpc.urls
    async with odd_node(ODD_ANSWERS[kind]) as bad:
        alone = Rpc([bad], chain_id=ledger.book.chain_id, timeout=0.5)
        with pytest.raises(Unavailable, match="LEDGER-2"):
            await EvmLedger(alone, ledger.book).head()
        await alone.close()
        both = Rpc([bad, good], chain_id=ledger.book.chain_id, timeout=0.5)
        assert (await EvmLedger(both, ledger.book).balance(PAYER.address)) == 1_000_000
        started = time.monotonic()
        await both.call("eth_blockNumber")
        assert time.monotonic() - started < 0.4, "the node that answered is asked first from then on"
        await both.close()


@pytest.mark.parametrize("result", [None, 5, "0x", "0xzz", [], {"number": "0x1"}, "0x" + "f" * 70])
async def test_results_of_the_wrong_shape(result: Any) -> None:
    """LEDGER-2: well-formed JSON-RPC with nonsense inside is `Unavailable` too, in every read."""

    def answer(call: dict[str, Any]) -> Any:
        return {"id": call["id"], "result": result}

    any_address = Address(bytes(20))
    book = AddressBook(
        chain_id=1,
        settlement=any_address,
        registry=any_address,
        token=any_address,
        erc3009_collector=any_address,
        allowance_collector=any_address,
        reference_values=any_address,
    )
    async with odd_node(answer) as url:
        rpc = Rpc([url])
        ledger = EvmLedger(rpc, book)
        for ask in (ledger.head(), ledger.balance(any_address), ledger.operators(OperatorRole.WORKER)):
            with pytest.raises(Unavailable):
                await ask
        with pytest.raises(Unavailable):
            await ledger.channel(Digest.zero())
        await ledger.close()


async def test_a_chain_that_stops_and_comes_back(tmp_path: Path) -> None:
    """LEDGER-2: while it is gone, `Unavailable`; after, the same ledger object goes on where the chain is."""
    state = tmp_path / "state.json"
    async with seeded(state=state) as (node, rpc, book):
        ledger = ledger_on(rpc, book)
        await ledger.faucet(PAYER.address, 500)
        config = config_for(book)
        await ledger.deposit(config, Amount(100), signer=PAYER)
        await node.close()
        with pytest.raises(Unavailable):
            await ledger.deposit(config, Amount(100), signer=PAYER)
        port = int(node.url.rsplit(":", 1)[1])
        async with seeded(state=state, port=port):
            await ledger.deposit(config, Amount(50), signer=PAYER)
            view = await ledger.channel(config.channel_id(settlement_domain(book.chain_id, book.settlement)))
            assert view is not None and view.balance == 150


# --- transactions ----------------------------------------------------------------------------------------------------


async def _held(ledger: EvmLedger) -> tuple[Rpc, Transactions]:
    """A plain line to a node whose blocks are stopped, and hasty patience."""
    rpc = Rpc(ledger.rpc.urls)
    await rpc.call("evm_setIntervalMining", 0)
    return rpc, Transactions(rpc, patience=Patience(poll=0.02, look=0.05, bump_after=0.2, give_up_after=3.0))


async def test_a_stuck_transaction_is_replaced_by_a_dearer_one(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-6: same nonce, higher fee; one of the family is mined, and the change is made once."""
    _, ledger = made
    rpc, transactions = await _held(ledger)
    await rpc.call("anvil_setNextBlockBaseFeePerGas", hex(2 * GWEI))
    nonce = as_int(await rpc.call("eth_getTransactionCount", str(DEV_MINTER.address), "latest"))
    mint = calls.mint(STRANGER.address, 5)
    sending = asyncio.create_task(transactions.send(ledger.book.token, mint, signer=DEV_MINTER))
    await asyncio.sleep(0.1)
    first = await rpc.call("eth_getBlockByNumber", "pending", True)
    await asyncio.sleep(0.4)
    later = await rpc.call("eth_getBlockByNumber", "pending", True)
    (before,), (after,) = first["transactions"], later["transactions"]
    assert before["nonce"] == after["nonce"] == hex(nonce)
    assert as_int(after["maxFeePerGas"]) * 100 >= as_int(before["maxFeePerGas"]) * 110
    await rpc.call("evm_mine")
    mined = await sending
    assert str(mined.hash) == after["hash"]
    assert await ledger.balance(STRANGER.address) == 5
    await rpc.close()


async def test_a_transaction_that_is_never_mined(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-6, LEDGER-9: the outcome is unknown and is said to be so; asked for again, the same call is one change."""
    _, ledger = made
    rpc, _ = await _held(ledger)
    hasty = Transactions(rpc, patience=Patience(poll=0.02, give_up_after=0.2))
    mint = calls.mint(STRANGER.address, 5)
    with pytest.raises(Unavailable, match="not mined"):
        await hasty.send(ledger.book.token, mint, signer=DEV_MINTER)
    again = asyncio.create_task(hasty.send(ledger.book.token, mint, signer=DEV_MINTER))
    await asyncio.sleep(0.1)
    await rpc.call("evm_mine")
    await again
    assert await ledger.balance(STRANGER.address) == 5
    await rpc.close()


async def test_many_changes_of_one_account_at_once(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-6: forty at a time, nonces in a row, none lost, none twice."""
    _, ledger = made
    await asyncio.gather(*(ledger.faucet(STRANGER.address, 1) for _ in range(40)))
    assert await ledger.balance(STRANGER.address) == 40


async def test_two_processes_with_one_key(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-6: a second process sends with the same key; none lost, none twice."""
    _, ledger = made
    other = ledger_on(MiningRpc(ledger.rpc.urls), ledger.book)
    await asyncio.gather(*(one.faucet(STRANGER.address, 1) for one in (ledger, other) for _ in range(20)))
    assert await ledger.balance(STRANGER.address) == 40
    await other.close()


async def test_gas_above_the_cap_waits(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-6: a spike in fees is not paid; nothing is sent."""
    rpc, ledger = made
    before = await rpc.call("eth_getTransactionCount", str(DEV_MINTER.address), "pending")
    await rpc.call("anvil_setNextBlockBaseFeePerGas", hex(900 * GWEI))
    await rpc.call("evm_mine")
    with pytest.raises(Unavailable, match="gas costs"):
        await ledger.faucet(STRANGER.address, 1)
    assert await rpc.call("eth_getTransactionCount", str(DEV_MINTER.address), "pending") == before


async def test_an_account_without_gas_money_is_told_so(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-6: on a chain where gas does not come from nowhere."""
    rpc, ledger = made
    real = EvmLedger(rpc, dataclasses.replace(ledger.book, development=False), patience=QUICK)
    with pytest.raises(PaymentError, match="gas"):
        await real.deposit(config_for(ledger.book), Amount(1), signer=PAYER)
    with pytest.raises(PaymentError, match="no faucet"):
        await real.faucet(PAYER.address, 1)


async def test_a_change_waits_for_its_confirmations(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-4: with a reorg depth, a change counts when so many blocks lie on it, and the head is as deep."""
    rpc, ledger = made
    deep = EvmLedger(
        rpc, dataclasses.replace(ledger.book, reorg_depth=2), patience=dataclasses.replace(QUICK, confirmations=2)
    )
    waiting = asyncio.create_task(deep.faucet(STRANGER.address, 1))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    for _ in range(2):
        await rpc.call("evm_mine")
    await waiting
    assert (await deep.head()).number <= (await ledger.head()).number - 2


async def test_a_reorg_takes_a_claim_back_and_it_is_made_again(made: tuple[MiningRpc, EvmLedger]) -> None:
    """PAY-15: a claim lost with its block is presented again, as vouchers are cumulative: paid once in the end."""
    rpc, ledger = made
    config = config_for(ledger.book)
    await ledger.deposit(config, Amount(100), signer=PAYER)
    before = await rpc.call("evm_snapshot")
    await ledger.claim([voucher(ledger.book, config, 60)], signer=RECEIVER)
    await rpc.call("evm_revert", before)
    channel = config.channel_id(settlement_domain(ledger.book.chain_id, ledger.book.settlement))
    view = await ledger.channel(channel)
    assert view is not None and view.total_claimed == 0
    again = ledger_on(rpc, ledger.book)
    for _ in range(2):
        await again.claim([voucher(ledger.book, config, 60)], signer=RECEIVER)
    assert await ledger.balance(RECEIVER.address) == 60


# --- contracts -------------------------------------------------------------------------------------------------------


async def test_a_ledger_without_memory_finds_channels_and_operators(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-5: configs and lines come from the chain's events, and are checked against what the contracts store."""
    rpc, ledger = made
    config = config_for(ledger.book)
    await ledger.deposit(config, Amount(100), signer=PAYER)
    line = Operator(
        address=PAYER.address,
        role=OperatorRole.WORKER,
        endpoint="",
        receipt_address=SESSION.address,
        pay_authorizer=AUTHORIZER.address,
        pay_key_config=b"\x01" * 1_300,
        price_sheet=sha256(b"sheet"),
        models=tuple(sha256(bytes([n])) for n in range(64)),
    )
    await ledger.register(dataclasses.replace(line, endpoint="http://old"), signer=PAYER)
    await ledger.register(line, signer=PAYER)
    fresh = ledger_on(rpc, ledger.book)
    view = await fresh.channel(config.channel_id(settlement_domain(ledger.book.chain_id, ledger.book.settlement)))
    assert view is not None and view.config == config
    assert await fresh.operators(OperatorRole.WORKER) == (line,)


async def test_deposits_from_an_allowance(made: tuple[MiningRpc, EvmLedger]) -> None:
    """PAY-2: the cheaper way in: approved once, then one transaction a deposit."""
    rpc, ledger = made
    cheap = EvmLedger(rpc, dataclasses.replace(ledger.book, deposit_by="allowance"), patience=QUICK)
    config = config_for(ledger.book)
    for _ in range(2):
        await cheap.deposit(config, Amount(100), signer=PAYER)
    assert as_int(await rpc.call("eth_getTransactionCount", str(PAYER.address), "latest")) == 3
    view = await cheap.channel(config.channel_id(settlement_domain(ledger.book.chain_id, ledger.book.settlement)))
    assert view is not None and view.balance == 200


async def test_an_allowance_is_given_when_it_pays_for_itself(made: tuple[MiningRpc, EvmLedger]) -> None:
    """PAY-2: an account's first deposit is one transaction; its second brings the approval, and the rest are cheap."""
    rpc, ledger = made
    config, settlement = config_for(ledger.book), ledger.book.settlement
    spender = ledger.book.allowance_collector
    for count, to in ((1, settlement), (3, spender), (4, spender)):
        await ledger.deposit(config, Amount(100), signer=PAYER)
        assert as_int(await rpc.call("eth_getTransactionCount", str(PAYER.address), "latest")) == count
        (last,) = (await rpc.call("eth_getBlockByNumber", "latest", True))["transactions"]
        assert Address.parse(last["to"]) == to
    another = ledger_on(rpc, ledger.book)
    await another.deposit(config, Amount(100), signer=PAYER)
    assert as_int(await rpc.call("eth_getTransactionCount", str(PAYER.address), "latest")) == 5
    view = await another.channel(config.channel_id(settlement_domain(ledger.book.chain_id, settlement)))
    assert view is not None and view.balance == 400


async def test_a_batch_too_large_for_one_transaction(made: tuple[MiningRpc, EvmLedger]) -> None:
    """PAY-15: fifty channels: claimed in one transaction, swept in another."""
    _, ledger = made
    configs = [config_for(ledger.book, salt=Digest(n.to_bytes(32))) for n in range(50)]
    await asyncio.gather(*(ledger.deposit(one, Amount(10), signer=PAYER) for one in configs))
    await ledger.claim([voucher(ledger.book, one, 4) for one in configs], signer=AUTHORIZER)
    assert await ledger.balance(RECEIVER.address) == 200
    with pytest.raises(PaymentError, match="at most"):
        await ledger.claim([voucher(ledger.book, configs[0], 5)] * 101, signer=AUTHORIZER)


async def test_deployed_to_a_chain_and_written_down(made: tuple[MiningRpc, EvmLedger], tmp_path: Path) -> None:
    """LEDGER-7: ordinary transactions put the contracts anywhere; the address book keeps each chain's apart."""
    rpc, _ = made
    book = await deploy(rpc, signer=DEV_MINTER, transactions=Transactions(rpc, patience=QUICK))
    file = tmp_path / "contracts.json"
    book.save(file)
    dataclasses.replace(book, chain_id=1).save(file)
    assert AddressBook.load(file, book.chain_id) == book
    assert AddressBook.load(file, 1).chain_id == 1
    with pytest.raises(ConfigError, match="LEDGER-7"):
        AddressBook.load(file, 2)
    with pytest.raises(ConfigError, match="LEDGER-7"):
        AddressBook.from_dict({"chain_id": 1, "settlement": "0x00"})
    ledger = EvmLedger(rpc, dataclasses.replace(book, development=True), patience=QUICK)
    await ledger.faucet(PAYER.address, 10)
    config = config_for(book)
    await ledger.deposit(config, Amount(10), signer=PAYER)
    await ledger.claim([voucher(book, config, 10)], signer=RECEIVER)
    assert await ledger.balance(RECEIVER.address) == 10


async def test_errors_of_a_node_never_leave_as_they_are(made: tuple[MiningRpc, EvmLedger]) -> None:
    """LEDGER-2: `RpcError` stays inside; whoever calls the ledger sees bombyx's errors alone."""
    rpc, ledger = made
    with pytest.raises(RpcError):
        await rpc.call("no_such_method")
    with pytest.raises(Unavailable):
        await ledger._ask("no_such_method")
