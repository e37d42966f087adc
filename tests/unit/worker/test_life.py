# SPDX-License-Identifier: Apache-2.0
"""Boot, rotation, drain, links that break, restarts: nothing is lost and no request fails for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.unit.worker.rig import CLOCK, QUICK, URL, chat, new_key, register_proxy, running

from bombyx.adapters.engine_scripted import Script
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.errors import ConfigError, Unavailable
from bombyx.ports import OperatorRole, Write
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.receipt import Outcome, SignedReceipt
from bombyx.protocol.wire.records import LinkType
from bombyx.protocol.wire.request import Payment, Shape
from bombyx.roles.worker.boot import price_sheet
from bombyx.roles.worker.notary import FINISHED, RECEIPTS, RUNNING

# --- boot ------------------------------------------------------------------------------------------------------------


async def test_the_registry_learns_what_the_enclave_made() -> None:
    """ATT-7: receipt address, payment authorizer and price sheet are those of this boot."""
    async with running() as rig:
        (line,) = await rig.ledger.operators(OperatorRole.WORKER)
        keyset = rig.worker.keyset
        assert (line.address, line.receipt_address) == (rig.operator.address, keyset.receipt_address)
        assert line.pay_authorizer == keyset.pay_authorizer and line.models == keyset.models
        assert line.price_sheet == rig.worker.sheet.digest()


async def test_every_boot_has_keys_of_its_own() -> None:
    """ATT-1: nothing is derived from what an earlier boot left."""
    store, operator = MemoryStore(), new_key()
    async with running(store=store, operator=operator) as first:
        one = first.worker.keyset
    async with running(store=store, operator=operator) as second:
        two = second.worker.keyset
    assert one.operator == two.operator
    assert one.receipt_address != two.receipt_address and one.pay_authorizer != two.pay_authorizer
    assert one.ohttp_key_config != two.ohttp_key_config


def test_a_model_without_a_price_is_not_served() -> None:
    """PAY-12: nothing is given away by accident."""
    from bombyx.roles.worker import WorkerSettings

    with pytest.raises(ConfigError):
        price_sheet(WorkerSettings(proxies=(), prices={}), Address(bytes(20)), (Digest(bytes(32)),))


# --- handshake -------------------------------------------------------------------------------------------------------


async def test_a_proxy_that_cannot_sign_its_welcome_gets_no_link() -> None:
    """LINK-2: whoever sits in between cannot answer for the proxy."""
    async with running(funded=False) as rig:
        impostor = new_key()
        rig.proxy.change_welcome = lambda welcome: replace(welcome, signature=impostor.sign(Digest(bytes(32))))
        await asyncio.sleep(0.2)
        assert not rig.worker.links and rig.dialer.dialled > 1


async def test_a_proxy_nobody_knows_gets_no_link_until_it_is_registered() -> None:
    """LINK-2: without an address in the settings, the registry must name it."""
    async with running(funded=False, trusted=False) as rig:
        await asyncio.sleep(0.1)
        assert not rig.worker.links
        await rig.ledger.register(register_proxy(rig), signer=rig.proxy.key)
        await asyncio.wait_for(rig.worker.ready.wait(), 2)


async def test_a_challenge_of_another_chain_is_refused() -> None:
    """LINK-2: operator keys are not to sign for a chain they do not work on."""
    async with running(funded=False) as rig:
        rig.proxy.change_challenge = lambda challenge: replace(challenge, chain_id=1)
        await asyncio.sleep(0.1)
        assert not rig.proxy.hellos and not rig.worker.links


@pytest.mark.parametrize("frame", [(LinkType.HELLO, 0), (LinkType.DATA, 7), (LinkType.WINDOW, 7), (LinkType.REFUSE, 0)])
async def test_frames_out_of_place_end_the_link_and_nothing_else(frame: tuple[LinkType, int]) -> None:
    """LINK-6: the worker dials again."""
    async with running() as rig:
        dialled = rig.dialer.dialled
        rig.proxy.send(frame[0], frame[1], b"\x00")
        await asyncio.sleep(0.2)
        assert rig.dialer.dialled > dialled and rig.worker.links == 1
        assert (await rig.proxy.ask(chat()).done()).complete


# --- links that break ------------------------------------------------------------------------------------------------


async def test_a_broken_link_is_dialled_again_and_serves() -> None:
    """LINK-1: with pauses that grow and scatter."""
    async with running() as rig:
        assert rig.proxy.link is not None
        rig.proxy.link.cut()
        rig.dialer.unlisten(URL)
        await asyncio.sleep(0.2)
        assert rig.worker.links == 0
        rig.dialer.listen(URL, rig.proxy.accept)
        await asyncio.wait_for(rig.proxy.greeted.wait(), 2)
        assert (await rig.proxy.ask(chat()).done()).complete


async def test_a_link_that_breaks_mid_answer_charges_the_last_checkpoint() -> None:
    """PAY-17, RCT-7: the proxy can agree to no more than the last receipt it may have seen."""
    async with running(Script(words=2000, seconds_per_token=0.002)) as rig:
        flow = rig.proxy.ask(chat(), max_output=4096)
        await flow.receipts(3)
        assert rig.proxy.link is not None
        rig.proxy.link.cut()
        await asyncio.sleep(0.2)
        book = rig.book
        assert not book.in_flight() and rig.scripted.running == 0
        assert book.account(book.channels[0]).charged == flow.reply.receipts[-1].receipt.charge > 0
        assert await rig.store.scan(FINISHED) and not await rig.store.scan(RUNNING)


async def test_a_link_that_breaks_before_the_first_frame_leaves_the_request_free_to_come_again() -> None:
    """SEAL-6: a request that came to nothing is not a finished one."""
    async with running(Script(words=20, seconds_per_token=0.1)) as rig:
        sealed = rig.proxy.seal(chat())
        rig.proxy.send_sealed(sealed)
        await asyncio.sleep(0.03)
        assert rig.proxy.link is not None
        rig.proxy.greeted.clear()
        rig.proxy.link.cut()
        await asyncio.wait_for(rig.proxy.greeted.wait(), 2)
        await asyncio.sleep(0.05)
        assert not rig.book.in_flight()
        rig.scripted.script = Script()
        again = rig.proxy.seal(chat(), sealed.meta)
        assert (await rig.proxy.send_sealed(again).done()).complete


# --- rotation --------------------------------------------------------------------------------------------------------


async def test_keys_rotate_without_a_failed_request() -> None:
    """SEAL-10: a new hello, old keys for the overlap, the same receipt key throughout."""
    times = replace(QUICK, rotation=0.3, overlap=0.5)
    async with running(Script(words=3), timings=times) as rig:
        first = rig.proxy.keyset
        for _ in range(20):
            old = rig.proxy.meta()
            await asyncio.sleep(0.05)
            assert (await rig.proxy.send_sealed(rig.proxy.seal(chat(), old)).done()).complete
        last = rig.proxy.keyset
        assert len(rig.proxy.hellos) >= 3 and first.ohttp_key_config != last.ohttp_key_config
        assert first.receipt_address == last.receipt_address
        rig.appraise()


async def test_a_key_past_its_overlap_is_gone() -> None:
    """ATT-1: dropped by the monotonic clock, and then nothing opens what was sealed to it."""
    async with running(timings=replace(QUICK, rotation=0.1, overlap=0.1)) as rig:
        old = rig.proxy.meta()
        await asyncio.sleep(0.4)
        refusal = (await rig.proxy.send_sealed(rig.proxy.seal(chat(), old)).done()).refusal
        assert refusal is not None and refusal.code == "ohttp_key"


# --- drain -----------------------------------------------------------------------------------------------------------


async def test_drain_finishes_what_runs_refuses_what_comes_and_claims_what_was_earned() -> None:
    """LINK-5: SIGTERM loses no answer and no money."""
    async with running(Script(words=40, seconds_per_token=0.01)) as rig:
        flow = rig.proxy.ask(chat(), shape=Shape.CONSTANT)
        await flow.first_frame.wait()
        draining = asyncio.create_task(rig.worker.drain())
        await asyncio.wait_for(rig.proxy.drained.wait(), 1)
        late = await rig.proxy.ask(chat("late")).done()
        assert late.refusal is not None and late.refusal.code == "overloaded"
        reply = await flow.done()
        await draining
        assert reply.complete and rig.worker.links == 0
        assert await rig.ledger.balance(rig.operator.address) == reply.final.charge > 0


async def test_drain_ends_by_itself_what_does_not_end() -> None:
    """LINK-5: with a final receipt for what was delivered."""
    async with running(Script(words=5000, seconds_per_token=0.01), timings=replace(QUICK, drain=0.2)) as rig:
        flow = rig.proxy.ask(chat(), max_output=8192)
        await flow.first_frame.wait()
        await rig.worker.drain()
        assert flow.reply.final.outcome is Outcome.CANCELLED and rig.scripted.running == 0


# --- rows ------------------------------------------------------------------------------------------------------------


class WatchedStore(MemoryStore):
    """Remembers what had been written when."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.fail = False

    async def write(self, rows: Sequence[Write]) -> None:
        if self.fail:
            raise Unavailable("the disk is full")
        await super().write(rows)
        self.log += [row.table for row in rows]


