# SPDX-License-Identifier: Apache-2.0
"""A sender against all that befalls a nonce: taken, lost, held up, reorganised away, left by a process that died."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.onchain.conftest import STRANGER
from tests.onchain.devnet import seeded

from bombyx.adapters.evm import AddressBook, Rpc, calls
from bombyx.adapters.evm.abi import Reader, call
from bombyx.adapters.evm.deploy import DEV_MINTER
from bombyx.adapters.evm.fees import GWEI, Fees, Patience
from bombyx.adapters.evm.line import Watch
from bombyx.adapters.evm.outbox import TABLE, Call, Family, Outbox, Sent, signed
from bombyx.adapters.evm.rpc import as_bytes, as_int
from bombyx.adapters.evm.transactions import Transactions
from bombyx.adapters.memory import MemoryStore
from bombyx.adapters.sqlite import SqliteStore
from bombyx.errors import Unavailable
from bombyx.ports import Write
from bombyx.protocol.primitives import Address
from bombyx.protocol.wire.eip712 import word

HASTY = Patience(poll=0.02, look=0.05, gap_after=0.2, bump_after=0.5, give_up_after=20.0)
ME = DEV_MINTER.address


class Held:
    """A development node whose blocks come when they are asked for. Nonces are counted from the test's beginning."""

    def __init__(self, rpc: Rpc, book: AddressBook) -> None:
        self.rpc = rpc
        self.book = book
        self.first = 0

    async def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            await self.rpc.call("evm_mine")

    async def count(self, tag: str = "latest") -> int:
        return as_int(await self.rpc.call("eth_getTransactionCount", str(ME), tag)) - self.first

    async def held(self, tag: str) -> list[dict[str, Any]]:
        return list((await self.rpc.call("eth_getBlockByNumber", tag, True))["transactions"])

    async def until(self, true: Callable[[], Any], *, mining: bool = False) -> None:
        async with asyncio.timeout(15):
            while not await true():
                if mining:
                    await self.mine()
                await asyncio.sleep(0.05)

    async def minted(self) -> int:
        """What STRANGER has: one for each call that was made."""
        data = call("balanceOf(address)", word(STRANGER.address))
        answer = await self.rpc.call("eth_call", {"to": str(self.book.token), "data": "0x" + data.hex()}, "latest")
        return Reader(as_bytes(answer, 32)).uint(0)

    def sender(self, **changes: Any) -> Transactions:
        patience = dataclasses.replace(HASTY, **{k: v for k, v in changes.items() if k != "sent"})
        return Transactions(self.rpc, patience=patience, sent=changes.get("sent"))

    def mint(self, sender: Transactions, amount: int = 1) -> asyncio.Task[Any]:
        return asyncio.create_task(
            sender.send(self.book.token, calls.mint(STRANGER.address, amount), signer=DEV_MINTER)
        )

    async def put(self, nonce: int, fees: Fees) -> Sent:
        """Another process' transaction with the same key."""
        one = self.other(nonce, fees)
        await self.rpc.call("eth_sendRawTransaction", "0x" + one.raw.hex())
        return one

    def other(self, nonce: int, fees: Fees) -> Sent:
        empty = Call(to=ME, data=b"", gas=30_000)
        return signed(empty, chain_id=self.book.chain_id, nonce=self.first + nonce, fees=fees, signer=DEV_MINTER)


@pytest.fixture
async def node() -> AsyncIterator[Held]:
    async with seeded() as (running, _, book):
        rpc = Rpc([running.url])
        await rpc.call("evm_setIntervalMining", 0)
        node = Held(rpc, book)
        node.first = await node.count()
        yield node
        await rpc.close()


async def pooled(node: Held, wanted: int) -> None:
    async def there() -> bool:
        return await node.count("pending") >= wanted

    await node.until(there)


# --- nonces ----------------------------------------------------------------------------------------------------------


