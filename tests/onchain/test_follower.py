# SPDX-License-Identifier: Apache-2.0
"""LEDGER-10: what a process reads of the chain's events goes on where it stopped, and nothing is missed by it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
from tests.onchain.conftest import AUTHORIZER, PAYER, RECEIVER, SESSION, STRANGER
from tests.onchain.devnet import QUICK, MiningRpc, seeded

from bombyx.adapters.evm import AddressBook, EvmLedger
from bombyx.adapters.evm import operators as operators_module
from bombyx.adapters.evm.follower import TABLE, topic
from bombyx.adapters.memory import MemoryStore
from bombyx.errors import Unavailable
from bombyx.ports import Operator, OperatorRole, Write
from bombyx.protocol.primitives import Amount, Digest
from bombyx.protocol.wire.channel import ChannelConfig, settlement_domain
from bombyx.protocol.wire.signing import SigningKey

DEPTH = 2


@pytest.fixture
async def chain() -> AsyncIterator[tuple[MiningRpc, AddressBook]]:
    async with seeded() as (_, rpc, book):
        assert isinstance(rpc, MiningRpc)
        yield rpc, dataclasses.replace(book, reorg_depth=DEPTH)


def process(chain: tuple[MiningRpc, AddressBook], store: MemoryStore | None = None) -> EvmLedger:
    """One process' view of the chain. Nobody waits for confirmations here: blocks come with transactions alone."""
    return EvmLedger(*chain, patience=QUICK, kept=store)


async def opened(ledger: EvmLedger, salt: int) -> Digest:
    book = ledger.book
    config = ChannelConfig(
        payer=PAYER.address,
        payer_authorizer=SESSION.address,
        receiver=RECEIVER.address,
        receiver_authorizer=AUTHORIZER.address,
        token=book.token,
        withdraw_delay=900,
        salt=Digest(salt.to_bytes(32)),
    )
    await ledger.faucet(PAYER.address, 100)
    await ledger.deposit(config, Amount(100), signer=PAYER)
    return config.channel_id(settlement_domain(book.chain_id, book.settlement))


async def mine(ledger: EvmLedger, blocks: int) -> None:
    for _ in range(blocks):
        await ledger.rpc.call("evm_mine")


async def test_who_withdraws_is_told_until_no_reorg_can_take_it_back(chain: tuple[MiningRpc, AddressBook]) -> None:
    """PAY-15, LEDGER-10: the first look knows nothing; from then on withdrawals are told, and nothing else."""
    ledger = process(chain)
    quiet, leaving = [await opened(ledger, salt) for salt in (1, 2)]
    assert await ledger.leaving() is None
    assert await ledger.leaving() == frozenset()
    await ledger.initiate_withdraw(leaving, Amount(40), signer=PAYER)
    assert await ledger.leaving() == frozenset({leaving})
    await mine(ledger, DEPTH)
    assert await ledger.leaving() == frozenset({leaving}), "its view shows it only now: told again"
    await mine(ledger, 10)
    await ledger.leaving()
    assert await ledger.leaving() == frozenset()
    assert quiet != leaving


async def test_what_happened_while_we_were_not_there(chain: tuple[MiningRpc, AddressBook]) -> None:
    """LEDGER-10: a process that was dead for long goes on with the block after the last one it had processed."""
    store = MemoryStore()
    before = process(chain, store)
    leaving = await opened(before, 1)
    assert await before.leaving() is None
    await mine(before, 5)
    assert await before.leaving() == frozenset()
    other = process(chain)
    await other.channel(leaving)
    await other.initiate_withdraw(leaving, Amount(40), signer=PAYER)
    await mine(other, 50)
    after = process(chain, store)
    assert await after.leaving() == frozenset({leaving})
    assert await after.leaving() == frozenset()