async def test_payment_and_receipts_are_written_before_they_are_acted_on() -> None:
    """PAY-17: the reservation before the engine runs, every receipt before it is sent."""
    store = WatchedStore()
    async with running(Script(words=100), store=store) as rig:
        seen: list[tuple[str, ...]] = []
        run = rig.scripted.run

        def watched(request):  # type: ignore[no-untyped-def]
            seen.append(tuple(store.log))
            return run(request)

        rig.scripted.run = watched  # type: ignore[method-assign]
        reply = await rig.proxy.ask(chat()).done()
        assert "worker_book" in seen[0] and RECEIPTS not in seen[0]
        rows = await store.scan(RECEIPTS)
        assert [SignedReceipt.decode(value) for _, value in rows] == reply.receipts


async def test_a_store_that_fails_lets_nothing_through_unwritten() -> None:
    """PAY-17: no receipt that is not durable, no work that is not."""
    store = WatchedStore()
    async with running(store=store) as rig:
        store.fail = True
        refusal = (await rig.proxy.ask(chat()).done()).refusal
        assert refusal is not None and refusal.code == "unavailable" and not rig.scripted.requests


async def test_a_crash_mid_answer_is_charged_by_its_last_written_checkpoint() -> None:
    """PAY-17: the next life ends what the last one left open."""
    store, operator, ledger = MemoryStore(), new_key(), MemoryLedger(CLOCK)
    async with running(Script(words=2000, seconds_per_token=0.002), store=store, operator=operator,
                       ledger=ledger) as rig:  # fmt: skip
        flow = rig.proxy.ask(chat(), max_output=4096)
        await flow.receipts(3)
        tables = {name: dict(rows) for name, rows in store._tables.items()}  # what a crash here would leave
        charged = SignedReceipt.decode(next(iter(tables[RUNNING].values()))).receipt.charge
    crashed = MemoryStore()
    crashed._tables = tables
    async with running(store=crashed, operator=operator, ledger=ledger) as rig:
        book = rig.book
        assert not book.in_flight() and book.account(book.channels[0]).charged == charged > 0
        assert not await crashed.scan(RUNNING)
        await rig.worker.claim(everything=True)
        assert await ledger.balance(operator.address) == charged