async def test_a_nonce_that_another_process_took_from_us(node: Held) -> None:
    """LEDGER-6: its dearer transaction drove ours out of the pool: the call is made under the next nonce, once."""
    sending = node.mint(node.sender())
    await pooled(node, 1)
    await node.put(0, Fees(tip=30 * GWEI, limit=60 * GWEI))
    await node.mine()
    assert await node.minted() == 0
    await pooled(node, 2)
    await node.mine()
    await sending
    assert (await node.minted(), await node.count()) == (1, 2)


async def test_a_transaction_the_nodes_forgot_is_sent_again(node: Held) -> None:
    """LEDGER-9: a node that was restarted has lost its pool."""
    sending = node.mint(node.sender())
    await pooled(node, 1)
    (one,) = await node.held("pending")
    await node.rpc.call("anvil_dropTransaction", one["hash"])
    assert await node.count("pending") == 0
    await pooled(node, 1)
    await node.mine()
    await sending
    assert await node.minted() == 1


async def test_a_hole_below_our_nonce_is_filled(node: Held) -> None:
    """LEDGER-9: whoever had the nonces below ours will never send: they are used up by empty transactions."""
    sender = node.sender()
    first = node.mint(sender)
    await pooled(node, 1)
    for nonce in (1, 2):
        await node.put(nonce, Fees(tip=2 * GWEI, limit=20 * GWEI))
    second = node.mint(sender, 2)
    await pooled(node, 4)
    for one in (await node.held("pending"))[1:3]:
        await node.rpc.call("anvil_dropTransaction", one["hash"])
    await pooled(node, 4)
    await node.mine()
    await asyncio.gather(first, second)
    assert (await node.minted(), await node.count()) == (3, 4)


async def test_a_strangers_transaction_that_holds_ours_up_is_overruled(node: Held) -> None:
    """LEDGER-9: it is not mined, and who sent it is gone: an empty dearer one with its nonce lets ours through."""
    stuck = await node.put(0, Fees(tip=GWEI, limit=4 * GWEI))
    sending = node.mint(node.sender(bump_after=0.1))
    await pooled(node, 2)

    async def overruled() -> bool:
        first = (await node.held("pending"))[0]
        return first["hash"] != str(stuck.hash) and as_int(first["nonce"]) == node.first

    await node.until(overruled)
    await node.mine()
    await sending
    assert (await node.minted(), await node.count()) == (1, 2)


# --- reorgs ----------------------------------------------------------------------------------------------------------


async def test_a_reorg_under_changes_that_wait_for_confirmations(node: Held) -> None:
    """LEDGER-4, LEDGER-9: the blocks are gone, and with them changes nobody waits for any more: no nonce is left open,
    and every change that is waited for is made once, with new gas where the other state asks for more."""
    sender, settled = node.sender(confirmations=2), node.sender()
    snapshot = await node.rpc.call("evm_snapshot")
    early = [node.mint(settled, 100) for _ in range(3)]
    await pooled(node, 3)
    await node.mine()
    await asyncio.gather(*early)
    waiting = [node.mint(sender) for _ in range(2)]
    await pooled(node, 5)
    await node.mine()
    await asyncio.sleep(0.2)
    assert await node.rpc.call("evm_revert", snapshot)
    assert (await node.minted(), await node.count("pending")) == (0, 0)

    async def done() -> bool:
        return all(one.done() for one in waiting)

    await node.until(done, mining=True)
    await asyncio.gather(*waiting)
    assert await node.minted() == 2
    assert await node.count() == await node.count("pending")


async def test_the_nodes_own_reorg_with_another_transaction_in_our_place(node: Held) -> None:
    """LEDGER-4, LEDGER-9: `anvil_reorg`: our block is replaced by one in which our nonce does something else."""
    sender = node.sender(confirmations=2)
    await node.mine(3)
    waiting = node.mint(sender)
    await pooled(node, 1)
    await node.mine()
    assert await node.minted() == 1
    other = node.other(0, Fees(tip=2 * GWEI, limit=60 * GWEI))
    await node.rpc.call("anvil_reorg", 2, [["0x" + other.raw.hex(), 0]])
    assert (await node.minted(), await node.count()) == (0, 1)

    async def done() -> bool:
        return waiting.done()

    await node.until(done, mining=True)
    assert (await waiting).block
    assert (await node.minted(), await node.count()) == (1, 2)