async def test_a_reorg_deeper_than_usual_is_seen_after_a_restart_too(chain: tuple[MiningRpc, AddressBook]) -> None:
    """LEDGER-4, LEDGER-10: what was read is gone from the chain: nothing is known, all is looked at."""
    store = MemoryStore()
    ledger = process(chain, store)
    await mine(ledger, 8)
    assert await ledger.leaving() is None
    for again in (ledger, process(chain, store)):
        assert await again.leaving() == frozenset()
        await again.rpc.call("anvil_reorg", DEPTH, [])
        assert await again.leaving() == frozenset(), "as deep as everybody waits for: nobody has acted on it"
        await again.rpc.call("anvil_reorg", DEPTH + 1, [])
        assert await again.leaving() is None
        assert await again.leaving() == frozenset()


async def test_a_place_that_cannot_be_read_is_no_place(chain: tuple[MiningRpc, AddressBook]) -> None:
    """LEDGER-10: then nothing is known, as the first time."""
    store = MemoryStore()
    await process(chain, store).leaving()
    ((key, _),) = await store.scan(TABLE)
    for junk in (b"", b"[1]", b"[1,2,3]", b'["a",2,"b"]', b"[" * 5_000, b"null", b'{"a":1}'):
        await store.write([Write(table=TABLE, key=key, value=junk)])
        assert await process(chain, store).leaving() is None


async def test_an_event_without_its_topics_is_no_answer() -> None:
    """LEDGER-2."""
    for log in ({}, {"topics": None}, {"topics": ["0x00"]}, {"topics": [None, 5]}):
        with pytest.raises(Unavailable):
            topic(log, 1)


def line(key: SigningKey, endpoint: str = "") -> Operator:
    return Operator(
        address=key.address,
        role=OperatorRole.WORKER,
        endpoint=endpoint,
        receipt_address=key.address,
        pay_authorizer=key.address,
        pay_key_config=b"\x01",
        price_sheet=Digest.zero(),
        models=(),
    )


async def test_a_long_registry_is_read_again_only_when_it_changed(
    chain: tuple[MiningRpc, AddressBook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LEDGER-5, LEDGER-10: a line more, a changed one, one that a reorg took: each is seen at once."""
    monkeypatch.setattr(operators_module, "PAGE", 2)
    rpc, _ = chain
    ledger = process(chain)
    for key in (PAYER, RECEIVER, AUTHORIZER):
        await ledger.register(line(key), signer=key)
    await mine(ledger, 10)
    for _ in range(2):
        assert len(await ledger.operators(OperatorRole.WORKER)) == 3
    rpc.calls = 0
    assert len(await ledger.operators(OperatorRole.WORKER)) == 3
    assert rpc.calls <= 4
    snapshot = await rpc.call("evm_snapshot")
    for key, endpoint, wanted in ((SESSION, "", 4), (STRANGER, "", 5), (STRANGER, "http://moved", 5)):
        await ledger.register(line(key, endpoint), signer=key)
        found = await ledger.operators(OperatorRole.WORKER)
        assert (len(found), line(key, endpoint) in found) == (wanted, True)
    await rpc.call("evm_revert", snapshot)
    assert len(await ledger.operators(OperatorRole.WORKER)) == 3
    await ledger.register(line(SESSION), signer=SESSION)
    assert len(await ledger.operators(OperatorRole.WORKER)) == 4
    await rpc.call("anvil_reorg", 1, [])
    assert len(await ledger.operators(OperatorRole.WORKER)) == 3


async def test_a_block_that_a_node_does_not_give_is_no_reason_to_stop(
    chain: tuple[MiningRpc, AddressBook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LEDGER-10, PAY-15: nodes lose blocks in a reorg: nothing is known, or the old place is kept; claims go on."""
    ledger = process(chain)
    await mine(ledger, 5)
    assert await ledger.leaving() is None
    asked, lost = chain[0].call, True

    async def call(method: str, *params: object) -> object:
        return None if lost and method == "eth_getBlockByNumber" else await asked(method, *params)

    monkeypatch.setattr(chain[0], "call", call)
    assert await ledger.leaving() is None
    lost = False
    assert await ledger.leaving() == frozenset()
    lost = True
    assert await process(chain).leaving() is None
