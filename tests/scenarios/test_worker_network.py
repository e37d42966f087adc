# SPDX-License-Identifier: Apache-2.0
"""A worker among several proxies, with a store on disk: what one side does, the others do not feel."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.unit.worker.rig import CLOCK, QUICK, chat, new_key, running

from bombyx.adapters.engine_scripted import Script
from bombyx.adapters.memory import MemoryLedger, MemoryStore
from bombyx.adapters.sqlite import SqliteStore
from bombyx.protocol.seal import TICK
from bombyx.protocol.wire.receipt import Outcome, SignedReceipt
from bombyx.protocol.wire.request import Shape
from bombyx.roles.worker import Limits
from bombyx.roles.worker.notary import RECEIPT_TIMES, RECEIPTS


async def test_one_proxy_dies_and_the_others_answers_go_on() -> None:
    """LINK-1: links share the engine and the receipt count, and nothing else."""
    async with running(Script(words=100, seconds_per_token=0.005), more_proxies=2) as rig:
        flows = [proxy.ask(chat(), shape=Shape.CONSTANT) for proxy in (rig.proxy, *rig.others)]
        await asyncio.gather(*(flow.first_frame.wait() for flow in flows))
        assert rig.proxy.link is not None
        rig.proxy.link.cut()
        replies = await asyncio.gather(*(flow.done() for flow in flows[1:]))
        assert all(reply.complete for reply in replies)
        await asyncio.wait_for(rig.proxy.greeted.wait(), 5)
        assert rig.worker.links == 3


async def test_a_request_sealed_for_one_proxy_is_not_served_through_another() -> None:
    """SEAL-5: a proxy cannot hand a client's request to a friend."""
    async with running(more_proxies=1) as rig:
        (other,) = rig.others
        sealed = rig.proxy.seal(chat())
        refusal = (await other.send_sealed(sealed).done()).refusal
        assert refusal is not None and refusal.message.startswith("SEAL-5")


async def test_capacity_is_one_for_all_links() -> None:
    """LINK-5: a proxy cannot take more by dialling twice."""
    limits = Limits(capacity=2, queue=0)
    async with running(Script(words=30, seconds_per_token=0.01), more_proxies=1, limits=limits) as rig:
        flows = [proxy.ask(chat(str(n))) for n in range(2) for proxy in (rig.proxy, *rig.others)]
        replies = await asyncio.gather(*(flow.done() for flow in flows))
        assert sum(reply.complete for reply in replies) == 2
        assert sum(reply.refusal is not None for reply in replies) == 2


async def test_rotation_under_load_fails_no_request() -> None:
    """SEAL-10: requests sealed before, during and after each rotation are all answered."""
    times = replace(QUICK, rotation=0.25, overlap=0.6)
    async with running(Script(words=10, seconds_per_token=0.005), timings=times, more_proxies=1,
                       limits=Limits(capacity=16, queue=64)) as rig:  # fmt: skip
        flows = []
        for number in range(60):
            proxy = (rig.proxy, *rig.others)[number % 2]
            flows.append(proxy.ask(chat(str(number))))
            await asyncio.sleep(0.02)
        replies = await asyncio.gather(*(flow.done() for flow in flows))
        assert all(reply.complete for reply in replies), [reply.refusal for reply in replies if reply.refusal]
        assert len(rig.proxy.hellos) >= 4


async def test_nothing_is_lost_between_two_lives(tmp_path: Path) -> None:
    """PAY-17, RCT-1: receipts and charges are on disk; what was earned in one life is claimed in the next."""
    operator, ledger, path = new_key(), MemoryLedger(CLOCK), tmp_path / "worker.db"
    store = SqliteStore.open(path)
    async with running(Script(words=50), store=store, operator=operator, ledger=ledger) as rig:
        replies = [await rig.proxy.ask(chat(str(number))).done() for number in range(3)]
        earned = sum(reply.final.charge for reply in replies)
    await store.close()
    store = SqliteStore.open(path)
    kept = [SignedReceipt.decode(value).receipt for _, value in await store.scan(RECEIPTS)]
    assert [one.seq for one in kept] == list(range(1, len(kept) + 1))
    assert sum(one.charge for one in kept if one.outcome is Outcome.COMPLETE) == earned
    async with running(store=store, operator=operator, ledger=ledger) as rig:
        await rig.worker.drain()
        assert await ledger.balance(operator.address) == earned
    await store.close()


async def test_old_receipts_are_forgotten_and_new_ones_kept() -> None:
    """RCT-11: a worker's store does not grow for ever; earlier boots' receipts go as well."""
    operator, ledger, store = new_key(), MemoryLedger(CLOCK), MemoryStore()
    for _ in range(2):
        async with running(Script(words=4), store=store, operator=operator, ledger=ledger) as rig:
            await rig.proxy.ask(chat()).done()
            kept = await store.scan(RECEIPTS)
            assert len(kept) == len(await store.scan(RECEIPT_TIMES))
            notary = rig.worker._booted.notary
    assert await notary.forget(CLOCK.now()) == 0
    assert await notary.forget(CLOCK.now().plus(seconds=31 * 86_400)) == len(kept)
    assert not await store.scan(RECEIPTS) and not await store.scan(RECEIPT_TIMES)


async def test_constant_frames_do_not_tell_a_fast_answer_from_a_slow_one() -> None:
    """SEAL-8: two rhythms that take the same time give equal frames at the same ticks, and about as many."""
    for _ in range(3):  # ticks are the machine's too: one quiet try of three is enough
        one, other = await _shown(20, 0.03), await _shown(60, 0.01)  # the same 0.6 s, three times the tokens
        assert one[0] == other[0] and len(one[0]) == 1
        if one[1][:10] == other[1][:10] and abs(len(one[1]) - len(other[1])) <= 4:
            return
    raise AssertionError("frames of a fast and of a slow engine are told apart in three tries of three")


async def _shown(words: int, pause: float) -> tuple[set[int], list[int]]:
    """What a proxy sees of one answer: frame sizes, and at which tick each came."""
    async with running(Script(words=words, seconds_per_token=pause)) as rig:
        reply = await rig.proxy.ask(chat(), shape=Shape.CONSTANT).done()
        return {len(frame) for frame in reply.frames[1:]}, [round((at - reply.times[0]) / TICK) for at in reply.times]