async def test_a_voucher_outside_a_request_raises_the_ceiling() -> None:
    """PAY-7: and a smaller one changes nothing and ends nothing."""
    async with running() as rig:
        assert (await rig.proxy.ask(chat()).done()).complete
        channel = rig.proxy.channel
        assert channel is not None
        before = rig.book.account(channel.id).ceiling
        channel.agree(next(iter(channel.in_flight)), 0)
        channel.policy = replace(channel.policy, window=500_000)
        voucher = channel.voucher(signer=rig.proxy.key)
        payment = Payment(v=1, channel=channel.id, cap=0, voucher=voucher, grant=None, counter=0, mac=b"")
        rig.proxy.send(LinkType.VOUCHER, 0, payment.encode())
        rig.proxy.send(LinkType.VOUCHER, 0, b"nonsense")
        await asyncio.sleep(0.05)
        assert rig.book.account(channel.id).ceiling > before and rig.worker.links == 1


# --- what is told ----------------------------------------------------------------------------------------------------


async def test_the_log_holds_no_content_and_no_keys(caplog: pytest.LogCaptureFixture) -> None:
    """WRK-7: ids, sizes and outcomes alone."""
    caplog.set_level(logging.DEBUG, logger="bombyx.worker")
    async with running(Script(reply=lambda _: "the answer is a silkworm")) as rig:
        await rig.proxy.ask(chat("my secret question")).done()
        await rig.proxy.ask(chat("my secret question", model="no such model")).done()
        request = rig.scripted.requests[0]
    told = caplog.text + "".join(str(record.args) for record in caplog.records) + repr(request)
    assert "complete" in told
    for piece in ("my secret", "silkworm", "question", request.cache_salt.hex()):
        assert piece not in told