# --- restarts --------------------------------------------------------------------------------------------------------


async def test_a_sender_that_died_is_finished_by_the_next_one(node: Held, tmp_path: Path) -> None:
    """LEDGER-9: what was under way is in the store; the next life sends it again where nodes lost it, makes it dearer
    where it is stuck, and asked for the same call makes it once."""
    for lost in (True, False):
        before = await node.minted()
        store = SqliteStore.open(tmp_path / "chain.db")
        dying = node.mint(node.sender(sent=store, bump_after=60.0), 7)
        await pooled(node, await node.count() + 1)
        (one,) = await node.held("pending")
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        await store.close()
        if lost:
            await node.rpc.call("anvil_dropTransaction", one["hash"])
        store = SqliteStore.open(tmp_path / "chain.db")
        assert len(await store.scan(TABLE)) == 1
        sending = node.mint(node.sender(sent=store), 7)

        async def dearer(first: dict[str, Any] = one) -> bool:
            now = await node.held("pending")
            return bool(now) and as_int(now[0]["maxFeePerGas"]) > as_int(first["maxFeePerGas"])

        await node.until(dearer)
        await node.mine()
        assert (await sending).hash
        assert await node.minted() == before + 7
        assert await store.scan(TABLE) == []
        await store.close()


async def test_what_was_mined_meanwhile_does_not_stand_for_what_is_asked_now(node: Held, tmp_path: Path) -> None:
    """LEDGER-9: the caller could have seen the first on the chain, so the same call asked for again is a second one."""
    store = SqliteStore.open(tmp_path / "chain.db")
    dying = node.mint(node.sender(sent=store), 7)
    await pooled(node, 1)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    await node.mine()
    again = node.mint(node.sender(sent=store), 7)
    await pooled(node, 2)
    await node.mine()
    await again
    assert await node.minted() == 14
    await store.close()


async def test_nothing_is_sent_that_is_not_written_down(node: Held) -> None:
    """LEDGER-9, PAY-17: where the store refuses, no node sees the transaction."""

    class Broken(MemoryStore):
        async def write(self, rows: Any) -> None:
            raise Unavailable("the disk is full")

    with pytest.raises(Unavailable, match="disk"):
        await node.mint(node.sender(sent=Broken()))
    assert await node.count("pending") == 0


async def test_a_row_that_cannot_be_read_is_left_alone(node: Held) -> None:
    """LEDGER-9: neither sent nor a reason not to start."""
    store = MemoryStore()
    key = node.book.chain_id.to_bytes(8) + ME + (0).to_bytes(8)
    for junk in (
        b"",
        b"{}",
        b"[" * 5000,
        b'{"to":null,"data":"zz","gas":1,"sent":[]}',
        b'{"to":1,"data":"","sent":[]}',
    ):
        await store.write([Write(table=TABLE, key=key, value=junk)])
        assert await Outbox(store).left(node.book.chain_id, ME) == []
    await store.write([Write(table=TABLE, key=key, value=None)])


def test_a_family_is_read_back_as_it_was() -> None:
    """LEDGER-9: nonce, call, and every transaction signed for it."""
    for to in (None, Address(b"\x07" * 20)):
        one = Call(to=to, data=b"\x01" * 100, gas=99)
        sent = [
            signed(one, chain_id=5, nonce=3, fees=Fees(tip=n, limit=2 * n), signer=DEV_MINTER) for n in (GWEI, 2 * GWEI)
        ]
        family = Family(chain_id=5, sender=ME, nonce=3, call=one, members=sent)
        back = Family.decode(family.key, family.encode())
        assert (back.chain_id, back.sender, back.nonce, back.call, back.members) == (5, ME, 3, one, sent)


def test_one_look_proves_no_displacement() -> None:
    """LEDGER-9: behind one address may be a node that is a block behind."""
    watch = Watch(HASTY)
    assert [watch.displaced(seen) for seen in (True, False, True, True)] == [False, False, False, True]
